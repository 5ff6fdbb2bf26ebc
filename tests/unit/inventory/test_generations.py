# SPDX-License-Identifier: Apache-2.0
"""Random histories of discoveries: what streams rely on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin.health import Damping, HealthBook
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.model import Device, Health, Rule, Sharing
from tests.helpers.core import WIDGET, Shelf

IDS = st.sampled_from(["a", "b", "c", "gpu-10", "gpu-2", "", "x::y"])
DEVICES = st.builds(
    Device,
    IDS,
    unit=st.sampled_from(["", "u", "v"]),
    resource=st.sampled_from(["", "", "example.com/other", "bad"]),
    health=st.sampled_from(Health),
    cause=st.sampled_from(["", "hot"]),
    numa_nodes=st.lists(st.integers(-1, 2), max_size=2),
    envs=st.sampled_from([{}, {"A": "1"}]),
)
SHARING = st.dictionaries(
    st.sampled_from([WIDGET, "example.com/other"]),
    st.builds(Sharing, st.integers(1, 3), st.sampled_from(["", "example.com/third", "example.com/other"])),
    max_size=1,
)
STEPS = st.one_of(
    st.lists(DEVICES, max_size=5),
    st.lists(DEVICES, max_size=5),
    st.just("distrust"),
    st.just("bury"),
    st.floats(0.5, 100),
    SHARING,
    st.sampled_from([None, True, False]),
)


def encoded(shelf: Shelf, resource: str) -> bytes:
    message = pb.ListAndWatchResponse()
    for row in shelf.snapshot(resource).rows:
        one = message.devices.add(ID=row.id, health="Healthy" if row.health is Health.HEALTHY else "Unhealthy")
        for node in row.device.numa_nodes:
            one.topology.nodes.add(ID=node)
    return message.SerializeToString()


def act(shelf: Shelf, step: object) -> None:
    if isinstance(step, list):
        shelf.put(*step)
    elif isinstance(step, float):
        shelf.clock.advance(step)
    elif isinstance(step, dict):
        shelf.inventory.share(step)
    elif step == "distrust" and shelf.inventory.hooks is not None:
        shelf.inventory.distrust("blind")
    elif step == "bury":
        shelf.bury()
    elif step in (None, True, False):
        shelf.held = lambda _resource, _id: bool(step) if step is not None else None


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_a_generation_changes_exactly_when_the_list_that_the_kubelet_sees_does(steps: list[object]) -> None:
    shelf = Shelf(book=HealthBook({"hot": Rule(seconds=20)}, Damping(3, 100, 20)), limit=60)
    for step in steps:
        before = shelf.inventory.snapshots
        act(shelf, step)
        after = shelf.inventory.snapshots
        assert before.keys() <= after.keys(), "a resource is emptied, never forgotten"
        for name, snapshot in after.items():
            assert snapshot.payload == encoded(shelf, name)
            if name in before:
                changed = snapshot.payload != before[name].payload
                assert snapshot.generation == before[name].generation + changed
            else:
                assert snapshot.generation == 1
            ids = [row.id for row in snapshot.rows]
            assert len(ids) == len(set(ids))
            with_nodes = [bool(row.device.numa_nodes) for row in snapshot.rows]
            assert all(with_nodes) or not any(with_nodes)
            assert snapshot.index.keys() == set(ids)
            assert len(snapshot.table.choose("any", ids, [], len(ids))) == len(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(DEVICES, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_a_discovery_does_not_matter(devices: list[Device], random: object) -> None:
    unique = list({one.id: one for one in devices}.values())
    shuffled = list(unique)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Shelf(), Shelf()
    one.put(*unique)
    other.put(*shuffled)
    assert {name: snapshot.payload for name, snapshot in one.inventory.snapshots.items()} == {
        name: snapshot.payload for name, snapshot in other.inventory.snapshots.items()
    }
