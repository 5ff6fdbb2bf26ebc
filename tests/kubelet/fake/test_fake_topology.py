# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Container, Kubelet, Pod
from deviceplugin.testing.devices import Listed
from deviceplugin.testing.settings import Order
from deviceplugin.testing.topology import Hint, hints, merge, split
from tests.kubelet.fake.scripted import RESOURCE, Scripted, healthy

KubeletWith = Callable[..., Kubelet]

OTHER = "vendor.example/other"


def on(**nodes: tuple[int, ...]) -> dict[str, Listed]:
    return {device: Listed(device, "Healthy", its, bool(its)) for device, its in nodes.items()}


def test_hints_name_every_set_of_nodes_that_fits_and_prefer_the_smallest() -> None:
    devices = on(a=(0,), b=(0,), c=(1,))
    assert hints(devices, [0, 1], {"a", "b", "c"}, set(), 2) == [Hint(0b01, True), Hint(0b11, False)]
    assert hints(devices, [0, 1], {"a", "c"}, set(), 2) == [Hint(0b11, False)]  # one node could do it if b were free
    assert hints(devices, [0, 1], {"a", "b", "c"}, set(), 3) == [Hint(0b11, True)]


def test_hints_leave_out_nodes_without_devices_and_nodes_that_the_machine_lacks() -> None:
    assert hints(on(a=(2,), b=(9,)), [0, 1, 2], {"a", "b"}, set(), 1) == [Hint(0b100, True)]
    assert hints(on(a=(-1,)), [0, 1], {"a"}, set(), 1) == []


def test_hints_hold_on_to_reusable_devices() -> None:
    assert hints(on(a=(0,), b=(1,)), [0, 1], {"b"}, {"a"}, 1) == [Hint(0b01, True), Hint(0b11, False)]


def test_no_policy_has_no_opinion() -> None:
    assert merge("none", [0, 1], [[]]) == (None, True)


@pytest.mark.parametrize(
    ("policy", "given_hints", "expected"),
    [
        ("best-effort", [[]], (0b11, True)),
        ("restricted", [[]], (0b11, False)),
        ("single-numa-node", [[]], (None, False)),
        ("restricted", [None], (0b11, True)),
        ("restricted", [[Hint(0b01, True), Hint(0b10, True), Hint(0b11, False)]], (0b01, True)),
        ("restricted", [[Hint(0b11, False)]], (0b11, False)),
        ("single-numa-node", [[Hint(0b11, True)]], (None, False)),
        ("single-numa-node", [[Hint(0b10, True), Hint(0b11, False)]], (0b10, True)),
        ("restricted", [[Hint(0b01, True), Hint(0b10, True)], [Hint(0b10, True)]], (0b10, True)),
        ("restricted", [[Hint(0b01, True)], [Hint(0b10, True)]], (0b11, False)),
        ("best-effort", [[Hint(0b01, True), Hint(0b11, False)], [Hint(0b10, True), Hint(0b11, False)]], (0b01, True)),
    ],
)
def test_policies_merge_hints_as_the_topology_manager_does(
    policy: str, given_hints: list[list[Hint] | None], expected: tuple[int | None, bool]
) -> None:
    assert merge(policy, [0, 1], given_hints) == expected  # type: ignore[arg-type]


@given(
    st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.sets(st.integers(-1, 3), max_size=2), max_size=8),
    st.integers(1, 15),
    st.randoms(use_true_random=False),
)
def test_the_split_by_affinity_loses_and_doubles_no_device(nodes: dict[str, set[int]], affinity: int, chance: object) -> None:
    devices = {device: Listed(device, "Healthy", tuple(its), bool(its)) for device, its in nodes.items()}
    available = set(devices)
    aligned, unaligned, nowhere = split(devices, available, affinity, Order(1))
    assert aligned | unaligned | nowhere == available
    assert len(aligned) + len(unaligned) + len(nowhere) == len(available)
    for device in aligned:
        assert any(node >= 0 and affinity >> node & 1 for node in nodes[device])


