# SPDX-License-Identifier: Apache-2.0
"""Xeon Phi cards served to a kubelet: the rules for every plugin, starts that reset cards, and whatever may happen to a node in a row."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest

from deviceplugin import Host
from deviceplugin.config import HealthSettings, PluginSettings, Settings
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.plugins.mic import Mic, MicConfig
from deviceplugin.plugins.mic.boot import wait_for_change
from deviceplugin.testing import ContainerConfig, CreateContainerConfigError, Kubelet, PluginConformance, Pod, SimulatedHost
from deviceplugin.testing.mic import SimulatedMic, SimulatedMics

RESOURCE = "intel.com/mic"
SEQUENCES, BATCHES, STEPS = 200, 20, 8


@contextmanager
def served(root: str, kind: type[Mic] = Mic, **config: Any) -> Iterator[Daemon]:
    """A daemon with the plugin, and no patience with flaps."""
    plugin = PluginSettings(plugin="mic", config=config, health=HealthSettings(flaps=1000))
    plan = make_plan(Settings(version="v1", plugins=[plugin], listen=""), Host(root), {"mic": kind})
    daemon = Daemon(plan, Paths.below(root), Host(root))
    daemon.start()
    try:
        assert daemon.wait_first_scan(5.0) is not False
        yield daemon
    finally:
        daemon.stop()


class TestMic(PluginConformance):
    resource = RESOURCE

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        mics = SimulatedMics(SimulatedHost(kubelet.root), "mpss4")
        for node in (0, 0, 1, 1):
            mics.add(numa_node=node)
        return served(kubelet.root)


def started(kubelet: Kubelet, pod: Pod) -> ContainerConfig | str:
    """What the pod's container was started with, or why it was not."""
    try:
        return kubelet.start_container(pod)
    except CreateContainerConfigError as error:
        return str(error)


def driven(mics: SimulatedMics) -> type[Mic]:
    """The plugin, and a driver that works whenever the plugin waits for it."""

    def wait(host: Host, paths: Sequence[str], seconds: float) -> None:
        wait_for_change(host, paths, min(seconds, 0.01))
        mics.step()

    class Driven(Mic):
        def __init__(self, config: MicConfig, host: Host) -> None:
            super().__init__(config, host, wait=wait)

    return Driven


def test_each_start_gets_a_card_that_was_reset(kubelet: Kubelet) -> None:
    mics = SimulatedMics(SimulatedHost(kubelet.root), "kernel", reset=0.05, boot=0.1)
    card = mics.add()
    with served(kubelet.root, driven(mics), prepare="reset", prepareTimeout=10):
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        config = kubelet.start_container(pod)
        assert config.environ["OFFLOAD_DEVICES"] == "0"
        assert card.word == "online"
        kubelet.restart_container(pod)
        assert [command for _, command in mics.commands] == ["reset", "boot"] * 2
        assert mics.refused == []
        kubelet.wait_for(RESOURCE, healthy=1)


def test_a_start_that_has_no_time_for_it_fails_and_a_later_one_goes_on(kubelet: Kubelet) -> None:
    mics = SimulatedMics(SimulatedHost(kubelet.root), "kernel", reset=0.3, boot=0.3)
    mics.add()
    with served(kubelet.root, driven(mics), prepare="reset", prepareTimeout=0.25):
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        failures = 0
        while isinstance(said := started(kubelet, pod), str):
            assert "and not online after 0.25 s; the kubelet tries again" in said
            failures += 1
            mics.step()
        assert 2 <= failures <= 4
        assert [command for _, command in mics.commands] == ["reset", "boot"]


