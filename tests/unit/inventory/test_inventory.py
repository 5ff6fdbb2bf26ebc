# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from deviceplugin.health import HealthBook
from deviceplugin.inventory import Row
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.model import Device, Health, Recovery, Rule, Sharing, Skipped
from tests.helpers.core import WIDGET, Shelf, sick

OTHER = "example.com/other"


def advertised(shelf: Shelf, resource: str = WIDGET) -> dict[str, tuple[str, list[int]]]:
    message = pb.ListAndWatchResponse.FromString(shelf.snapshot(resource).payload)
    return {one.ID: (one.health, [node.ID for node in one.topology.nodes]) for one in message.devices}


@pytest.mark.parametrize(
    "broken",
    [
        Device("x\ud800"),
        Device(""),
        Device("x" * 300),
        Device("a::b"),
        Device("b", nodes=["dev/b"]),
        Device("b", resource="gpu"),
        Device("b", resource=3),  # type: ignore[arg-type]
        Device("b", envs={"N": 1}),  # type: ignore[dict-item]
        Device("b", health="healthy"),  # type: ignore[arg-type]
        Device("b", unit=["card"]),  # type: ignore[arg-type]
        Device(["b"]),  # type: ignore[arg-type]
        "b",
        None,
    ],
)
def test_one_bad_device_never_hides_its_siblings(broken: Any) -> None:
    shelf = Shelf()
    shelf.put(Device("a"), broken, Device("c"))
    assert shelf.listed() == {"a": "healthy", "c": "healthy"}
    (skipped,) = shelf.inventory.skipped
    assert skipped.reason
    assert len(skipped.what) <= 64


def test_what_a_plugin_leaves_out_on_purpose_is_shown() -> None:
    shelf = Shelf()
    shelf.put(Device("a"), Skipped("card 2", "no driver"))
    assert shelf.inventory.skipped == (Skipped("card 2", "no driver"),)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_devices_with_one_id_the_unhealthy_one_wins(order: int) -> None:
    shelf = Shelf()
    shelf.put(*[Device("a"), sick("a")][::order], Device("b"))
    assert shelf.listed() == {"a": "unhealthy:broken", "b": "healthy"}
    assert "device id 'a' is there twice" in shelf.reasons()


def test_an_id_belongs_to_one_resource_of_the_node() -> None:
    shelf = Shelf()
    shelf.put(Device("a"), Device("a", resource=OTHER), Device("b", resource=OTHER))
    assert list(shelf.listed()) == ["a"]
    assert list(shelf.listed(OTHER)) == ["b"]
    assert f"there twice, in {WIDGET} and in {OTHER}" in shelf.reasons()


def test_a_device_that_cannot_be_listed_leaves_its_id_to_one_that_can() -> None:
    shelf = Shelf()
    shelf.put(Device("a", nodes=["x"]), Device("a"))
    assert shelf.listed() == {"a": "healthy"}


def test_the_health_of_a_unit_reaches_all_its_devices_and_no_others() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=2)})
    shelf.put(sick("a", unit="card-1"), Device("b", unit="card-1"), Device("c", unit="card-2"), Device("d", unit="card-1", resource=OTHER))
    assert shelf.listed() == {**dict.fromkeys(["a::0", "a::1", "b::0", "b::1"], "unhealthy:broken"), "c::0": "healthy", "c::1": "healthy"}
    assert shelf.listed(OTHER) == {"d": "unhealthy:broken"}
    assert {one: health for one, (health, _) in advertised(shelf).items()} == {
        **dict.fromkeys(["a::0", "a::1", "b::0", "b::1"], "Unhealthy"),
        **dict.fromkeys(["c::0", "c::1"], "Healthy"),
    }


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_faults_of_one_unit_the_graver_counts(order: int) -> None:
    shelf = Shelf(book=HealthBook({"fatal": Rule(Recovery.NEVER)}))
    shelf.put(*[sick("a", "hot", unit="u"), sick("b", "fatal", unit="u")][::order])
    shelf.put(Device("a", unit="u"), Device("b", unit="u"))
    assert shelf.listed() == dict.fromkeys("ab", "unhealthy:fatal")


def test_unknown_is_listed_and_not_healthy() -> None:
    shelf = Shelf()
    shelf.put(Device("a", health=Health.UNKNOWN))
    assert shelf.listed() == {"a": "unknown:reported unknown"}
    assert advertised(shelf) == {"a": ("Unhealthy", [])}
    assert dict(shelf.snapshot().counts()) == {Health.HEALTHY: 0, Health.UNHEALTHY: 0, Health.UNKNOWN: 1}


def test_a_change_of_health_is_told_once_with_its_cause() -> None:
    shelf = Shelf()
    (first,) = shelf.put(Device("a"))
    assert (first.before, first.after) == (None, Health.HEALTHY)
    assert shelf.put(Device("a")) == ()
    (fell,) = shelf.put(sick("a", "too hot"))
    assert (fell.plugin, fell.unit, fell.before, fell.after, fell.cause) == ("widgets", "a", Health.HEALTHY, Health.UNHEALTHY, "too hot")
    assert shelf.put(sick("a", "too hot")) == ()


def test_a_device_with_several_nodes_is_listed_with_each_in_order() -> None:
    shelf = Shelf()
    shelf.put(Device("a", numa_nodes=[1, 0, 1]), Device("b", numa_nodes=[63]))
    assert advertised(shelf) == {"a": ("Healthy", [0, 1]), "b": ("Healthy", [63])}
    assert shelf.inventory.warnings == ()


