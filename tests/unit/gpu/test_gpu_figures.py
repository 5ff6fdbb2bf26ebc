# SPDX-License-Identifier: Apache-2.0
"""The figures of each GPU, as the driver's library has them; pynvml asks the same library and must say the same."""

from __future__ import annotations

import pynvml
import pytest

from deviceplugin import Measurement
from deviceplugin.plugins.gpu.figures import MEASURES
from deviceplugin.testing import nvml
from tests.oracles.nvml import library
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import Rig


def figures(rig: Rig) -> dict[tuple[str, str, tuple[str, ...]], float]:
    """By measure, device and labels."""
    found = list(rig.plugin.measure())
    assert all(isinstance(one, Measurement) and len(one.labels) == len(MEASURES[one.measure].labels) for one in found)
    keyed = {(one.measure, one.device, one.labels): float(one.value) for one in found}
    assert len(keyed) == len(found), "no series twice"
    return keyed


def test_the_figures_are_those_of_the_library(make: Make) -> None:
    machine = nvml.dgx_h100()
    machine.change(3, temperature=71, power=512_345, use_gpu=97, use_memory=40, used=7 << 30, ecc_corrected_volatile=5, remap_corrected=2)
    rig = make(machine)
    rig.devices()
    found = figures(rig)
    with library(rig.library):
        for number in range(8):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            use = pynvml.nvmlDeviceGetUtilizationRates(handle)
            expected = {
                "gpu_temperature_celsius": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
                "gpu_power_watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                "gpu_power_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
                "gpu_utilization_ratio": use.gpu / 100,
                "gpu_memory_utilization_ratio": use.memory / 100,
                "gpu_memory_total_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).total,
                "gpu_memory_used_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used,
            }
            assert {name: found[name, uuid, ()] for name in expected} == pytest.approx(expected)
            assert found["gpu_ecc_errors_total", uuid, ("corrected", "load")] == pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC
            )
            corrected, _, pending, failure = pynvml.nvmlDeviceGetRemappedRows(handle)
            assert found["gpu_remapped_rows_total", uuid, ("corrected",)] == corrected
            assert (found["gpu_row_remap_pending", uuid, ()], found["gpu_row_remap_failed", uuid, ()]) == (pending, failure)
            assert found["gpu_nvlinks", uuid, ("up",)] == 18


def test_what_a_gpu_cannot_answer_is_left_out(make: Make) -> None:
    machine = nvml.one_t4()
    machine.change(0, power=-1, use_gpu=-1)
    rig = make(machine)
    (device,) = rig.devices()
    found = {measure for measure, _, _ in figures(rig)}
    assert {"gpu_info", "gpu_temperature_celsius", "gpu_memory_total_bytes"} <= found
    assert not {"gpu_power_watts", "gpu_utilization_ratio", "gpu_nvlinks"} & found
    assert figures(rig)["gpu_info", device.id, ("Tesla T4", device.attributes["pciAddress"], "0", device.attributes["driverVersion"])] == 1  # type: ignore[index]


def test_xids_are_counted_those_that_harm_nobody_too(make: Make) -> None:
    rig = make(nvml.dgx_h100())
    rig.devices()
    rig.listen()
    for code in (79, 31, 31):
        rig.machine.inject_xid(2, code)
        rig.next()
        rig.devices()
    uuid = rig.machine.gpus[2].uuid
    found = {key: value for key, value in figures(rig).items() if key[0] == "gpu_xids_total"}
    assert found == {("gpu_xids_total", uuid, ("79",)): 1, ("gpu_xids_total", uuid, ("31",)): 2}


def test_without_a_driver_there_are_no_figures_and_no_error(make: Make) -> None:
    rig = make(nvml.dgx_h100())
    assert figures(rig) == {}, "NVML was not opened yet"
    rig.devices()
    rig.plugin.stop()
    assert figures(rig) == {}
