# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import threading
import time

import pytest

from deviceplugin._native import nvml as native
from deviceplugin.testing import nvml as sim
from tests.unit.nvml.conftest import Start


def test_a_gpu_that_is_lost_is_lost_alone(start: Start) -> None:
    machine = sim.dgx_h100()
    nvml = start(machine)
    before = nvml.snapshot()
    machine.lose(3)
    after = nvml.snapshot()
    assert [g.lost for g in after.gpus] == [n == 3 for n in range(8)]
    assert after.gpus[3].failures == (native.Failure("nvmlDeviceGetHandleByIndex_v2", native.GPU_IS_LOST),)
    assert [g for g in after.gpus if g.index != 3] == [g for g in before.gpus if g.index != 3]
    assert {level for n, row in enumerate(after.ancestors) for m, level in enumerate(row) if n != 3 and m not in (3, n)} == {40, 50}
    machine.find(3)
    assert nvml.snapshot() == before


def test_a_gpu_lost_in_the_middle_of_a_look_is_asked_no_more(start: Start) -> None:
    machine = sim.dgx_h100()
    nvml = start(machine)
    machine.rule("nvmlDeviceGetMinorNumber", gpu=2, result=15)
    gpu = nvml.snapshot().gpus[2]
    assert gpu.lost
    assert gpu.uuid == machine.gpus[2].uuid
    assert gpu.bus_id == "0000:12:00.0"
    assert gpu.minor is None
    assert gpu.memory is None
    assert gpu.failures == (native.Failure("nvmlDeviceGetMinorNumber", 15),)


def test_a_handle_that_fails_hides_no_other_gpu(start: Start) -> None:
    machine = sim.l40s_pcie()
    nvml = start(machine)
    machine.rule("nvmlDeviceGetHandleByIndex", gpu=1, result=999)
    gpus = nvml.snapshot().gpus
    assert [g.uuid for g in gpus] == [machine.gpus[0].uuid, "", machine.gpus[2].uuid, machine.gpus[3].uuid]
    assert gpus[1].failures == (native.Failure("nvmlDeviceGetHandleByIndex_v2", 999),)
    assert not gpus[1].lost


def test_a_new_mig_layout_is_seen_at_the_next_look(start: Start) -> None:
    machine = sim.dgx_h100()
    nvml = start(machine)
    assert nvml.snapshot().gpus[0].migs == ()
    for layout, names in (
        ("balanced", ["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"]),
        ("media", ["1g.10gb+me", *["1g.10gb"] * 6]),
        ("shared-compute", ["1c.3g.40gb", "2c.3g.40gb", "2c.4g.40gb", "2c.4g.40gb"]),
        ("all-7g.80gb", ["7g.80gb"]),
        ("empty", []),
    ):
        machine.partition(0, *sim.H100_LAYOUTS[layout])
        gpu = nvml.snapshot().gpus[0]
        assert (gpu.mig_mode, [m.profile for m in gpu.migs]) == (1, names)
        assert [m.uuid for m in gpu.migs] == [m.uuid for m in machine.migs]
    machine.unpartition(0)
    assert nvml.snapshot().gpus[0].mig_mode == 0


def test_mig_devices_without_an_administrators_rights_take_the_name_that_nvml_gives(start: Start) -> None:
    machine = sim.h100_mig("media")
    nvml = start(machine)
    machine.rule("nvmlDeviceGetGpuInstanceById", result=4)
    assert [m.profile for m in nvml.snapshot().gpus[0].migs] == ["1g.10gb+me", *["1g.10gb"] * 6]


def test_links_lead_to_the_gpu_at_their_other_end(start: Start) -> None:
    gpus = start(sim.dgx1_v100()).snapshot().gpus
    double = {(g.index, n) for g in gpus for n in range(8) if sum(k.peer == n for k in g.links) == 2}
    assert all(len(g.links) == 6 and all(k.active and k.version == 2 for k in g.links) for g in gpus)
    assert double == {pair for a, b in ((0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)) for pair in ((a, b), (b, a))}


def test_switches_are_told_from_gpus(start: Start) -> None:
    gpu = start(sim.dgx_h100()).snapshot().gpus[0]
    assert len(gpu.links) == 18
    assert {k.remote_type for k in gpu.links} == {sim.TO_SWITCH}
    assert {k.peer for k in gpu.links} == {None}
    assert gpu.fabric is not None
    assert gpu.fabric.state == 3


def test_health_is_read_as_it_changes(start: Start) -> None:
    machine = sim.dgx_h100()
    nvml = start(machine)
    machine.inject_ecc(5)
    machine.change(5, remap_pending=1, remap_failure=1, temperature=91)
    gpu = nvml.snapshot().gpus[5]
    assert gpu.ecc == native.Ecc(True, True, 0, 0, 1, 1)
    assert gpu.remapped_rows == native.RemappedRows(0, 0, True, True)
    assert gpu.temperature == 91


def test_three_hundred_gpus_are_all_there(start: Start) -> None:
    snapshot = start(sim.many_t4(300)).snapshot()
    assert len({g.uuid for g in snapshot.gpus}) == len({g.bus_id for g in snapshot.gpus}) == 300
    assert [len(row) for row in snapshot.ancestors] == [300] * 300


def test_slow_calls_leave_the_interpreter_to_others(start: Start) -> None:
    machine = sim.one_t4()
    nvml = start(machine)
    machine.rule("nvmlDeviceGetUUID", delay=1)
    worker = threading.Thread(target=nvml.snapshot)
    worker.start()
    longest, last, looks = 0.0, time.monotonic(), 0
    while worker.is_alive():
        looks += 1
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert looks > 1000
    assert longest < 0.9


def test_threads_read_while_the_machine_changes(start: Start) -> None:
    machine = sim.h100_mig("all-1g.10gb")
    nvml = start(machine)
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                gpu = nvml.snapshot().gpus[0]
                assert gpu.uuid == machine.gpus[0].uuid
                assert len(gpu.migs) <= 7
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(60):
        machine.partition(0, *list(sim.H100_LAYOUTS.values())[n % len(sim.H100_LAYOUTS)])
    stop.set()
    for reader in readers:
        reader.join(10)
    assert errors == []


def test_values_cannot_be_changed(start: Start) -> None:
    gpu = start(sim.one_t4()).snapshot().gpus[0]
    with pytest.raises(AttributeError):
        gpu.uuid = "GPU-other"  # type: ignore[misc]
    assert hash(gpu) == hash(gpu)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps freed memory to itself")
def test_looking_again_and_again_takes_no_more_memory_nor_descriptors(start: Start) -> None:
    machine = sim.h100_mig("balanced")
    nvml = start(machine)

    def look(times: int) -> tuple[int, int]:
        for n in range(times):
            nvml.snapshot()
            if n % 20 == 0:
                with nvml.events() as events:
                    events.wait(0)
        return resident(), descriptors()

    look(200)
    memory, files = look(1)
    grown, still = look(1500)
    assert still == files
    assert grown - memory < 1 << 20


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
