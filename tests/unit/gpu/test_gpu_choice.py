# SPDX-License-Identifier: Apache-2.0
"""Which GPUs a container gets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import Device
from deviceplugin.plugins.gpu.choice import shares
from deviceplugin.testing import nvml as sim
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import Rig


def pick(rig: Rig, available: list[int], size: int, required: tuple[int, ...] = ()) -> list[int] | None:
    devices = rig.devices()
    chosen = rig.plugin.prefer([devices[n] for n in available], [devices[n] for n in required], size)
    return None if chosen is None else [d.attributes["index"] for d in chosen]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("machine", "available", "size", "expected"),
    [
        (sim.dgx1_v100, range(8), 2, [2, 3]),
        (sim.dgx1_v100, range(8), 4, [0, 1, 2, 3]),
        (sim.dgx1_v100, [0, 1, 3, 4, 6], 2, [0, 3]),
        (sim.l40s_pcie, [0, 1, 3], 2, [0, 1]),
        (sim.l40s_pcie, [0, 2, 3], 1, [0]),
        (sim.dgx_h100, [0, 1, 4, 5, 6, 7], 4, [4, 5, 6, 7]),
        (sim.dgx2_v100, range(16), 2, [0, 1]),
        (sim.dgx2_v100, [0, 8, 9], 2, [8, 9]),
    ],
)
def test_whole_gpus_are_chosen_by_their_links(make: Make, machine: object, available: list[int], size: int, expected: list[int]) -> None:
    assert pick(make(machine()), list(available), size) == expected  # type: ignore[operator]


def test_required_gpus_are_in_the_answer(make: Make) -> None:
    assert pick(make(sim.dgx1_v100()), list(range(8)), 2, required=(6,)) == [6, 7]


def test_links_through_switches_count_as_links_and_cliques_part_them(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.devices()
    assert rig.plugin._view.topology is not None
    assert rig.plugin._view.topology.links[0][7] == 10 + 18 * 100
    rig.machine.change(7, clique=1)
    rig.devices()
    assert rig.plugin._view.topology.links[0][7] == 10


def test_shared_gpus_and_mig_devices_are_left_to_the_frameworks_policy(make: Make) -> None:
    rig = make(sim.l40s_pcie())
    devices = rig.devices()
    assert rig.plugin.prefer([devices[0], devices[0], devices[1]], (), 2) is None
    parts = make(sim.h100_mig(), migStrategy="mixed")
    assert parts.plugin.prefer(parts.devices(), (), 1) is None


def test_before_the_first_look_the_framework_decides(make: Make) -> None:
    rig = make(sim.one_t4())
    assert rig.plugin.prefer([Device("GPU-1")], (), 1) is None


@pytest.mark.parametrize(
    ("policy", "free", "size", "expected"),
    [
        ("packed", {"a": 3, "b": 1, "c": 2}, 3, {"b": 1, "c": 2}),
        ("distributed", {"a": 4, "b": 1, "c": 2}, 2, {"a": 2}),
        ("spread", {"a": 4, "b": 1, "c": 2}, 3, {"a": 1, "b": 1, "c": 1}),
        ("spread", {"a": 4, "b": 1, "c": 1}, 2, {"a": 1, "b": 1}),
        ("packed", {"a": 1}, 5, {"a": 1}),
    ],
)
def test_shares_go_as_the_policy_says(policy: str, free: dict[str, int], size: int, expected: dict[str, int]) -> None:
    available = [Device(unit) for unit, count in free.items() for _ in range(count)]
    assert Counter(d.id for d in shares(policy, available, (), size)) == expected


def test_the_configured_policy_is_used_for_mig_devices(make: Make) -> None:
    machine = sim.dgx_h100()
    machine.partition(0, "1g.10gb", "1g.10gb")
    machine.partition(1, "1g.10gb")
    rig = make(machine, migStrategy="mixed", allocationPolicy="packed")
    devices = [d for d in rig.devices() if d.resource == "nvidia.com/mig-1g.10gb"]
    assert [d.unit for d in rig.plugin.prefer(devices, (), 1) or ()] == [machine.gpus[1].uuid]


@given(
    policy=st.sampled_from(["packed", "distributed", "spread"]),
    slots=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 3)), max_size=8),
    size=st.integers(0, 12),
    data=st.data(),
)
def test_an_answer_has_what_is_required_and_nothing_that_is_not_free(
    policy: str, slots: list[tuple[int, int, int]], size: int, data: st.DataObject
) -> None:
    counts = Counter[tuple[str, str]]()
    for unit, part, count in slots:
        counts[f"{unit}-{part}", f"{unit}"] += count
    available = [Device(id_, unit=unit) for (id_, unit), count in counts.items() for _ in range(count)]
    required = list({d.id: d for d in data.draw(st.lists(st.sampled_from(available), max_size=size))}.values()) if available and size else []
    chosen = shares(policy, available, required, size)
    assert len(chosen) == min(size, len(available))
    assert chosen[: len(required)] == required
    assert not Counter(d.id for d in chosen) - Counter(d.id for d in available)
    if policy == "spread":
        used = Counter(d.unit for d in chosen)
        total = Counter(d.unit for d in available)
        needed = Counter(d.unit for d in required)
        for name, times in used.items():
            if times > max(1, needed[name]):
                assert all(used[other] > 0 for other in total), "no GPU twice while there is another"
