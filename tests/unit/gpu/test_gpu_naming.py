# SPDX-License-Identifier: Apache-2.0
"""Names of resources, MIG strategies, filters, and rules that name some GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from deviceplugin.config import ConfigError
from deviceplugin.plugins.gpu import GpuConfig
from deviceplugin.testing import nvml as sim
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import UNKNOWN, Rig


def resources(rig: Rig) -> dict[str, int]:
    return dict(Counter(d.resource for d in rig.devices()))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("all-1g.10gb", {"nvidia.com/mig-1g.10gb": 7}),
        ("media", {"nvidia.com/mig-1g.10gb.me": 1, "nvidia.com/mig-1g.10gb": 6}),
        ("balanced", {"nvidia.com/mig-3g.40gb": 1, "nvidia.com/mig-2g.20gb": 1, "nvidia.com/mig-1g.10gb": 2}),
        ("shared-compute", {"nvidia.com/mig-1c.3g.40gb": 1, "nvidia.com/mig-2c.3g.40gb": 1, "nvidia.com/mig-2c.4g.40gb": 2}),
    ],
)
def test_mixed_names_each_kind_of_mig_device(make: Make, layout: str, expected: dict[str, int]) -> None:
    assert resources(make(sim.h100_mig(layout), migStrategy="mixed")) == expected


def test_mixed_keeps_whole_gpus_as_they_are(make: Make) -> None:
    machine = sim.dgx_h100()
    machine.partition(0, "3g.40gb", "3g.40gb")
    assert resources(make(machine, migStrategy="mixed")) == {"nvidia.com/gpu": 7, "nvidia.com/mig-3g.40gb": 2}


def test_without_a_strategy_a_partitioned_gpu_is_one_gpu(make: Make) -> None:
    assert resources(make(sim.h100_mig())) == {"nvidia.com/gpu": 1}


def test_mig_devices_share_the_unit_and_the_place_of_their_gpu(make: Make) -> None:
    rig = make(sim.h100_mig(), migStrategy="mixed")
    for device in rig.devices():
        assert device.id.startswith("MIG-")
        assert (device.unit, device.numa_nodes) == (rig.machine.gpus[0].uuid, (0,))
        assert device.attributes["type"] == "mig"
        assert device.capacity["memory"] >> 30 <= 40


def test_single_serves_equal_mig_devices_as_gpus(make: Make) -> None:
    machine = sim.dgx_h100()
    for n in range(8):
        machine.partition(n, "3g.40gb", "3g.40gb")
    assert resources(make(machine, migStrategy="single")) == {"nvidia.com/gpu": 16}


@pytest.mark.parametrize(
    ("layouts", "reason", "left"),
    [
        ([("3g.40gb", "1g.10gb")], "MIG devices of 2 profiles: 1g.10gb, 3g.40gb", 0),
        ([("3g.40gb",), None], "1 of 2 GPUs are in MIG mode", 1),
        ([("3g.40gb",), ()], "has no MIG devices", 0),
    ],
    ids=["kinds", "whole", "empty"],
)
def test_an_uneven_layout_costs_single_the_mig_devices_alone_and_says_why(make: Make, layouts: list[Any], reason: str, left: int) -> None:
    machine = sim.Scenario(sim.dgx_h100().gpus[: len(layouts)])
    for n, layout in enumerate(layouts):
        if layout is not None:
            machine.partition(n, *layout)
    rig = make(machine, migStrategy="single")
    assert len(rig.devices()) == left
    told = [why for what, why in rig.skipped().items() if what.startswith("MIG-")]
    assert told
    assert all(reason in why and "use mixed" in why for why in told)


def test_a_mig_gpu_without_devices_is_told(make: Make) -> None:
    rig = make(sim.h100_mig("empty"), migStrategy="mixed")
    assert rig.devices() == []
    assert "has no MIG devices" in rig.skipped()[rig.machine.gpus[0].uuid]


def test_partitioning_is_seen_at_the_next_look_and_tells_the_watcher(make: Make) -> None:
    rig = make(sim.dgx_h100(), migStrategy="mixed")
    assert resources(rig) == {"nvidia.com/gpu": 8}
    rig.listen()
    rig.machine.partition(0, "7g.80gb")
    rig.machine.inject(0, sim.MIG_EVENT)
    rig.next()
    assert resources(rig) == {"nvidia.com/gpu": 7, "nvidia.com/mig-7g.80gb": 1}
    rig.machine.unpartition(0)
    assert resources(rig) == {"nvidia.com/gpu": 8}


def test_a_mig_list_that_is_cut_short_loses_no_device(make: Make) -> None:
    rig = make(sim.h100_mig("all-1g.10gb"), migStrategy="mixed")
    before = [d.id for d in rig.devices()]
    rig.machine.rule("nvmlDeviceGetMigDeviceHandleByIndex", result=999)
    assert sorted(d.id for d in rig.devices()) == sorted(before)
    assert rig.health()[0][0] is UNKNOWN


def test_rules_name_models_and_single_gpus(make: Make) -> None:
    machine = sim.Scenario([*sim.dgx_h100().gpus[:2], *(g for g in sim.one_t4().gpus)])
    machine.change(2, pci="0000:3b:00.0")
    rules = [
        {"match": {"model": "*t4"}, "name": "example.com/small"},
        {"match": {"pci": "10:00.0"}, "name": "gpu.shared"},
    ]
    assert resources(make(machine, resources=rules)) == {"nvidia.com/gpu.shared": 1, "nvidia.com/gpu": 1, "example.com/small": 1}


def test_rules_with_mig_name_mig_devices_and_others_do_not(make: Make) -> None:
    rules = [{"match": {"model": "*", "mig": "1g.*"}, "name": "mig-small"}, {"match": {"model": "*"}, "name": "gpu.h100"}]
    assert resources(make(sim.h100_mig(), migStrategy="mixed", resources=rules)) == {
        "nvidia.com/mig-3g.40gb": 1,
        "nvidia.com/mig-2g.20gb": 1,
        "nvidia.com/mig-small": 2,
    }


def test_mig_devices_that_a_rule_names_do_not_make_single_uneven(make: Make) -> None:
    rules = [{"match": {"model": "*", "mig": ["2g.*", "3g.*"]}, "name": "mig-large"}]
    assert resources(make(sim.h100_mig(), migStrategy="single", resources=rules)) == {"nvidia.com/mig-large": 2, "nvidia.com/gpu": 2}


def test_a_gpu_that_two_rules_claim_is_left_out_and_both_are_named(make: Make) -> None:
    rig = make(sim.l40s_pcie(), resources=[{"match": {"index": 1}, "name": "one"}, {"match": {"uuid": "GPU-*"}, "name": "all"}])
    assert resources(rig) == {"nvidia.com/all": 3}
    why = rig.skipped()[rig.machine.gpus[1].uuid]
    assert "resources[0] (nvidia.com/one) and resources[1] (nvidia.com/all)" in why


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"uuid": "GPU-1"}, {"uuid": ["gpu-1", "GPU-2"]}),
        ({"pci": "3b:00.0"}, {"pci": "00000000:3B:00.0"}),
        ({"index": [0, 1]}, {"index": 1}),
        ({"model": "*T4"}, {"model": "*T4"}),
    ],
    ids=["uuid", "pci", "index", "equal"],
)
def test_two_rules_that_must_clash_are_refused_and_both_named(parse: Callable[..., GpuConfig], one: Any, other: Any) -> None:
    with pytest.raises(ConfigError, match=r"resources\[0\] \(nvidia.com/a\) and resources\[1\] \(nvidia.com/b\) claim the same GPU"):
        parse(resources=[{"match": one, "name": "a"}, {"match": other, "name": "b"}])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"exclude": [{"index": [0, 2]}]}, [1, 3]),
        ({"include": [{"pci": "0000:11:00.0"}]}, [1]),
        ({"include": [{"model": "*l40s"}], "exclude": [{"pci": "13:00.0"}]}, [0, 1, 2]),
        ({"exclude": [{"model": "*L40S", "index": 3}]}, [0, 1, 2]),
        ({"exclude": [{"model": "*H100*"}]}, [0, 1, 2, 3]),
        ({"include": [{"uuid": "GPU-none"}]}, []),
    ],
)
def test_filters_choose_and_say_what_they_left_out(make: Make, options: Any, kept: list[int]) -> None:
    rig = make(sim.l40s_pcie(), **options)
    assert [d.attributes["index"] for d in rig.devices()] == kept
    assert set(rig.skipped()) == {gpu.uuid for n, gpu in enumerate(rig.machine.gpus) if n not in kept}


def test_the_display_gpu_of_a_dgx_station_is_left_out_unless_it_is_named(make: Make) -> None:
    machine = sim.l40s_pcie()
    machine.change(3, name="NVIDIA DGX Display")
    rig = make(machine)
    assert len(rig.devices()) == 3
    assert "only drives a screen" in rig.skipped()[machine.gpus[3].uuid]
    assert len(make(machine, include=[{"model": "*"}]).devices()) == 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"exclude": [{}]}, "say which GPUs are meant"),
        ({"include": [{"pci": "3b:00"}]}, "is no PCI address"),
        ({"include": [{"index": -1}]}, "index"),
        ({"include": [{"index": 1}], "exclude": [{"index": 1}]}, "in include and in exclude"),
        ({"resources": [{"match": {"index": 0}, "name": "a/b/c"}]}, "must be a resource name"),
        ({"resources": [{"match": {"index": 0}, "name": ""}]}, "must be a resource name"),
        ({"migStrategy": "both"}, "migStrategy"),
        ({"allocationPolicy": "random"}, "allocationPolicy"),
        ({"faults": {"xids": {"seventy": "reset"}}}, "is no XID"),
        ({"faults": {"xids": {0: "reset"}}}, "is no XID"),
        ({"faults": {"xids": {79: "reset", "79": "ignore"}}}, "79 is there twice"),
        ({"faults": {"xids": {79: "sometimes"}}}, "faults.xids"),
        ({"faults": {"xids": {79: -1}}}, "faults.xids"),
        ({"faults": {"remapPendin": "ignore"}}, "did you mean 'remapPending'"),
        ({"library": "libnvidia-ml.so.1"}, "absolute path"),
    ],
)
def test_mistakes_in_the_configuration_are_told_with_their_place(parse: Callable[..., GpuConfig], options: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error.replace("[", r"\[")):
        parse(**options)
