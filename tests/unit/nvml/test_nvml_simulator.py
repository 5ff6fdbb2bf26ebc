# SPDX-License-Identifier: Apache-2.0
"""What other programs ask of the simulated library and our binding does not."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin.testing import nvml as sim
from tests.oracles.nvml import library


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[sim.Scenario]:
    machine = sim.dgx_h100()
    machine.partition(1, *sim.H100_LAYOUTS["balanced"])
    with library(machine.install(tmp_path)):
        yield machine


def code(call: Any, *args: Any, **more: Any) -> int:
    with pytest.raises(pynvml.NVMLError) as caught:
        call(*args, **more)
    return int(caught.value.value)


def test_gpus_are_found_by_uuid_and_address(machine: sim.Scenario) -> None:
    for index, gpu in enumerate(machine.gpus):
        handles = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid), pynvml.nvmlDeviceGetHandleByPciBusId(f"0000{gpu.pci}".upper())
        assert [pynvml.nvmlDeviceGetIndex(h) for h in handles] == [index, index]
    assert code(pynvml.nvmlDeviceGetHandleByUUID, "GPU-none") == pynvml.NVML_ERROR_NOT_FOUND
    assert code(pynvml.nvmlDeviceGetHandleByPciBusId, "0000:ff:00.0") == pynvml.NVML_ERROR_NOT_FOUND
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 8) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_mig_devices_lead_to_their_gpu_until_they_are_gone(machine: sim.Scenario) -> None:
    mig = pynvml.nvmlDeviceGetHandleByUUID(machine.migs[2].uuid)
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
    assert pynvml.nvmlDeviceGetUUID(parent) == machine.gpus[1].uuid
    assert pynvml.nvmlDeviceIsMigDeviceHandle(mig)
    assert not pynvml.nvmlDeviceIsMigDeviceHandle(parent)
    assert pynvml.nvmlDeviceGetMemoryInfo(mig).total == 9984 << 20
    machine.partition(1, "7g.80gb")
    assert code(pynvml.nvmlDeviceGetUUID, mig) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert pynvml.nvmlDeviceGetMinorNumber(parent) == 1


def test_handles_that_are_none_are_refused(machine: sim.Scenario) -> None:
    for address in (1, 0xDEADBEEF, ctypes.addressof(ctypes.create_string_buffer(64))):
        handle = ctypes.cast(address, pynvml.c_nvmlDevice_t)
        assert code(pynvml.nvmlDeviceGetUUID, handle) == pynvml.NVML_ERROR_INVALID_ARGUMENT
        assert code(pynvml.nvmlEventSetWait, ctypes.cast(address, pynvml.c_nvmlEventSet_t), 0) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_a_structure_of_another_version_is_refused(machine: sim.Scenario) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert code(pynvml.nvmlDeviceGetMemoryInfo, handle, version=pynvml.nvmlMemory_v2 + 1) == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_later_layouts_of_a_structure_say_the_same(machine: sim.Scenario) -> None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    third = pynvml.c_nvmlGpuFabricInfo_v3_t()
    pynvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(third))
    assert (third.state, third.healthMask) == (3, 0x2AA)
    first, second = (pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, 2, version) for version in (1, 2))
    assert (first.id, first.memorySizeMB, first.multiprocessorCount) == (second.id, second.memorySizeMB, second.multiprocessorCount) == (9, 40448, 60)


def test_a_wait_in_pynvml_is_woken_by_an_event(machine: sim.Scenario) -> None:
    events = pynvml.nvmlEventSetCreate()
    handle = pynvml.nvmlDeviceGetHandleByIndex(5)
    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    assert code(pynvml.nvmlEventSetWait, events, 0) == pynvml.NVML_ERROR_TIMEOUT
    machine.inject_xid(5, 48)
    data = pynvml.nvmlEventSetWait(events, 5000)
    assert (pynvml.nvmlDeviceGetIndex(data.device), data.eventData, data.gpuInstanceId) == (5, 48, 0xFFFFFFFF)
    machine.lose(5)
    assert code(pynvml.nvmlEventSetWait, events, 5000) == pynvml.NVML_ERROR_GPU_IS_LOST
    pynvml.nvmlEventSetFree(events)
    assert code(pynvml.nvmlEventSetFree, events) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_nothing_answers_before_the_beginning_and_after_the_end(tmp_path: Path) -> None:
    with library(sim.one_t4().install(tmp_path)):
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlShutdown()
        assert code(pynvml.nvmlDeviceGetUUID, handle) == pynvml.NVML_ERROR_UNINITIALIZED
        assert code(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == "Tesla T4"


WORDS = [
    "gpu",
    "mig",
    "link",
    "event",
    "rule",
    "profile",
    "driver",
    "uuid",
    "pci",
    "tree",
    "compute",
    "=",
    "=0",
    '="',
    '"',
    " ",
    "\n",
    "#",
    "\0",
    "-1",
    "9" * 30,
]


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=300), st.integers().map(str)), max_size=30), cut=st.integers(0, 4000))
def test_no_text_harms_the_library(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], cut: int) -> None:
    machine = sim.h100_mig()
    folder = tmp_path_factory.mktemp("text")
    with library(machine.install(folder)):
        whole = machine.text()
        (folder / "scenario").write_text(whole[:cut] + "".join(pieces) + whole[cut:], encoding="utf-8")
        assert pynvml.nvmlDeviceGetCount() >= 0
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(pynvml.nvmlDeviceGetHandleByIndex(0), 0))
