# SPDX-License-Identifier: Apache-2.0
"""Everything that can happen on a node, in any order; afterwards all is as if nothing had."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from deviceplugin.config import HealthSettings
from deviceplugin.kubelet import lifecycle
from deviceplugin.testing import Kubelet, Pod
from deviceplugin.testing.settings import Semantics
from tests.kubelet.serving import RESOURCE, Rack, overlaps, service_of, serving

IDS = ("a", "b", "c", "d")


class Storm(RuleBasedStateMachine):
    """A daemon, a kubelet and its pods. ``well`` is what the hardware really is."""

    semantics: ClassVar[Semantics]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patches = self.stack.enter_context(pytest.MonkeyPatch.context())
        patches.setattr(lifecycle, "BACKOFF_CAP", 0.2)
        patches.setattr(lifecycle, "EXPECT", 0.5)
        self.streams = overlaps(patches)
        self.root = tempfile.mkdtemp(prefix="storm-", dir="/tmp")
        self.stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.kubelet = Kubelet(self.root, semantics=self.semantics, seed=1, patience=5.0)
        self.stack.callback(lambda: self.kubelet.stop())
        self.rack = Rack(*IDS, settings={"health": HealthSettings(flaps=1000)})
        self.well = set(IDS)
        self.there = set(IDS)
        self.pods: list[Pod] = []
        self.kubelet.start()
        self.daemon = self.stack.enter_context(serving(self.kubelet, self.rack, settle=0.5))

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.stack.close()

    # The kubelet

    @rule(same_inode=st.booleans())
    def restart(self, same_inode: bool) -> None:
        if same_inode and self.kubelet.running and os.path.exists(self.kubelet.socket):
            with suppress(FileNotFoundError):
                self.kubelet.restart(same_inode=True)
        else:
            self.kubelet.stop()
        self.start()

    @precondition(lambda self: self.kubelet.running)
    @rule(unlink=st.booleans())
    def kill(self, unlink: bool) -> None:
        self.kubelet.stop(unlink=unlink)

    @rule()
    def start(self) -> None:
        while not self.kubelet.running:
            with suppress(FileNotFoundError):  # a socket of ours that it was about to remove had gone by itself
                self.kubelet.start()
        self.look_at_pods()

    @precondition(lambda self: self.kubelet.running)
    @rule()
    def drop(self) -> None:
        mark = len(self.kubelet.events)
        if self.kubelet.drop_connections(RESOURCE):  # until it notices, the kubelet believes in a stream that is gone, and so would settle()
            self.kubelet.wait_for_event("disconnected", RESOURCE, since=mark)

    @precondition(lambda self: self.kubelet.running)
    @rule(times=st.integers(1, 3))
    def refuse(self, times: int) -> None:
        self.kubelet.faults.refuse(times)

    @precondition(lambda self: self.kubelet.running)
    @rule(replace=st.booleans())
    def wipe(self, replace: bool) -> None:
        """A node that is set up anew has no pods: with its checkpoint the kubelet loses all memory of who holds what."""
        for pod in self.pods:
            self.kubelet.delete_pod(pod)
        self.pods.clear()
        if replace:
            os.rename(self.kubelet.device_plugins, os.path.join(tempfile.mkdtemp(dir=self.root), "gone"))
            os.mkdir(self.kubelet.device_plugins)
        else:
            self.kubelet.wipe_dir()

    @rule()
    def lose_our_socket(self) -> None:
        path = os.path.join(self.kubelet.device_plugins, service_of(self.daemon).registrar.standing().endpoint or "none")
        with suppress(FileNotFoundError):
            os.unlink(path)

    # The hardware

    @rule(which=st.sampled_from(IDS))
    def sicken(self, which: str) -> None:
        self.rack.sicken(which)
        self.well.discard(which)
        self.there.add(which)

    @rule(which=st.sampled_from(IDS))
    def mend(self, which: str) -> None:
        self.rack.put(which)
        self.well.add(which)
        self.there.add(which)

    @rule(which=st.sampled_from(IDS))
    def pull(self, which: str) -> None:
        if which in self.there:
            self.rack.pull(which)
            self.there.remove(which)
            self.well.discard(which)

    # The pods

    @precondition(lambda self: self.kubelet.running)
    @rule(count=st.integers(1, 3), started=st.booleans())
    def admit(self, count: int, started: bool) -> None:
        pod = Pod.requesting(RESOURCE, count, name=f"pod-{len(self.kubelet.events)}")
        if not self.kubelet.admit(pod):
            self.kubelet.delete_pod(pod)
            return
        self.pods.append(pod)
        if started:
            self.kubelet.start_container(pod)

    @rule(which=st.integers(0, 3))
    def delete(self, which: int) -> None:
        if self.pods:  # no precondition: whether a pod was admitted is a matter of time, and what is drawn must not be
            self.kubelet.delete_pod(self.pods.pop(which % len(self.pods)))

    def look_at_pods(self) -> None:
        """A restarted kubelet admits all pods again, and rejects those whose container did not run while we were not back."""
        for pod in tuple(self.pods):
            if not self.kubelet.admit(pod):
                self.kubelet.delete_pod(pod)
                self.pods.remove(pod)

    # What must hold

    @invariant()
    def no_device_is_held_twice(self) -> None:
        if self.kubelet.running:
            held = [device for pod in self.pods for device in self.kubelet.held(pod)]
            assert len(held) == len(set(held)), self.kubelet.events.last(30)

    @invariant()
    def no_registration_beside_a_stream(self) -> None:
        assert not any(self.streams), self.kubelet.events.last(30)

    def settled(self) -> bool:
        kinds = [event.kind for event in self.kubelet.events if event.kind in ("kubelet started", "stream opened", "list")]
        return self.kubelet.streams(RESOURCE) == 1 and kinds[-1:] == ["list"] and self.kubelet.healthy(RESOURCE) == self.well

    def describe(self) -> str:
        return f"{self.kubelet.describe()}\n{service_of(self.daemon).registrar.standing()}"

    @precondition(lambda self: self.kubelet.running)
    @rule()
    def settle(self) -> None:
        if not self.kubelet.running or not os.path.exists(self.kubelet.socket):
            self.restart(False)
        self.rack.published()
        kubelet = self.kubelet
        wanted = f"one stream and the healthy devices {sorted(self.well)}"
        kubelet.wait_until(self.settled, wanted, timeout=5.0, state=self.describe)
        assert kubelet.allocatable(RESOURCE) == len(self.well)
        free = self.well - {device for pod in self.pods for device in kubelet.held(pod)}
        if free:
            pod = Pod.requesting(RESOURCE, len(free), name="all that is free")
            admission = kubelet.admit(pod)
            assert admission, admission.message
            assert kubelet.held(pod) == free
            kubelet.delete_pod(pod)


@pytest.mark.parametrize("semantics", ["v136", "post136"])
def test_whatever_happens_the_devices_come_back(semantics: Semantics) -> None:
    machine = type("Storm", (Storm,), {"semantics": semantics})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],  # threads and sockets take their own time: a shorter story is another story
            suppress_health_check=list(HealthCheck),
        ),
    )
