# SPDX-License-Identifier: Apache-2.0
"""Cache slots through the kubelet: pods come and go, containers, the plugin, the kubelet and the node restart, and after each step all is in order.

The runtime is played here: it looks the CDI name up when a container is created, and puts the process into the group that it finds there.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deviceplugin import Allocation, Device, Host, Plugin, Verdict
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.plugins.llc import Llc, LlcConfig
from deviceplugin.plugins.llc.naming import group_of, ids_of, key_of, key_of_group, slots_of, slots_of_key
from deviceplugin.testing import Container, CreateContainerConfigError, Kubelet, PluginConformance, Pod
from deviceplugin.testing.resctrl import SCENARIOS, Scenario
from tests.helpers.llc import RESOURCE, Node, look, masks

SEQUENCES = 8
STEPS = 8


class Site:
    """A kubelet, a node and the plugin. ``cells`` are the processes of containers that run, by pod uid and container."""

    def __init__(self, kubelet: Kubelet, node: Node) -> None:
        self.kubelet = kubelet
        self.node = node
        self.pods: dict[str, Pod] = {}
        self.cells: dict[tuple[str, str], int] = {}
        self.stack = contextlib.ExitStack()
        self.plugin = self.node.plugin()
        self.start()

    def start(self) -> None:
        """The plugin, as a daemon serves it; a test calls reconcile() itself, when its time has come."""
        site = self

        class Served(Llc):
            reconcile = Plugin.reconcile  # type: ignore[assignment]

            def __init__(self, config: LlcConfig | None = None, host: Host | None = None) -> None:
                super().__init__(site.node.config, host, files=site.node.files, clock=lambda: site.node.now)
                site.plugin = self

        plan = make_plan(Settings(version="v1", plugins=[PluginSettings(plugin="llc")], listen=""), Host(self.kubelet.root), {"llc": Served})
        self.daemon = Daemon(plan, Paths.below(self.kubelet.root), Host(self.kubelet.root))
        self.daemon.start()
        self.stack.callback(self.daemon.stop)
        if self.kubelet.running:
            self.seen()

    def restart_plugin(self) -> None:
        self.stack.close()
        self.kubelet.wait_gone(RESOURCE)
        self.start()

    def reboot(self) -> None:
        self.kubelet.stop()
        self.stack.close()
        self.node.reboot()
        self.cells.clear()
        self.kubelet.reboot(readmit=False)
        self.start()
        answers = self.kubelet.readmit()
        assert all(answers[uid] for uid in self.pods), answers

    def seen(self) -> dict[str, Device]:
        """Waits until the kubelet has the list as it should be now."""
        devices = look(self.plugin)
        healthy = {id_ for id_, one in devices.items() if one.health.value == "healthy"}
        self.daemon.scanners["llc"].wake()
        self.kubelet.wait_until(lambda: self.kubelet.healthy(RESOURCE) == healthy, f"{len(healthy)} healthy slots", timeout=5)
        return devices

    def held(self) -> dict[tuple[str, str], set[str]]:
        """What each container holds, ordinary init containers among them."""
        found = {}
        for uid, pod in self.pods.items():
            for container in pod.all_containers():
                if ids := self.kubelet.held(pod, container.name, RESOURCE):
                    found[uid, container.name] = ids
        return found

    def reconcile(self) -> list[Verdict]:
        """As the daemon does: with what the kubelet lists, so without ordinary init containers."""
        devices = look(self.plugin)
        listed = []
        for (uid, name), ids in sorted(self.held().items()):
            pod = self.pods[uid]
            if name in {one.name for one in pod.containers}:
                listed.append(Allocation("default", pod.name, name, RESOURCE, tuple(devices[id_] for id_ in sorted(ids))))
        return list(Llc.reconcile(self.plugin, listed))

    def collect(self) -> None:
        """Two minutes and more go by."""
        for _ in range(3):
            self.node.now += 130
            self.reconcile()

    def admit(self, pod: Pod) -> bool:
        self.kubelet.node_status()
        answer = self.kubelet.admit(pod)
        if answer:
            self.pods[pod.uid] = pod
        return bool(answer)

    def run(self, pod: Pod, name: str) -> None:
        """Creates a container; one that runs is ended first. An ordinary init container ends at once."""
        init = name in {one.name for one in pod.init_containers}
        if pid := self.cells.pop((pod.uid, name), 0):
            self.node.end(pid)
            config = self.kubelet.restart_container(pod, name)
        else:
            config = self.kubelet.start_container(pod, name)
        (cdi,) = config.cdi_devices
        group = self.node.cdi()[cdi]
        assert group == config.environ["KDP_LLC_GROUP"]
        pid = self.node.process(pod.name, name, config.environ, group=group, cgroup=f"/kubepods/pod{pod.uid}/{name}")
        if init:
            self.node.end(pid)
        else:
            self.cells[pod.uid, name] = pid

    def delete(self, pod: Pod) -> None:
        for key in [key for key in self.cells if key[0] == pod.uid]:
            self.node.end(self.cells.pop(key))
        self.kubelet.delete_pod(pod)
        del self.pods[pod.uid]

    def check(self) -> None:
        """What must hold after each step."""
        node = self.node
        caches = self.plugin._view.places.caches if self.plugin._view else {}
        held = self.held()
        counted = [id_ for uid in self.pods for id_ in set().union(*(ids for (of, _), ids in held.items() if of == uid))]
        assert len(counted) == len(set(counted)), "two pods hold one slot"
        assert set(counted) <= self.kubelet.allocated(RESOURCE)
        for key, pid in self.cells.items():
            group = group_of(key_of(slots_of(held[key])))
            assert node.group_of(pid) == group, f"{key} runs outside its group"
        taken = dict.fromkeys(caches, 0)
        for name in node.groups:
            slots = slots_of_group(name)
            if node.sim.read(f"{name}/tasks"):
                assert set(ids_of_group(name)) <= set(counted), f"{name} runs on slots that are free"
            for cache, mask in masks(node.sim, name).items():
                if cache in slots:
                    assert mask.bit_count() == slots[cache].bit_count() * caches[cache].ways_per_slot
                    assert not mask & ~caches[cache].pool
                    assert not mask & taken[cache], "two containers share a way"
                    taken[cache] |= mask
                else:
                    assert mask == caches[cache].shared
        assert masks(node.sim) == {id_: cache.shared for id_, cache in caches.items()}, "the root group has ways of slots"
        for verdict in self.reconcile():
            assert verdict.enforced is not False, verdict.detail
            running = any(self.pods[uid].name == verdict.allocation.pod and name == verdict.allocation.container for uid, name in self.cells)
            assert running == (verdict.enforced is True), verdict


def slots_of_group(name: str) -> dict[int, int]:
    return slots_of_key(key_of_group(name) or "") or {}


def ids_of_group(name: str) -> list[str]:
    return ids_of(slots_of_group(name))


@contextlib.contextmanager
def site(scenario: str | Scenario, kubelet: Kubelet, **config: object) -> Iterator[Site]:
    one = Site(kubelet, Node(kubelet.root, scenario, has_kubelet=True, mode="reserve", **config))
    try:
        yield one
    finally:
        one.stack.close()


def step(one: Site, chance: random.Random) -> str:
    what = chance.choices(["admit", "start", "delete", "again", "plugin", "kubelet", "reboot", "wipe"], [8, 6, 4, 3, 2, 1, 1, 1])[0]
    if what == "admit":
        size, init = chance.randint(1, 4), chance.choice([0, 0, 0, 1, 2, 5])
        number = chance.randrange(1 << 30)
        pod = Pod(
            f"pod-{number}",
            (Container("main", {RESOURCE: size}),),
            (Container("init", {RESOURCE: init}),) if init else (),
        )
        one.seen()
        room = len(one.kubelet.healthy(RESOURCE) - one.kubelet.allocated(RESOURCE))
        free = one.plugin._control.look().free_groups
        admitted = one.admit(pod)
        if free >= 2 and room >= max(size, init):
            assert admitted, "slots and groups are free, and the pod was refused"
    elif what in ("start", "again", "delete") and one.pods:
        pod = chance.choice(sorted(one.pods.values(), key=lambda pod: pod.uid))
        if what == "delete":
            one.delete(pod)
        elif what == "start" and (pod.uid, "main") not in one.cells:
            for container in pod.all_containers():
                one.run(pod, container.name)
        elif what == "again" and (pod.uid, "main") in one.cells:
            one.run(pod, "main")
    elif what == "plugin":
        one.restart_plugin()
    elif what == "kubelet":
        waiting = [uid for uid in one.pods if (uid, "main") not in one.cells]
        one.kubelet.restart(readmit=False)
        one.seen()
        answers = one.kubelet.readmit()
        assert all(answers[uid] for uid in one.pods), (answers, waiting)
    elif what == "reboot":
        one.reboot()
    elif what == "wipe":  # as containerd does when it has an RDT configuration of its own
        for name in one.node.groups:
            one.node.sim.rmdir(name)
        one.reconcile()
        one.node.now += 6
        one.reconcile()
    return what


@pytest.mark.parametrize("number", range(25))
def test_two_hundred_sequences(number: int) -> None:
    root = tempfile.mkdtemp(prefix="llc-", dir="/tmp")
    chance = random.Random(number)
    scenario = SCENARIOS[("skylake", "spr20", "haswell", "cdp", "amd")[number % 5]]
    scenario = replace(scenario, caches=scenario.caches[:4])
    try:
        with Kubelet(root, seed=number) as kubelet, site(scenario, kubelet, memoryBandwidth=5) as one:
            for _ in range(SEQUENCES):
                done = []
                try:
                    for _ in range(STEPS):
                        done.append(step(one, chance))
                        one.check()
                    for pod in list(one.pods.values()):
                        one.delete(pod)
                    one.collect()
                    assert one.node.groups == [], "a group has leaked"
                    assert one.node.cdi() == {}
                    assert {device.health.value for device in one.seen().values()} == {"healthy"}
                except BaseException as error:
                    error.add_note(f"after {', '.join(done)}")
                    raise
    finally:
        shutil.rmtree(root, ignore_errors=True)


def test_reboot_calls_prepare_alone(kubelet: Kubelet) -> None:
    with site("skylake", kubelet) as one:
        pod = Pod.requesting(RESOURCE, 3)
        assert one.admit(pod)
        one.run(pod, "main")
        before = one.node.groups
        one.reboot()
        assert one.node.groups == []
        since = len(kubelet.events)
        one.run(pod, "main")
        assert one.node.groups == before
        assert not kubelet.events.of("allocate", since=since)
        one.check()


def test_container_does_not_start_while_its_group_cannot_be_made(kubelet: Kubelet) -> None:
    with site("haswell", kubelet) as one:
        pod = Pod.requesting(RESOURCE, 1)
        assert one.admit(pod)
        for name in ("a", "b", "c"):
            one.node.sim.mkdir(name)
            one.node.sim.write(f"{name}/schemata", b"L3:0=f0000;1=f0000\n")
        with pytest.raises(CreateContainerConfigError, match="Out of CLOSIDs"):
            one.run(pod, "main")
        one.node.sim.rmdir("b")
        one.run(pod, "main")
        one.check()


def test_pod_beyond_the_cpus_groups_is_not_placed_here(kubelet: Kubelet) -> None:
    with site("haswell", kubelet) as one:
        for number in range(3):
            assert one.admit(Pod.requesting(RESOURCE, 1, name=f"p{number}"))
        one.seen()
        assert kubelet.allocatable(RESOURCE) == 3
        assert not one.admit(Pod.requesting(RESOURCE, 1, name="late"))
        for pod in list(one.pods.values()):
            one.delete(pod)
        one.collect()
        one.seen()
        assert kubelet.allocatable(RESOURCE) == 16


@pytest.mark.parametrize("policy", ["none", "single-numa-node"])
def test_slots_of_one_pod_are_of_one_cache(short_root: str, policy: str) -> None:
    with Kubelet(short_root, numa=2, topology_policy=policy) as kubelet, site("skylake", kubelet) as one:  # type: ignore[arg-type]
        for number in range(4):
            pod = Pod.requesting(RESOURCE, 3, name=f"p{number}")
            assert one.admit(pod)
            assert len(slots_of(kubelet.held(pod))) == 1
            one.run(pod, "main")
            one.check()


class TestConformance(PluginConformance):
    resource = RESOURCE

    @contextlib.contextmanager
    def serving(self, kubelet: Kubelet) -> Iterator[Site]:
        with site("spr20", kubelet) as one:
            yield one
