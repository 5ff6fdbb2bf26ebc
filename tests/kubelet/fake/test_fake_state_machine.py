# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import tempfile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Container, Kubelet, Pod
from tests.kubelet.fake.scripted import RESOURCE, Scripted, healthy, unhealthy

IDS = [f"d{n}" for n in range(6)]


def asking(name: str, count: int, *, restartable: bool = False) -> Container:
    return Container(name, {RESOURCE: count} if count else {}, restartable=restartable)


class Node(RuleBasedStateMachine):
    """Pods come and go, devices fall ill and recover, the plugin and the kubelet restart: no device ever has two pods."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="node-", dir="/tmp")
        self.pods: list[Pod] = []
        self.plugin: Scripted | None = None
        self.ill: frozenset[str] = frozenset()

    @initialize(seed=st.integers(0, 9), semantics=st.sampled_from(["v136", "post136"]), prefers=st.booleans())
    def begin(self, seed: int, semantics: str, prefers: bool) -> None:
        self.kubelet = Kubelet(self.root, seed=seed, semantics=semantics).start()  # type: ignore[arg-type]
        self.prefers = prefers
        self.plugin_up()

    def teardown(self) -> None:
        self.kubelet.stop()
        if self.plugin:
            self.plugin.stop()
        shutil.rmtree(self.root)

    def listed(self) -> list[pb.Device]:
        return [*healthy(*(set(IDS) - self.ill)), *unhealthy(*self.ill)]

    @precondition(lambda self: self.plugin is None)
    @rule()
    def plugin_up(self) -> None:
        mark = len(self.kubelet.events)
        self.plugin = Scripted(self.kubelet, self.listed())
        self.plugin.options = lambda: pb.DevicePluginOptions(get_preferred_allocation_available=self.prefers)
        self.plugin.prefer = lambda available, required, size: (required + sorted(set(available) - set(required)))[:size]
        self.plugin.register()
        self.kubelet.wait_for_event("list", RESOURCE, since=mark)

    @precondition(lambda self: self.plugin is not None)
    @rule()
    def plugin_down(self) -> None:
        assert self.plugin
        self.plugin.stop()
        self.plugin = None
        self.kubelet.wait_for(RESOURCE, healthy=0)

    @precondition(lambda self: self.plugin is not None)
    @rule(ill=st.frozensets(st.sampled_from(IDS), max_size=4))
    def health_changes(self, ill: frozenset[str]) -> None:
        assert self.plugin
        mark = len(self.kubelet.events)
        self.ill = ill
        self.plugin.relist(self.listed())
        self.kubelet.wait_for_event("list", RESOURCE, since=mark)

    @rule(init=st.integers(0, 3), sidecar=st.integers(0, 1), counts=st.lists(st.integers(1, 3), min_size=1, max_size=2))
    def pod_comes(self, init: int, sidecar: int, counts: list[int]) -> None:
        pod = Pod(
            name=f"pod-{len(self.pods)}",
            init_containers=(
                Container("init", {RESOURCE: init} if init else {}),
                Container("side", {RESOURCE: sidecar} if sidecar else {}, restartable=True),
            ),
            containers=tuple(Container(f"c{n}", {RESOURCE: count}) for n, count in enumerate(counts)),
        )
        free = self.kubelet.healthy(RESOURCE) - set().union(*(self.devices_of(other) for other in self.pods))
        admission = self.kubelet.admit(pod)
        if admission:
            self.pods.append(pod)
            for container in pod.all_containers():
                self.kubelet.start_container(pod, container.name)
        else:
            self.kubelet.delete_pod(pod)
            assert len(free) < max(init, sidecar + sum(counts)) + sidecar, f"{len(free)} devices were free: {admission.message}"

    @precondition(lambda self: self.pods)
    @rule(which=st.integers(0, 99))
    def pod_goes(self, which: int) -> None:
        self.kubelet.delete_pod(self.pods.pop(which % len(self.pods)))

    @rule(kept=st.booleans())
    def kubelet_restarts(self, kept: bool) -> None:
        if self.plugin:
            self.plugin.stop()
            self.plugin = None
        if kept:
            self.kubelet.restart()
        else:
            self.kubelet.reboot()
        self.pods = [pod for pod in self.pods if self.kubelet.admit(pod)]

    def devices_of(self, pod: Pod) -> set[str]:
        return set().union(*(self.kubelet.held(pod, container.name) for container in pod.all_containers()))

    @invariant()
    def no_device_has_two_pods(self) -> None:
        held = [self.devices_of(pod) for pod in self.pods]
        assert len(set().union(*held)) == sum(map(len, held))

    @invariant()
    def each_container_has_what_it_asked_for_and_shares_nothing_with_its_peers(self) -> None:
        for pod in self.pods:
            for container in pod.all_containers():
                assert len(self.kubelet.held(pod, container.name)) == container.limits.get(RESOURCE, 0)
            lasting = [self.kubelet.held(pod, c.name) for c in pod.all_containers() if c.restartable or c in pod.containers]
            assert len(set().union(*lasting)) == sum(map(len, lasting))


Node.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
TestNode = Node.TestCase
