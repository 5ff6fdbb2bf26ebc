# SPDX-License-Identifier: Apache-2.0
"""Slots of parallel file systems under a kubelet: whatever happens, nobody shares a slot, and no mount is lost or left."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from deviceplugin import Host
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet import podresources
from deviceplugin.kubelet.paths import Paths
from deviceplugin.observe import report, status, survey
from deviceplugin.observe.tables import Screen
from deviceplugin.plugins.pfs import Pfs, PfsConfig
from deviceplugin.testing import Kubelet, PluginConformance, Pod, SimulatedHost
from deviceplugin.testing.pfs import SimulatedPfs
from tests.helpers.core import Clock
from tests.kubelet.serving import wait_until

RESOURCE = "example.com/pfs-scratch"
DIRECTORY = "/var/lib/deviceplugin/pfs/scratch/"
IN_FLIGHT = 2
PRIVATE = {"name": "scratch", "type": "lustre", "tier": "T3", "privateMount": {"source": "10.0.0.1@tcp:/scratch", "inFlight": IN_FLIGHT}}
TAGGED = {
    "name": "scratch",
    "type": "lustre",
    "tier": "T1",
    "mountPoint": "/mnt/scratch",
    "bandwidthPerSlot": "1G",
    "servers": {"oss": 8, "cpts": 2},
}


class Node:
    """A kubelet, the clients of a parallel file system, and our daemon, each of which may go down and come back."""

    def __init__(self, kubelet: Kubelet, filesystem: dict[str, Any]) -> None:
        self.kubelet = kubelet
        self.host = SimulatedHost(kubelet.root)
        self.pfs = SimulatedPfs(self.host)
        self.pfs.mount("lustre", "10.0.0.1@tcp:/scratch", "/mnt/scratch")
        self.filesystem = filesystem
        self.clock = Clock()
        """Of the plugin, for how long ago a slot was used."""
        self.daemon = self._daemon()
        self.pods: dict[str, tuple[Pod, int]] = {}
        """Pods whose container runs, and its process."""
        self.pids = iter(range(5000, 100_000))

    def settings(self) -> Settings:
        config = {"domain": "example.com", "filesystems": [self.filesystem]}
        return Settings(version="v1", plugins=[PluginSettings(plugin="pfs", config=config)], listen="")

    def plan(self) -> Any:
        pfs, clock = self.pfs, self.clock

        class Simulated(Pfs):
            def __init__(self, config: PfsConfig | None = None, host: Host | None = None) -> None:
                super().__init__(config, host, pfs, clock)

        return make_plan(self.settings(), Host(self.kubelet.root, "node1"), {"pfs": Simulated})

    def _daemon(self) -> Daemon:
        return Daemon(self.plan(), Paths.below(self.kubelet.root), Host(self.kubelet.root, "node1"))

    def start(self, healthy: int) -> None:
        self.daemon = self._daemon()
        self.daemon.start()
        self.kubelet.wait_for(RESOURCE, healthy=healthy)

    def restart(self, healthy: int) -> None:
        self.daemon.stop()
        self.kubelet.wait_gone(RESOURCE)
        self.start(healthy)

    def reboot(self, healthy: int) -> None:
        """Mounts and processes are gone; what is on disk is not."""
        self.daemon.stop()
        for _, pid in self.pods.values():
            self.pfs.end(pid)
        for target in self.pfs.mounted(DIRECTORY):
            self.pfs.unmount(target)
        self.kubelet.reboot(readmit=False)
        self.start(healthy)
        self.kubelet.readmit()
        for uid, (pod, _) in list(self.pods.items()):
            self.pods[uid] = (pod, self._run(pod))

    def admit(self, count: int) -> bool:
        pod = Pod.requesting(RESOURCE, count, name=f"pod{next(self.pids)}")
        if not self.kubelet.admit(pod):
            return False
        self.pods[pod.uid] = (pod, self._run(pod))
        return True

    def _run(self, pod: Pod) -> int:
        pid = next(self.pids)
        self.pfs.start(pid, self.kubelet.start_container(pod))
        return pid

    def again(self, uid: str) -> None:
        """The container crashes and is started again."""
        pod, pid = self.pods[uid]
        self.pfs.end(pid)
        pid = next(self.pids)
        self.pfs.start(pid, self.kubelet.restart_container(pod))
        self.pods[uid] = (pod, pid)

    def delete(self, uid: str) -> None:
        pod, pid = self.pods.pop(uid)
        self.pfs.end(pid)
        self.kubelet.delete_pod(pod)

    def held(self) -> dict[str, list[int]]:
        """The slots of each pod that runs, from the lowest."""
        return {uid: sorted(int(one.rpartition(".")[2]) for one in self.kubelet.held(pod)) for uid, (pod, _) in self.pods.items()}

    def check(self) -> None:
        """What must be so at every moment."""
        held = self.held()
        everything = [slot for slots in held.values() for slot in slots]
        assert len(everything) == len(set(everything)), "two containers hold one slot"
        given = self.kubelet.allocated(RESOURCE)
        assert {f"pfs.scratch.{slot:02}" for slot in everything} <= given, "what a pod holds is advertised as free"
        assert {f"pfs.scratch.{slot:02}" for slot in everything} <= set(self.kubelet.devices(RESOURCE)), "a slot that is held is not listed"
        if self.filesystem["tier"] != "T3":
            return
        mounted = self.pfs.mounted(DIRECTORY)
        for uid, slots in held.items():
            target = f"{DIRECTORY}slot-{slots[0]:02}"
            assert target in mounted, "a container's mount is gone"
            assert self.pfs.settings(mounted[target], "max_rpcs_in_flight") == {str(IN_FLIGHT * len(slots))}
            (seen,) = [line.split(" ")[2] for line in self.host.read(f"/proc/{self.pods[uid][1]}/mountinfo").splitlines() if " /pfs/scratch " in line]
            assert seen == mounted[target], "the container has another mount than its slots'"

    def settle(self) -> None:
        """Waits until only what is held is mounted, and all that is held is enforced."""
        lowest = {f"{DIRECTORY}slot-{slots[0]:02}" for slots in self.held().values()} if self.filesystem["tier"] == "T3" else set()
        holders = sum(len(slots) for slots in self.held().values())

        def enforced() -> int:
            return sum(one.enforced is True for resource in status.take(self.daemon).resources for one in resource.devices)

        def settled() -> bool:
            self.clock.advance(61)
            self.daemon.podresources.refresh()
            return set(self.pfs.mounted(DIRECTORY)) == lowest and enforced() == holders

        wait_until(settled, "the node to settle", describe=lambda: f"{self.pfs.mounted(DIRECTORY)} {lowest} {enforced()} of {holders}")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon asks who holds what as soon as something happened."""
    monkeypatch.setattr(podresources, "SETTLE", 0.01)