def serve(kubelet: Kubelet, devices: list[pb.Device], resource: str = RESOURCE) -> Scripted:
    plugin = Scripted(kubelet, devices)
    plugin.options = lambda: pb.DevicePluginOptions(get_preferred_allocation_available=True)
    plugin.register(resource)
    kubelet.wait_for(resource, healthy=len(devices))
    return plugin


def test_a_container_gets_devices_of_one_node_where_that_is_possible(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(numa=2, topology_policy="single-numa-node")
    with serve(kubelet, healthy("a0", "b0", nodes=[0]) + healthy("a1", "b1", "c1", nodes=[1])):
        first, second, third = (Pod.requesting(RESOURCE, 2, name=name) for name in ("first", "second", "third"))
        assert kubelet.admit(first)
        assert kubelet.held(first) == {"a0", "b0"}
        assert kubelet.admit(second)
        assert kubelet.held(second) < {"a1", "b1", "c1"}
        admission = kubelet.admit(third)
        assert admission.reason == "TopologyAffinityError"
        assert admission.message == "Pod was rejected: Resources cannot be allocated with Topology locality"


def test_two_resources_must_meet_on_one_node(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(numa=2, topology_policy="restricted")
    with serve(kubelet, healthy("a0", nodes=[0]) + healthy("a1", nodes=[1])), serve(kubelet, healthy("x1", nodes=[1]), OTHER):
        pod = Pod(containers=(Container(limits={RESOURCE: 1, OTHER: 1}),))
        assert kubelet.admit(pod)
        assert kubelet.held(pod) == {"a1", "x1"}


def test_the_preference_is_asked_for_aligned_devices_only_and_not_at_all_when_they_are_just_enough(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(numa=2, topology_policy="best-effort")
    with serve(kubelet, healthy("a0", "b0", nodes=[0]) + healthy("a1", nodes=[1])) as plugin:
        exact = Pod.requesting(RESOURCE, 2, name="exact")
        assert kubelet.admit(exact)
        assert kubelet.held(exact) == {"a0", "b0"}
        assert not plugin.calls("GetPreferredAllocation")
        kubelet.delete_pod(exact)
        one = Pod.requesting(RESOURCE, 1, name="one")
        assert kubelet.admit(one)
        assert kubelet.held(one) < {"a0", "b0"}
        assert sorted(plugin.calls("GetPreferredAllocation")[0].container_requests[0].available_deviceIDs) == ["a0", "b0"]


def test_what_aligned_devices_cannot_cover_is_filled_with_their_ids_required(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(numa=2, topology_policy="best-effort")
    # The smallest set of nodes that covers 2 of these is both, so all are aligned; the third, of no node, comes on top.
    with serve(kubelet, healthy("a0", nodes=[0]) + healthy("a1", nodes=[1]) + healthy("free")) as plugin:
        pod = Pod.requesting(RESOURCE, 3)
        assert kubelet.admit(pod)
        (container,) = plugin.calls("GetPreferredAllocation")[0].container_requests
        assert sorted(container.must_include_deviceIDs) == ["a0", "a1"]
        assert (sorted(container.available_deviceIDs), container.allocation_size) == (["a0", "a1", "free"], 3)
        assert kubelet.held(pod) == {"a0", "a1", "free"}


def test_devices_of_unknown_nodes_alone_leave_restricted_pods_rejected(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(numa=1, topology_policy="restricted")
    with serve(kubelet, healthy("a", nodes=[7])):
        assert kubelet.admit(Pod.requesting(RESOURCE)).reason == "TopologyAffinityError"


def test_a_running_pods_hints_are_those_of_its_own_devices_after_a_restart(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(numa=2, topology_policy="single-numa-node")
    devices = healthy("a0", nodes=[0]) + healthy("a1", nodes=[1])
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, devices):
        assert kubelet.admit(pod)
        held = kubelet.held(pod)
        kubelet.restart(running=[], readmit=False)
    with serve(kubelet, devices):
        assert all(kubelet.readmit().values())
        assert kubelet.held(pod) == held
