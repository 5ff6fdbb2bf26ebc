# SPDX-License-Identifier: Apache-2.0
"""How the GPUs are connected, for people."""

from __future__ import annotations

from collections import Counter

import pytest

from deviceplugin import Connection
from deviceplugin.testing import nvml
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import Rig


def ways(rig: Rig) -> list[Connection]:
    rig.devices()
    return list(rig.plugin.connections())


def test_nvlinks_between_gpus_are_counted_once(make: Make) -> None:
    found = ways(make(nvml.dgx1_v100()))
    assert {one.kind for one in found} == {"NVLink"}
    assert len({frozenset((one.unit, one.other)) for one in found}) == len(found) == 16, "the hybrid cube mesh"
    assert sum(one.lanes for one in found) == 8 * 6 / 2, "six links each"


def test_a_switch_joins_all(make: Make) -> None:
    rig = make(nvml.dgx_h100())
    assert Counter((one.other, one.lanes) for one in ways(rig)) == {("NVSwitch", 18): 8}


@pytest.mark.parametrize(
    ("trees", "joined"),
    [
        (["0.0.0.0.0", "0.0.0.0.1", "1.0.0.0.0", "1.0.0.0.1"], [{0, 1}, {2, 3}]),
        (["0.0.0.0.0", "0.0.1.0.0", "1.0.0.0.0"], [{0, 1}]),
        (["0.0.0.0.0", "0.1.0.0.0", "1.0.0.0.0"], []),
        (["0.0.0.0.0"], []),
    ],
)
def test_without_nvlinks_it_is_what_pcie_joins(make: Make, trees: list[str], joined: list[set[int]]) -> None:
    machine = nvml.many_t4(len(trees))
    for number, tree in enumerate(trees):
        machine.change(number, tree=tree)
    rig = make(machine)
    found = ways(rig)
    numbers = {gpu.uuid: number for number, gpu in enumerate(machine.gpus)}
    hubs: dict[str, set[int]] = {}
    for one in found:
        assert one.kind == "PCIe"
        hubs.setdefault(one.other, set()).add(numbers[one.unit])
    assert sorted(map(sorted, hubs.values())) == sorted(map(sorted, joined)), hubs
    assert all(name.startswith("PCIe ") for name in hubs)


def test_before_a_look_and_without_a_driver_there_is_nothing(make: Make) -> None:
    assert list(make(nvml.dgx_h100()).plugin.connections()) == []