@contextmanager
def serving(kubelet: Kubelet, filesystem: dict[str, Any], slots: int) -> Iterator[Node]:
    node = Node(kubelet, {**filesystem, "slots": slots})
    node.daemon.start()
    try:
        if kubelet.running:
            kubelet.wait_for(RESOURCE, healthy=slots)
        yield node
    finally:
        node.daemon.stop()


@pytest.mark.parametrize("filesystem", [PRIVATE, TAGGED], ids=["private", "tagged"])
@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_pods_restarts_and_reboots(short_root: str, filesystem: dict[str, Any], seed: int) -> None:
    """Five sequences each: 200 in all."""
    choose = random.Random(seed)
    with Kubelet(short_root, seed=seed) as kubelet, serving(kubelet, filesystem, 6) as node:
        for _ in range(5):
            for _ in range(choose.randrange(3, 8)):
                step = choose.choices(["admit", "delete", "again", "restart", "kubelet", "reboot"], [8, 5, 4, 1, 1, 1])[0]
                uid = choose.choice(sorted(node.pods)) if node.pods else ""
                if step == "admit":
                    count = choose.randrange(1, 4)
                    free = 6 - sum(len(slots) for slots in node.held().values())
                    assert node.admit(count) is (count <= free)
                elif step == "delete" and uid:
                    node.delete(uid)
                elif step == "again" and uid:
                    node.again(uid)
                elif step == "restart":
                    node.restart(6)
                elif step == "kubelet":
                    kubelet.restart(readmit=False)
                    kubelet.wait_for(RESOURCE, healthy=6)
                    kubelet.readmit()
                elif step == "reboot":
                    node.reboot(6)
                node.check()
            for uid in list(node.pods):
                if choose.random() < 0.7:
                    node.delete(uid)
            node.settle()
            node.check()
        for uid in list(node.pods):
            node.delete(uid)
        node.settle()
        assert node.pfs.mounted(DIRECTORY) == {}