class Story:
    """A node and what is believed of it. A card's number changes with each reboot; what a pod was told does not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stack = ExitStack()
        self.root = tempfile.mkdtemp(prefix="mic-", dir="/tmp")
        self.stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.kubelet = Kubelet(self.root, seed=seed, patience=5.0)
        self.kubelet.start()
        self.stack.callback(self.kubelet.stop)
        self.machine = SimulatedHost(self.root)
        self.mics = SimulatedMics(self.machine, "mpss3")
        for _ in range(4):
            self.mics.add()
        self.cards = {f"mic-{card.serial.lower()}": card for card in self.mics.cards}
        self.told: dict[str, dict[str, int | None]] = {}
        self.pods: list[Pod] = []
        self.began = 0
        self.daemon = ExitStack()
        self.serve()

    def serve(self) -> None:
        self.daemon.close()
        self.daemon = ExitStack()
        self.daemon.enter_context(served(self.root, prepareTimeout=0.1))
        self.settle()

    def close(self) -> None:
        self.daemon.close()
        self.stack.close()

    def well(self) -> set[str]:
        return {name for name, card in self.cards.items() if card.word == "online"}

    def settle(self) -> None:
        """Waits until the kubelet knows what the hardware is."""
        self.machine.write("/dev/mic/poke")  # a change that is watched: the plugin looks
        os.unlink(self.machine.path("/dev/mic/poke"))
        self.kubelet.wait_until(lambda: self.kubelet.healthy(RESOURCE) == self.well(), f"{self.well()} to be healthy", timeout=5.0)

    # What may happen

    def admit(self) -> None:
        self.began += 1
        pod = Pod.requesting(RESOURCE, self.random.randint(1, 2), name=f"pod-{self.began}")
        taken = {name for one in self.pods for name in self.kubelet.held(one)}
        free = self.well() - taken
        admission = self.kubelet.admit(pod)
        assert admission.ok == (len(free) >= pod.containers[0].limits[RESOURCE]), admission.message
        if not admission.ok:
            self.kubelet.delete_pod(pod)
            return
        self.pods.append(pod)
        self.told[pod.uid] = {name: self.cards[name].number for name in self.kubelet.held(pod)}
        self.start(pod)

    def start(self, pod: Pod) -> None:
        """A container starts: with the numbers that its cards have now, or not at all."""
        held = self.kubelet.held(pod)
        self.kubelet.stop_container(pod)
        config = started(self.kubelet, pod)
        if isinstance(config, str):
            moved = any(self.cards[name].number != number for name, number in self.told[pod.uid].items())
            assert ("was told of" in config and moved) or ("not online" in config and held - self.well()), config
            return
        numbers = sorted(number for name in held if (number := self.cards[name].number) is not None)
        assert config.environ["OFFLOAD_DEVICES"] == ",".join(map(str, numbers))
        assert config.environ["XEON_PHI_SCIF_NODES"] == ",".join(str(number + 1) for number in numbers)
        assert [device.host_path for device in config.devices] == ["/dev/mic/scif"]

    def delete(self) -> None:
        if self.pods:
            pod = self.pods.pop(self.random.randrange(len(self.pods)))
            self.kubelet.delete_pod(pod)
            del self.told[pod.uid]

    def restart_container(self) -> None:
        if self.pods:
            self.start(self.random.choice(self.pods))

    def restart_kubelet(self) -> None:
        self.kubelet.restart(readmit=False)
        self.settle()
        self.readmit()

    def restart_daemon(self) -> None:
        self.daemon.close()
        self.kubelet.wait_gone(RESOURCE)
        self.serve()

    def reboot(self) -> None:
        self.daemon.close()
        self.kubelet.reboot(readmit=False)
        numbers = list(range(4))
        self.random.shuffle(numbers)
        self.mics.renumber(*numbers)
        self.serve()
        self.readmit()
        for pod in self.pods:
            self.start(pod)

    def readmit(self) -> None:
        answers = self.kubelet.readmit()
        for pod in tuple(self.pods):
            if not answers[pod.uid].ok:
                self.kubelet.delete_pod(pod)
                self.pods.remove(pod)
                del self.told[pod.uid]

    def fail(self) -> None:
        self.mics.set(self.card(), self.random.choice(["lost", "no response", "resetting", "reset failed", "ready"]))
        self.settle()

    def mend(self) -> None:
        self.mics.set(self.card(), "online")
        self.settle()

    def card(self) -> SimulatedMic:
        return self.random.choice(self.mics.cards)

    # What must hold

    def check(self) -> None:
        held = [name for pod in self.pods for name in self.kubelet.held(pod)]
        assert len(held) == len(set(held)), "a card is held twice"
        assert set(held) <= set(self.cards), "something is held that is no card"
        assert set(held).isdisjoint(self.kubelet.healthy(RESOURCE) - self.kubelet.allocated(RESOURCE)), "what is held is advertised as free"
        assert (self.mics.commands, self.mics.refused) == ([], []), "a card was told something"

    def drained(self) -> None:
        """With all pods gone and all cards well, everything is free: nothing has leaked."""
        while self.pods:
            self.delete()
        for card in self.mics.cards:
            self.mics.set(card, "online")
        self.settle()
        everything = Pod.requesting(RESOURCE, len(self.cards), name="everything")
        admission = self.kubelet.admit(everything)
        assert admission.ok, admission.message
        assert self.kubelet.held(everything) == set(self.cards)
        self.kubelet.delete_pod(everything)


ACTIONS = [*["admit"] * 5, *["delete"] * 3, *["restart_container"] * 2, "restart_kubelet", "restart_daemon", "reboot", "fail", "mend"]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_whatever_happens_no_card_is_held_twice_and_none_is_lost(batch: int) -> None:
    """Each sequence ends with a node that is as new, on which the next begins."""
    story = Story(batch)
    done: list[str] = []
    try:
        for _ in range(SEQUENCES // BATCHES):
            for _ in range(STEPS):
                done.append(story.random.choice(ACTIONS))
                getattr(story, done[-1])()
                story.check()
            story.drained()
    except Exception as error:
        error.add_note(f"seed {batch}: {' '.join(done)}\n{re.sub('^', '  ', story.kubelet.events.last(20), flags=re.M)}")
        raise
    finally:
        story.close()
