# SPDX-License-Identifier: Apache-2.0
"""Pods ask for devices: what is chosen, what they get, and what happens when the same devices are asked for again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import pytest

from deviceplugin import Device, DeviceNode, Edits, Mount
from deviceplugin.config import ResourceSettings
from deviceplugin.inventory import REPLICA
from deviceplugin.testing import Container, CreateContainerConfigError, Kubelet, Pod, plugin_calls
from deviceplugin.testing.rpc import RpcFailed
from deviceplugin.testing.settings import Policy
from tests.kubelet.serving import RESOURCE, Rack, serving, wait_until


def name_them(_self: object, devices: Sequence[Device]) -> Edits:
    return Edits(envs={"IDS": ",".join(device.id for device in devices)})


def test_container_gets_what_its_devices_carry(kubelet: Kubelet) -> None:
    rack = Rack(
        Device(
            "a",
            nodes=[DeviceNode("/dev/a", "/dev/card0", "rwm")],
            mounts=[Mount("/etc/a", "/etc/card")],
            envs={"CARD": "a"},
            annotations={"vendor.example/card": "a"},
            cdi=["vendor.example/card=a"],
        )
    )
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod(containers=(Container("main", {RESOURCE: 1}, envs={"CARD": "mine"}),))
        assert kubelet.admit(pod)
        config = kubelet.start_container(pod)
    assert [(d.host_path, d.container_path, d.permissions) for d in config.devices] == [("/dev/a", "/dev/card0", "rwm")]
    assert [(m.host_path, m.container_path, m.read_only) for m in config.mounts] == [("/etc/a", "/etc/card", True)]
    assert config.annotations["vendor.example/card"] == "a"
    assert config.cdi_devices == ("vendor.example/card=a",)
    assert config.envs == (("CARD", "a"), ("CARD", "mine")), "the pod's own variable wins: a variable protects nothing"


def test_plugin_that_has_nothing_to_add_still_answers_each_container(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a", "b", allocate=lambda _self, _devices: Edits())):
        kubelet.wait_for(RESOURCE, healthy=2)
        assert kubelet.admit(Pod.requesting(RESOURCE))
        assert len(plugin_calls.allocate(kubelet, RESOURCE, [["a"], ["b"], ["a", "b"]])) == 3


def test_order_of_the_ids_makes_no_difference(kubelet: Kubelet) -> None:
    ids = [f"d{n}" for n in range(6)]
    with serving(kubelet, Rack(*ids, allocate=name_them)):
        kubelet.wait_for(RESOURCE, healthy=6)
        answers = [plugin_calls.allocate(kubelet, RESOURCE, [order])[0] for order in (ids, ids[::-1], [*ids[3:], *ids[:3]])]
    assert {answer.envs["IDS"] for answer in answers} == {",".join(ids)}
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1


def test_devices_that_are_held_already_are_given_again(either: Kubelet) -> None:
    """A container that is resized or made again asks for what it holds."""
    with serving(either, Rack("a", "b", allocate=name_them)):
        either.wait_for(RESOURCE, healthy=2)
        pod = Pod.requesting(RESOURCE, 2)
        assert either.admit(pod)
        first = plugin_calls.allocate(either, RESOURCE, [["a", "b"]])
        assert plugin_calls.allocate(either, RESOURCE, [["b", "a"]]) == first
        assert dict(first[0].envs) == either.start_container(pod).environ


def test_init_container_hands_its_devices_to_the_containers_after_it(either: Kubelet) -> None:
    calls: list[list[str]] = []

    def allocate(_self: object, devices: Sequence[Device]) -> Edits:
        calls.append([device.id for device in devices])
        return Edits()

    with serving(either, Rack("a", "b", allocate=allocate)):
        either.wait_for(RESOURCE, healthy=2)
        pod = Pod(init_containers=(Container("init", {RESOURCE: 2}),), containers=(Container("main", {RESOURCE: 1}),))
        assert either.admit(pod)
        assert either.held(pod, "main") < either.held(pod, "init") == {"a", "b"}
        assert calls[0] == ["a", "b"]
        assert set(calls[1]) == either.held(pod, "main")


def test_sidecar_keeps_its_devices(either: Kubelet) -> None:
    with serving(either, Rack("a", "b")):
        either.wait_for(RESOURCE, healthy=2)
        pod = Pod(init_containers=(Container("side", {RESOURCE: 1}, restartable=True),), containers=(Container("main", {RESOURCE: 1}),))
        assert either.admit(pod)
        assert not either.held(pod, "main") & either.held(pod, "side")


def test_devices_of_a_deleted_pod_go_to_the_next_without_a_word(either: Kubelet) -> None:
    with serving(either, Rack("a", allocate=name_them)):
        either.wait_for(RESOURCE, healthy=1)
        for n in range(4):
            pod = Pod.requesting(RESOURCE, name=f"pod-{n}")
            assert either.admit(pod)
            assert either.start_container(pod).environ == {"IDS": "a"}
            either.delete_pod(pod)


def test_pod_that_a_later_check_rejects_leaves_nothing_behind(either: Kubelet) -> None:
    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        either.faults.reject_after_allocate = "no CPU left"
        assert not either.admit(Pod.requesting(RESOURCE))
        either.faults.reject_after_allocate = ""
        assert either.admit(Pod.requesting(RESOURCE, name="next"))


def test_unknown_ids_are_refused_by_name(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
        with pytest.raises(RpcFailed, match=r"NotFound.*vendor\.example/device has no device 'x', 'y'"):
            plugin_calls.allocate(kubelet, RESOURCE, [["a", "y", "x"]])
        with pytest.raises(RpcFailed, match="and 95 more"):
            plugin_calls.allocate(kubelet, RESOURCE, [[f"gone-{n}" for n in range(100)]])


def test_replicas_are_shares_and_a_pod_may_be_held_to_one(kubelet: Kubelet) -> None:
    rules = {RESOURCE: ResourceSettings(replicas=3, fail_requests_greater_than_one=True)}
    with serving(kubelet, Rack(Device("a", nodes=["/dev/a"])), resources=rules):
        kubelet.wait_for(RESOURCE, healthy=3)
        assert set(kubelet.devices(RESOURCE)) == {f"a{REPLICA}{n}" for n in range(3)}
        pods = [Pod.requesting(RESOURCE, name=f"pod-{n}") for n in range(3)]
        for pod in pods:
            assert kubelet.admit(pod)
            assert [d.host_path for d in kubelet.start_container(pod).devices] == ["/dev/a"]
        kubelet.delete_pod(pods[0])
        kubelet.delete_pod(pods[1])
        greedy = kubelet.admit(Pod.requesting(RESOURCE, 2))
        assert not greedy
        assert "ask for 1" in greedy.message


def test_concurrent_calls_of_pod_workers_all_get_their_answer(kubelet: Kubelet) -> None:
    at_once = threading.Barrier(8)

    def allocate(_self: object, devices: Sequence[Device]) -> Edits:
        at_once.wait(5.0)
        return name_them(_self, devices)

    ids = [f"d{n}" for n in range(8)]
    with serving(kubelet, Rack(*ids, allocate=allocate)):
        kubelet.wait_for(RESOURCE, healthy=8)
        answers = plugin_calls.allocate_concurrently(kubelet, RESOURCE, [[one] for one in ids])
    assert [answer.envs["IDS"] for answer in answers] == ids


def test_hooks_error_reaches_the_pods_status_in_one_short_line(kubelet: Kubelet) -> None:
    def allocate(_self: object, _devices: Sequence[Device]) -> Edits:
        raise OSError("cannot open the card\nTraceback (most recent call last):\n" + "x" * 10_000)

    with serving(kubelet, Rack("a", allocate=allocate)):
        kubelet.wait_for(RESOURCE, healthy=1)
        message = kubelet.admit(Pod.requesting(RESOURCE)).message
    assert "code = Internal desc = plugin device: allocate() failed: OSError: cannot open the card" in message
    assert "Traceback" not in message
    assert "\n" not in message
    assert len(message) < 600


# What is chosen


def test_vendors_preference_is_followed(kubelet: Kubelet) -> None:
    def prefer(_self: object, available: Sequence[Device], _required: Sequence[Device], size: int) -> Iterable[Device]:
        return sorted(available, key=lambda device: device.id, reverse=True)[:size]

    with serving(kubelet, Rack("a", "b", "c", "d", prefer=prefer)):
        kubelet.wait_for(RESOURCE, healthy=4)
        pod = Pod.requesting(RESOURCE, 2)
        assert kubelet.admit(pod)
        assert kubelet.held(pod) == {"c", "d"}


def raising(_self: object, *_args: object) -> Iterable[Device]:
    raise RuntimeError("no idea")


@pytest.mark.parametrize(
    "prefer",
    [
        raising,
        lambda _self, available, _required, _size: [],
        lambda _self, available, _required, size: available[:1] * size,
        lambda _self, available, _required, size: [Device("stranger")] * size,
        lambda _self, available, _required, size: None,
        lambda _self, available, _required, size: 7,
    ],
    ids=["raises", "empty", "doubles", "strangers", "nothing", "no list"],
)
def test_bad_preference_costs_no_pod_its_admission(kubelet: Kubelet, prefer: object) -> None:
    with serving(kubelet, Rack("a", "b", "c", "d", prefer=prefer)):  # type: ignore[arg-type]
        kubelet.wait_for(RESOURCE, healthy=4)
        for size in (3, 1):
            assert kubelet.admit(Pod.requesting(RESOURCE, size, name=f"pod-{size}"))
        chosen = plugin_calls.prefer(kubelet, RESOURCE, ["a", "b", "c"], ["b"], 2)
        assert len(chosen) == len(set(chosen)) == 2
        assert "b" in chosen


def test_preference_for_more_than_four_mebibytes_of_ids(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a", "b")):
        kubelet.wait_for(RESOURCE, healthy=2)
        assert plugin_calls.oversized(kubelet, RESOURCE) == ["a"]


def test_devices_of_one_unit_are_spread_or_packed_as_configured(kubelet: Kubelet) -> None:
    devices = [
        Device(f"{unit}{n}", unit=unit, resource=f"vendor.example/{kind}")
        for kind in ("s", "p")
        for unit in (f"x{kind}", f"y{kind}")
        for n in range(4)
    ]
    rules = {"vendor.example/s": ResourceSettings(policy="spread"), "vendor.example/p": ResourceSettings(policy="pack")}
    with serving(kubelet, Rack(*devices), resources=rules):
        for name, units in (("vendor.example/s", 2), ("vendor.example/p", 1)):
            kubelet.wait_for(name, healthy=8)
            pod = Pod.requesting(name, 2)
            assert kubelet.admit(pod)
            assert len({one[:2] for one in kubelet.held(pod)}) == units


@pytest.mark.parametrize("policy", ["best-effort", "restricted", "single-numa-node"])
def test_devices_come_from_one_numa_node(short_root: str, policy: Policy) -> None:
    with (
        Kubelet(short_root, numa=2, topology_policy=policy) as kubelet,
        serving(kubelet, Rack(*(Device(f"n{n}d{i}", numa_nodes=[n]) for n in range(2) for i in range(4)))),
    ):
        kubelet.wait_for(RESOURCE, healthy=8)
        for name in ("one", "two"):
            pod = Pod.requesting(RESOURCE, 4, name=name)
            assert kubelet.admit(pod)
            assert len({one[:2] for one in kubelet.held(pod)}) == 1


def test_impossible_alignment_is_the_kubelets_to_refuse(short_root: str) -> None:
    with (
        Kubelet(short_root, numa=2, topology_policy="single-numa-node") as kubelet,
        serving(kubelet, Rack(*(Device(f"n{n}", numa_nodes=[n]) for n in range(2)))),
    ):
        kubelet.wait_for(RESOURCE, healthy=2)
        refused = kubelet.admit(Pod.requesting(RESOURCE, 2))
        assert refused.reason == "TopologyAffinityError"
        assert kubelet.admit(Pod.requesting(RESOURCE, 1, name="small"))


def test_devices_without_a_numa_node_are_admitted_by_every_policy(short_root: str) -> None:
    """A PCI function on a machine with one node says -1, which the kubelet knows of no node."""
    with (
        Kubelet(short_root, numa=2, topology_policy="single-numa-node") as kubelet,
        serving(kubelet, Rack(Device("a", numa_nodes=[-1]), Device("b", numa_nodes=[64]), Device("c"))) as daemon,
    ):
        kubelet.wait_for(RESOURCE, healthy=3)
        assert all(not device.topology for device in kubelet.devices(RESOURCE).values())
        assert kubelet.admit(Pod.requesting(RESOURCE, 3))
        assert any("outside 0 to 63" in one for one in daemon.scanners["device"].inventory.warnings)


def test_all_devices_of_a_resource_have_a_numa_node_or_none(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack(Device("a", numa_nodes=[0]), Device("b"))) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        assert all(not device.topology for device in kubelet.devices(RESOURCE).values())
        assert any("NUMA nodes are left out" in one for one in daemon.scanners["device"].inventory.warnings)


# Before a container starts


def test_prepare_is_called_at_each_start_with_devices_in_order(kubelet: Kubelet) -> None:
    prepared: list[list[str]] = []
    with serving(kubelet, Rack("a", "b", "c", prepare=lambda _self, devices: prepared.append([d.id for d in devices]))):
        kubelet.wait_for(RESOURCE, healthy=3)
        pod = Pod.requesting(RESOURCE, 3)
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
        kubelet.restart_container(pod)
    assert prepared == [["a", "b", "c"]] * 2


def test_failed_prepare_keeps_the_container_back_until_it_works(kubelet: Kubelet) -> None:
    faults = ["the card does not reset"]

    def prepare(_self: object, _devices: Sequence[Device]) -> None:
        if faults:
            raise RuntimeError(faults[0])

    with serving(kubelet, Rack("a", prepare=prepare)):
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        with pytest.raises(CreateContainerConfigError, match="the card does not reset"):
            kubelet.start_container(pod)
        faults.clear()
        kubelet.start_container(pod)


def test_prepare_may_be_left_out_after_a_kubelet_restart(kubelet: Kubelet) -> None:
    prepared: list[object] = []
    with serving(kubelet, Rack("a", allocate=name_them, prepare=lambda _self, devices: prepared.append(devices))):
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
    with_plugin = len(prepared)
    kubelet.restart()
    assert kubelet.restart_container(pod).environ == {"IDS": "a"}, "the kubelet starts it from memory, without us"
    assert len(prepared) == with_plugin == 1


def test_pod_from_before_the_plugin_gets_its_devices_when_its_container_starts(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    assert kubelet.admit(pod), "nobody knows the resource yet"
    with serving(kubelet, Rack("a", allocate=name_them)):
        kubelet.wait_for(RESOURCE, healthy=1)
        assert kubelet.start_container(pod).environ == {"IDS": "a"}


def test_who_holds_what_is_known_afterwards(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a", "b")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        (held,) = kubelet.held(pod)
        daemon.podresources.refresh()
        wait_until(lambda: daemon.held(RESOURCE, held), "the view")
        assert daemon.held(RESOURCE, "b" if held == "a" else "a") is False
        (holder,) = daemon.podresources.holdings.get().holders(RESOURCE, held)
        assert (holder.namespace, holder.pod, holder.container) == ("default", "pod", "main")
