# SPDX-License-Identifier: Apache-2.0
"""What there is, under which ids, and what is told of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deviceplugin import Health
from deviceplugin.checks import device_errors, device_warnings
from deviceplugin.testing import nvml as sim
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import UNHEALTHY, UNKNOWN

MACHINES = {
    "dgx-h100": sim.dgx_h100,
    "dgx-a100": sim.dgx_a100,
    "dgx1-v100": sim.dgx1_v100,
    "dgx2-v100": sim.dgx2_v100,
    "l40s": sim.l40s_pcie,
    "t4": sim.one_t4,
}


@pytest.mark.parametrize("kind", MACHINES)
def test_every_gpu_is_a_device_of_its_own(make: Make, kind: str) -> None:
    rig = make(MACHINES[kind]())
    devices = rig.devices()
    assert [d.id for d in devices] == [gpu.uuid for gpu in rig.machine.gpus]
    for device, gpu in zip(devices, rig.machine.gpus, strict=True):
        assert (device.unit, device.resource, device.health) == (gpu.uuid, "nvidia.com/gpu", Health.HEALTHY)
        assert device.numa_nodes == (gpu.numa,)
        assert device.attributes["model"] == gpu.name
        assert device.attributes["computeCapability"] == gpu.compute
        assert device.attributes["memoryMiB"] == gpu.memory >> 20
        assert device.attributes["driverVersion"] == rig.machine.driver
        assert device.capacity == {"memory": gpu.memory}
        assert not list(device_errors(device))
        assert not list(device_warnings(device))
    assert not rig.skipped()


def test_attributes_keep_to_the_limits_of_dynamic_resource_allocation(make: Make) -> None:
    machine = sim.h100_mig()
    machine.change(0, name="NVIDIA " + "x" * 80)
    for device in make(machine, migStrategy="mixed").devices():
        assert all(len(name) <= 32 and name.isidentifier() for name in (*device.attributes, *device.capacity))
        assert all(not isinstance(value, str) or 0 < len(value) <= 64 for value in device.attributes.values())


def test_a_numa_node_that_the_firmware_did_not_tell_is_none(make: Make) -> None:
    machine = sim.one_t4()
    machine.change(0, numa=-1)
    assert make(machine).devices()[0].numa_nodes == ()


def test_a_gpu_that_comes_or_goes_is_seen_at_the_next_look(make: Make) -> None:
    rig = make(sim.l40s_pcie())
    assert len(rig.devices()) == 4
    gone = rig.machine.gpus.pop(1)
    rig.machine.load()
    assert gone.uuid not in [d.id for d in rig.devices()]
    rig.machine.gpus.insert(1, gone)
    rig.machine.load()
    (rig.root / "proc/driver/nvidia/gpus/0000:aa:00.0").mkdir(parents=True)  # NVML lists a new GPU only when it is initialised anew
    before = rig.plugin._session._nvml
    assert len(rig.devices()) == 4
    assert rig.plugin._session._nvml is not before


def test_three_hundred_gpus_are_three_hundred_devices(make: Make) -> None:
    rig = make(sim.many_t4(300))
    devices = rig.devices()
    assert len({d.id for d in devices}) == 300
    assert rig.plugin.prefer(devices, (), 8) is None


def test_of_two_gpus_with_one_uuid_the_first_is_advertised_and_the_second_told(make: Make) -> None:
    machine = sim.l40s_pcie()
    machine.gpus[2] = replace(machine.gpus[2], uuid=machine.gpus[1].uuid)
    rig = make(machine)
    assert [d.attributes["index"] for d in rig.devices()] == [0, 1, 3]
    assert "has the UUID of GPU number 1" in rig.skipped()["GPU number 2"]


def test_a_gpu_that_never_said_who_it_is_is_told_and_hides_no_other(make: Make) -> None:
    machine = sim.l40s_pcie()
    machine.rule("nvmlDeviceGetHandleByIndex", gpu=2, result=999)
    rig = make(machine)
    assert [d.attributes["index"] for d in rig.devices()] == [0, 1, 3]
    assert "does not tell its UUID" in rig.skipped()["GPU number 2"]


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetPciInfo"])
def test_a_gpu_that_falls_silent_is_unknown_and_its_siblings_are_well(make: Make, function: str) -> None:
    rig = make(sim.dgx_h100())
    whole = rig.devices()
    rig.machine.rule(function, gpu=3, result=999)
    assert list(rig.health()) == [3]
    assert rig.health()[3][0] is UNKNOWN
    assert [(d.id, d.resource, d.numa_nodes) for d in rig.devices()] == [(d.id, d.resource, d.numa_nodes) for d in whole]
    rig.machine.clear_rules()
    assert rig.health() == {}


@pytest.mark.parametrize("function", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryAffinity", "nvmlDeviceGetTopologyCommonAncestor"])
def test_a_question_that_a_healthy_gpu_need_not_answer_does_no_harm(make: Make, function: str) -> None:
    rig = make(sim.dgx_h100())
    rig.machine.rule(function, gpu=3, result=999)
    assert rig.health() == {}


def test_a_gpu_that_is_lost_stays_listed_as_what_it_was(make: Make) -> None:
    rig = make(sim.dgx_h100(), resources=[{"match": {"model": "*H100*", "index": 3}, "name": "gpu.best"}])
    before = rig.devices()
    rig.machine.lose(3)
    after = rig.devices()
    assert [(d.id, d.resource) for d in after] == [(d.id, d.resource) for d in before]
    assert rig.health() == {3: (UNHEALTHY, "lost")}


def test_a_gpu_that_was_lost_before_the_start_hides_no_other(make: Make) -> None:
    machine = sim.dgx_h100()
    machine.lose(3)
    rig = make(machine)
    assert len([d for d in rig.devices() if d.health is Health.HEALTHY]) == 7


def test_what_a_container_gets_is_asked_of_the_injector_by_uuid_and_index(make: Make) -> None:
    rig = make(sim.h100_mig(), migStrategy="mixed", injection={"deviceListStrategy": ["envvar"], "deviceIDStrategy": "index"})
    devices = rig.devices()
    assert rig.plugin.allocate(devices[1:3]).envs == {"NVIDIA_VISIBLE_DEVICES": "0:1,0:2"}
    assert rig.plugin.allocate(devices[1:3]) == rig.plugin.allocate(devices[1:3])


def test_a_device_that_went_a_look_ago_can_still_be_allocated_and_one_of_long_ago_is_named(make: Make) -> None:
    rig = make(sim.l40s_pcie(), injection={"deviceListStrategy": ["envvar"]})
    gone = rig.devices()[1]
    del rig.machine.gpus[1]
    rig.machine.load()
    rig.devices()
    assert rig.plugin.allocate([gone]).envs == {"NVIDIA_VISIBLE_DEVICES": gone.id}
    rig.devices()
    with pytest.raises(LookupError, match=gone.id):
        rig.plugin.allocate([gone])
