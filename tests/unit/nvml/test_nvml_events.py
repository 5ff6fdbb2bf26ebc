# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time

import pytest

from deviceplugin._native import nvml as native
from deviceplugin.testing import nvml as sim
from tests.unit.nvml.conftest import Start


def xid(machine: sim.Scenario, gpu: int, number: int) -> native.Event:
    return native.Event(native.XID, number, gpu, machine.gpus[gpu].uuid, None, None)


def test_an_xid_reaches_a_waiting_thread_at_once(start: Start) -> None:
    machine = sim.dgx_h100()
    with start(machine).events() as events:
        got: list[tuple[native.Event | None, float]] = []
        waiter = threading.Thread(target=lambda: got.append((events.wait(10), time.monotonic())))
        waiter.start()
        told = time.monotonic()
        machine.inject_xid(3, 79)
        waiter.join(10)
        assert got[0][0] == xid(machine, 3, 79)
        assert got[0][1] - told < 1


def test_events_come_in_order_each_once_and_none_from_before(start: Start) -> None:
    machine = sim.dgx_h100()
    nvml = start(machine)
    machine.inject_xid(0, 13)
    with nvml.events() as events:
        machine.inject_xid(5, 31)
        machine.inject_ecc(2)
        machine.inject_xid(1, 94, gi=2, ci=0)
        uuids = [g.uuid for g in machine.gpus]
        assert [events.wait(5) for _ in range(3)] == [
            xid(machine, 5, 31),
            native.Event(native.DOUBLE_BIT_ECC, 0, 2, uuids[2], None, None),
            native.Event(native.XID, 94, 1, uuids[1], 2, 0),
        ]
        assert events.wait(0) is None


def test_a_gpu_is_registered_for_what_it_supports_and_no_more(start: Start) -> None:
    machine = sim.dgx_h100()
    machine.change(1, events=0x8)
    machine.change(2, events=0)
    machine.change(3, events=-1)
    machine.lose(4)
    machine.change(5, events=0x4)
    with start(machine).events(native.XID | native.DOUBLE_BIT_ECC) as events:
        assert events.registered == {0: 0xA, 1: 0x8, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0xA, 7: 0xA}
        assert events.failures == {2: native.NOT_SUPPORTED, 3: native.NOT_SUPPORTED, 4: native.GPU_IS_LOST, 5: native.NOT_SUPPORTED}
        machine.inject(1, native.DOUBLE_BIT_ECC)
        machine.inject_xid(1, 48)
        assert events.wait(5) == xid(machine, 1, 48)


def test_a_gpu_that_is_lost_is_told_once_and_the_others_go_on(start: Start) -> None:
    machine = sim.dgx_h100()
    with start(machine).events() as events:
        machine.inject_xid(3, 79)
        machine.lose(3)
        machine.lose(6)
        assert events.wait(5) == xid(machine, 3, 79)
        lost = [events.wait(5), events.wait(5)]
        assert lost == [native.Event(native.LOST, 0, n, machine.gpus[n].uuid, None, None) for n in (3, 6)]
        assert events.wait(0) is None
        machine.inject_xid(0, 48)
        assert events.wait(5) == xid(machine, 0, 48)
        machine.lose(0)
        assert events.wait(5) == native.Event(native.LOST, 0, 0, machine.gpus[0].uuid, None, None)


def test_a_wait_is_over_in_time_or_when_woken_or_closed(start: Start) -> None:
    nvml = start(sim.one_t4())
    events = nvml.events()
    began = time.monotonic()
    assert events.wait(0.15) is None
    assert 0.14 <= time.monotonic() - began < 2
    for end in (events.wake, events.close):
        got: list[native.Event | None] = []
        waiter = threading.Thread(target=lambda got=got: got.append(events.wait()))
        waiter.start()
        end()
        waiter.join(5)
        assert got == [None]
    assert events.closed
    assert events.wait() is None
    with pytest.raises(ValueError, match="closed"):
        events.wake()


def test_two_threads_cannot_wait_on_one_set(start: Start) -> None:
    nvml = start(sim.one_t4())
    outcomes: list[str] = []
    with nvml.events() as events:

        def wait() -> None:
            try:
                events.wait()
                outcomes.append("woken")
            except RuntimeError as error:
                outcomes.append(str(error))
                events.wake()

        waiters = [threading.Thread(target=wait) for _ in range(2)]
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.join(5)
    assert sorted(outcomes) == ["another thread waits on this event set already", "woken"]


def test_a_driver_that_goes_away_ends_the_wait_with_an_error(start: Start) -> None:
    machine = sim.one_t4()
    with start(machine).events() as events:
        machine.unload()
        with pytest.raises(native.NvmlError) as caught:
            events.wait(5)
        assert caught.value.code == 9


def test_an_open_event_set_keeps_nvml_until_it_is_closed(start: Start) -> None:
    machine = sim.one_t4()
    nvml = start(machine)
    events = nvml.events()
    nvml.close()
    machine.inject_xid(0, 48)
    assert events.wait(5) == xid(machine, 0, 48)
    events.close()


def test_a_changing_partition_is_an_event_too(start: Start) -> None:
    machine = sim.dgx_h100()
    with start(machine).events() as events:
        machine.partition(2, "7g.80gb")
        machine.inject(2, native.MIG_CONFIG_CHANGE)
        event = events.wait(5)
    assert event is not None
    assert (event.type, event.gpu) == (native.MIG_CONFIG_CHANGE, 2)