def test_a_controller_takes_slots_away_and_pods_keep_theirs(kubelet: Kubelet) -> None:
    node = Node(kubelet, {**PRIVATE, "slotsFile": "/etc/pfs/slots"})
    node.host.write("/etc/pfs/slots", "4")
    node.start(4)
    try:
        assert node.admit(2)
        node.settle()
        node.host.write("/etc/pfs/slots", "1")
        node.settle()
        kubelet.wait_for(RESOURCE, healthy=2)
        node.check()
        assert not node.admit(1)
        node.restart(2)
        node.check()
        for uid in list(node.pods):
            node.delete(uid)
        node.settle()
        kubelet.wait_for(RESOURCE, healthy=1)
        node.host.write("/etc/pfs/slots", "3")
        kubelet.wait_for(RESOURCE, healthy=3)
    finally:
        node.daemon.stop()


def test_health_reaches_the_kubelet_in_both_directions(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deviceplugin.plugins.pfs.LOOK_AGAIN", 0.05)
    with serving(kubelet, TAGGED, 2) as node:
        node.pfs.unmount("/mnt/scratch")
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=2)
        node.pfs.mount("lustre", "10.0.0.1@tcp:/scratch", "/mnt/scratch")
        kubelet.wait_for(RESOURCE, healthy=2, unhealthy=0)


def test_a_pod_that_sets_its_own_tag_is_shown_as_not_enforced(kubelet: Kubelet) -> None:
    with serving(kubelet, TAGGED, 1) as node:
        from deviceplugin.testing import Container

        pod = Pod("liar", (Container(limits={RESOURCE: 1}, envs={"KDP_PFS_JOBID": "kdp9.node1.0"}),))
        assert kubelet.admit(pod)
        node.pfs.start(77, kubelet.start_container(pod))

        def shown() -> str:
            node.daemon.podresources.refresh()
            stream = io.StringIO()
            report.show_daemons(Screen(stream, terminal=False), [status.take(node.daemon)])
            return stream.getvalue()

        wait_until(
            lambda: "tagged: NOT ENFORCED: process 77 runs with KDP_PFS_JOBID='kdp9.node1.0', not kdp1.node1.0: its pod sets it" in shown(), "verdict"
        )


def test_check_prints_the_rules_for_the_servers(kubelet: Kubelet) -> None:
    node = Node(kubelet, {**TAGGED, "slots": 2})
    found = survey.survey(node.plan())
    stream = io.StringIO()
    report.show_survey(Screen(stream, terminal=False), found)
    assert found.ok
    assert [one.plugin for one in found.advice] == ["pfs"]
    assert '      lctl set_param ost.OSS.ost_io.nrs_tbf_rule="start kdp_2 jobid={kdp2.*} rate=29"' in stream.getvalue().splitlines()


class TestConformance(PluginConformance):
    resource = RESOURCE

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        return serving(kubelet, PRIVATE, 4)