def test_where_one_device_has_no_node_none_has() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=2)})
    shelf.put(Device("a", numa_nodes=[0]), Device("b"), Device("c", resource=OTHER, numa_nodes=[1]))
    assert {tuple(nodes) for _, nodes in advertised(shelf).values()} == {()}
    assert advertised(shelf, OTHER) == {"c": ("Healthy", [1])}
    (warning,) = shelf.inventory.warnings
    assert f"{WIDGET}: NUMA nodes are left out, since 1 of 2 devices have none, b for one" in warning


@pytest.mark.parametrize("nodes", [[-1], [64], [-1, 64]])
def test_a_node_that_the_kubelet_cannot_take_is_no_node(nodes: list[int]) -> None:
    shelf = Shelf()
    shelf.put(Device("a", numa_nodes=nodes), Device("b", numa_nodes=[*nodes, 2]))
    assert advertised(shelf) == {"a": ("Healthy", []), "b": ("Healthy", [])}
    assert any("outside 0 to 63" in one for one in shelf.inventory.warnings)


def test_shares_have_names_of_their_own_and_the_device_behind_them() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=3, rename="example.com/widget.shared")})
    shelf.put(Device("a"), Device("b"))
    assert WIDGET not in shelf.inventory.snapshots
    snapshot = shelf.snapshot("example.com/widget.shared")
    assert [(row.id, row.device.id) for row in snapshot.rows] == [(f"{one}::{k}", one) for one in "ab" for k in range(3)]


def test_new_sharing_rules_count_from_the_next_look() -> None:
    shelf = Shelf()
    shelf.put(Device("a"))
    shelf.inventory.share({WIDGET: Sharing(replicas=2, rename=OTHER)})
    assert list(shelf.listed()) == ["a"]
    shelf.put(Device("a"))
    assert (list(shelf.listed()), list(shelf.listed(OTHER))) == ([], ["a::0", "a::1"])


def test_a_list_beyond_the_limit_of_the_kubelet_keeps_the_old_one_and_says_what_to_do() -> None:
    shelf = Shelf()
    shelf.put(Device("a"))
    before = shelf.snapshot()
    shelf.inventory.share({WIDGET: Sharing(replicas=100_000)})
    shelf.put(Device("a" * 40))
    assert shelf.snapshot() is before
    assert "the kubelet accepts at most 4194304" in shelf.reasons()
    assert "lower replicas" in shelf.reasons()
    shelf.inventory.share({})
    shelf.put(Device("b"))
    assert list(shelf.listed()) == ["a", "a" * 40, "b"]
    assert "lower replicas" not in shelf.reasons()


def test_a_first_list_beyond_the_limit_is_empty_and_each_look_says_why() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=100_000)})
    for _ in range(2):
        shelf.put(Device("a" * 40))
        assert shelf.listed() == {}
        assert shelf.snapshot().payload == b""
        assert "lower replicas" in shelf.reasons()


def test_distrust_makes_all_unknown_and_one_good_look_ends_it() -> None:
    shelf = Shelf()
    shelf.put(Device("a"), sick("b"), Device("c", unit="b"))
    changes = shelf.inventory.distrust("discovery fails")
    assert [(one.unit, one.after) for one in changes] == [("a", Health.UNKNOWN)]
    assert shelf.listed() == {"a": "unknown:discovery fails", "b": "unhealthy:broken", "c": "unhealthy:broken"}
    assert shelf.inventory.distrust("discovery fails") == ()
    shelf.put(Device("a"), Device("b"), Device("c", unit="b"))
    assert shelf.listed() == dict.fromkeys("abc", "healthy")


def test_what_did_not_change_is_the_same_snapshot() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=100)})
    shelf.put(Device("a", envs={"A": "1"}), Device("b", resource=OTHER))
    before = dict(shelf.inventory.snapshots)
    shelf.put(Device("b", resource=OTHER), Device("a", envs={"A": "1"}))
    assert all(shelf.inventory.snapshots[name] is one for name, one in before.items())


def test_replicas_follow_their_device() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=2)})
    shelf.put(Device("a", numa_nodes=[1]), Device("b"))
    assert shelf.listed() == dict.fromkeys(("a::0", "a::1", "b::0", "b::1"), "healthy")
    shelf.put(sick("a"), Device("b"))
    assert shelf.listed() == {"a::0": "unhealthy:broken", "a::1": "unhealthy:broken", "b::0": "healthy", "b::1": "healthy"}
    assert {type(row) for row in shelf.snapshot().rows} == {Row}
    shelf.inventory.share({WIDGET: Sharing(replicas=1)})
    shelf.put(sick("a"), Device("b"))
    assert shelf.listed() == {"a": "unhealthy:broken", "b": "healthy"}


def test_what_only_a_container_sees_is_published_without_a_new_list() -> None:
    shelf = Shelf()
    shelf.put(Device("a", envs={"A": "1"}))
    before = shelf.snapshot()
    shelf.put(Device("a", envs={"A": "2"}))
    assert shelf.snapshot().generation == before.generation
    assert shelf.snapshot().rows[0].device.envs == {"A": "2"}
    assert before.rows[0].device.envs == {"A": "1"}
