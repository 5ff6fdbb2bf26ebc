# SPDX-License-Identifier: Apache-2.0
"""Faults, what they reach, and when they are over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from deviceplugin import Health, Recovery, Rule
from deviceplugin.plugins.gpu import Gpu, GpuConfig, xid
from deviceplugin.testing import nvml as sim
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import UNHEALTHY, UNKNOWN, Rig

OURS = [13, 31, 43, 45, 68, 109, 8, 63, 69, 92, 154]
RESET = [46, 48, 62, 64, 74, 79, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158]


def tell(rig: Rig, gpu: int, code: int, **instances: int) -> None:
    rig.machine.inject_xid(gpu, code, **instances)
    rig.next()


@pytest.mark.parametrize("code", OURS)
def test_an_error_of_an_application_is_not_the_gpus(make: Make, code: int) -> None:
    rig = make(sim.dgx_h100())
    rig.devices()
    rig.listen()
    tell(rig, 3, code)
    assert rig.advertised() == {}


@pytest.mark.parametrize("code", RESET)
def test_an_error_that_needs_a_reset_holds_until_one(make: Make, code: int) -> None:
    rig = make(sim.dgx_h100())
    assert rig.advertised() == {}
    rig.listen()
    tell(rig, 3, code)
    for _ in range(3):
        assert rig.advertised() == {3: (UNHEALTHY, f"xid:{code}")}
        rig.now += 3600
    rig.load_driver()
    assert rig.advertised() == {}


def test_the_table_has_an_action_and_a_meaning_for_each_code_that_the_peer_ignores_or_the_catalog_calls_fatal() -> None:
    assert all(xid.TABLE[code][1] == "ignore" for code in OURS)
    assert all(xid.TABLE[code][1] == "reset" for code in RESET)
    assert all(1 <= code <= xid.MAX_CODE and words for code, (words, _) in xid.TABLE.items())
    assert xid.meaning(4000) == "not in this version's table"


def test_a_code_that_nobody_knows_is_not_taken_for_harmless(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.advertised()
    rig.listen()
    tell(rig, 0, 500)
    assert rig.advertised() == {0: (UNHEALTHY, "xid:500")}
    rig.now += 3600
    assert rig.advertised() == {0: (UNHEALTHY, "xid:500")}


def test_the_configuration_decides_by_code(make: Make) -> None:
    rig = make(sim.dgx_h100(), faults={"xids": {79: "never", 13: 60, 48: "ignore", "31": "reset", "default": "ignore"}})
    rig.advertised()
    rig.listen()
    for gpu, code in enumerate((79, 13, 48, 31, 500)):
        tell(rig, gpu, code)
    bad = {0: (UNHEALTHY, "xid:79"), 1: (UNHEALTHY, "xid:13"), 3: (UNHEALTHY, "xid:31")}
    assert rig.advertised() == bad
    assert rig.advertised() == bad
    rig.now += 60
    assert rig.advertised() == {0: bad[0], 3: bad[3]}
    rig.load_driver()
    assert rig.advertised() == {0: bad[0]}


def test_a_rule_for_a_code_that_no_table_has_is_said_and_kept(parse: Callable[..., GpuConfig], caplog: pytest.LogCaptureFixture) -> None:
    plugin = Gpu(parse(faults={"xids": {4711: 5}}))
    assert plugin.recovery["xid:4711"] == Rule(Recovery.QUIET, 5.0)
    assert "4711" in caplog.text


def test_rules_are_there_for_every_cause_that_can_be_told() -> None:
    rules = Gpu().recovery
    assert rules["xid"] == rules["xid:79"] == rules["lost"] == rules["ecc"] == rules["remap-pending"] == Rule(Recovery.RESET)
    assert rules["remap-failure"] == Rule(Recovery.NEVER)
    assert rules["xid:94"] == rules["ecc:contained"] == Rule(Recovery.QUIET, 300.0)
    assert "xid:13" not in rules


def test_a_fault_reaches_every_mig_device_of_its_gpu_and_no_other_gpu(make: Make) -> None:
    machine = sim.dgx_h100()
    machine.partition(2, "3g.40gb", "3g.40gb")
    machine.partition(3, "1g.10gb")
    rig = make(machine, migStrategy="mixed")
    rig.devices()
    rig.listen()
    tell(rig, 2, 95, gi=1, ci=0)
    assert {d.id for d in rig.devices() if d.health is not Health.HEALTHY} == {mig.uuid for mig in machine.migs if mig.gpu == 2}


def test_a_fault_is_told_until_a_look_was_quick_enough_to_count(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.devices()
    rig.listen()
    tell(rig, 3, 79)
    next(rig.plugin.discover())  # given up on
    looking = rig.plugin.discover()
    next(looking)
    rig.now += 29
    list(looking)  # so late that nobody may have waited
    assert rig.health() == {3: (UNHEALTHY, "xid:79")}
    assert rig.health() == {}


def test_an_event_between_a_look_and_its_report_is_told_by_the_next(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.devices()
    rig.listen()
    looking = rig.plugin.discover()
    next(looking)
    tell(rig, 3, 79)
    list(looking)
    assert rig.health() == {3: (UNHEALTHY, "xid:79")}


def test_the_graver_of_two_faults_is_the_one_that_is_told(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.devices()
    rig.listen()
    tell(rig, 3, 94)
    tell(rig, 3, 79)
    assert rig.health() == {3: (UNHEALTHY, "xid:79")}
    rig.machine.change(3, remap_failure=1)
    assert rig.health() == {3: (UNHEALTHY, "remap-failure")}


def test_faults_outlive_the_daemon_and_a_new_one_does_not_take_its_start_for_a_reset(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.advertised()
    rig.listen()
    tell(rig, 3, 79)
    rig.advertised()
    rig.restart_daemon()
    assert rig.advertised() == {3: (UNHEALTHY, "xid:79")}
    rig.now += 3600
    assert rig.advertised() == {3: (UNHEALTHY, "xid:79")}
    rig.restart_daemon()
    rig.load_driver()
    assert rig.advertised() == {}


def test_that_a_lost_gpu_answers_again_is_no_proof(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.advertised()
    rig.machine.lose(3)
    assert rig.advertised() == {3: (UNHEALTHY, "lost")}
    rig.machine.find(3)
    assert rig.health() == {}
    assert rig.advertised() == {3: (UNHEALTHY, "lost")}
    pci = rig.root / "sys/bus/pci/devices" / rig.machine.gpus[3].pci
    pci.rename(pci.with_name("gone"))  # removed from its bus, and found by a rescan
    pci.mkdir()
    assert rig.advertised() == {}


def test_a_lost_gpu_tells_the_watcher_at_once(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.devices()
    rig.listen()
    rig.machine.lose(3)
    rig.next()
    assert rig.health() == {3: (UNHEALTHY, "lost")}


def test_rows_that_wait_to_be_remapped_need_a_reset_and_a_reset_that_remaps_them_is_believed(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.advertised()
    rig.listen()
    tell(rig, 3, 64)
    rig.machine.change(3, remap_pending=1)
    assert rig.advertised() == {3: (UNHEALTHY, "remap-pending")} or rig.advertised() == {3: (UNHEALTHY, "xid:64")}
    assert list(rig.advertised()) == [3]
    rig.machine.change(3, remap_pending=0, remap_uncorrected=1)
    assert rig.advertised() == {}
    tell(rig, 3, 79)
    assert rig.advertised() == {3: (UNHEALTHY, "xid:79")}
    assert rig.advertised() == {3: (UNHEALTHY, "xid:79")}, "the reset before the fault does not end it"


def test_a_failure_to_remap_is_for_good(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.machine.change(3, remap_failure=1)
    assert rig.advertised() == {3: (UNHEALTHY, "remap-failure")}
    rig.machine.change(3, remap_failure=0)
    rig.load_driver()
    assert rig.advertised() == {3: (UNHEALTHY, "remap-failure")}


def test_pages_that_wait_to_be_retired_need_a_reset(make: Make) -> None:
    rig = make(sim.dgx1_v100())
    rig.machine.change(5, retired_pending=1)
    assert rig.advertised() == {5: (UNHEALTHY, "retired-pending")}
    rig.machine.change(5, retired_pending=0)
    assert rig.advertised() == {}


def test_uncorrected_memory_errors_need_a_reset_where_they_are_not_contained(make: Make) -> None:
    rig = make(sim.dgx1_v100())
    rig.machine.change(0, ecc_uncorrected_volatile=7)
    assert rig.advertised() == {}, "errors of long ago were dealt with long ago"
    rig.machine.inject_ecc(0)
    assert rig.advertised() == {0: (UNHEALTHY, "ecc")}
    rig.now += 3600
    assert rig.advertised() == {0: (UNHEALTHY, "ecc")}
    rig.machine.change(0, ecc_uncorrected_volatile=0)  # counted since the driver was loaded or the GPU reset
    assert rig.advertised() == {}


def test_contained_memory_errors_end_after_a_quiet_time(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.advertised()
    rig.listen()
    rig.machine.inject_ecc(0)
    rig.next()
    assert rig.advertised() == {0: (UNHEALTHY, "ecc:contained")}
    rig.advertised()
    rig.now += 299
    assert rig.advertised() == {0: (UNHEALTHY, "ecc:contained")}
    rig.now += 1
    assert rig.advertised() == {}


def test_corrected_errors_do_no_harm(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.advertised()
    rig.machine.inject_ecc(0, uncorrected=False)
    assert rig.advertised() == {}


def test_levels_can_be_ignored(make: Make) -> None:
    rig = make(sim.dgx_h100(), faults={"remapPending": "ignore", "eccContained": "ignore", "lost": 0})
    rig.advertised()
    rig.machine.change(0, remap_pending=1)
    rig.machine.inject_ecc(1)
    assert rig.advertised() == {}
    rig.machine.lose(2)
    assert rig.advertised() == {2: (UNHEALTHY, "lost")}
    rig.machine.find(2)
    assert rig.advertised() == {}


def test_a_gpu_that_says_it_needs_a_reset_is_unhealthy(make: Make) -> None:
    rig = make(sim.dgx_h100())
    rig.devices()
    rig.machine.rule("nvmlDeviceGetTemperature", gpu=4, result=16)
    assert rig.health() == {4: (UNHEALTHY, "reset-required")}


def test_gpus_whose_events_nobody_watches_become_unknown_after_a_time(make: Make) -> None:
    rig = make(sim.dgx_h100(), monitorTimeout=60)
    assert rig.health() == {}
    rig.now += 60
    assert rig.health() == {}
    rig.now += 1
    assert rig.health() == dict.fromkeys(range(8), (UNKNOWN, "monitor"))
    rig.listen()
    assert rig.health() == {}


def test_a_monitor_that_dies_is_noticed(make: Make) -> None:
    rig = make(sim.dgx_h100(), monitorTimeout=60)
    rig.devices()
    rig.listen()
    rig.now += 61
    assert rig.health() == dict.fromkeys(range(8), (UNKNOWN, "monitor"))


def test_a_gpu_whose_events_are_refused_becomes_unknown_alone_and_well_once_they_are_not(make: Make) -> None:
    machine = sim.dgx_h100()
    machine.rule("nvmlDeviceRegisterEvents", gpu=3, result=999)
    rig = make(machine, monitorTimeout=60)
    rig.devices()
    rig.listen()
    for later in (0, 29):
        rig.now += later
        tell(rig, 0, 13)  # the others are heard
        assert rig.health() == {}
    rig.now += 31
    assert rig.health() == {}
    assert rig.next() == "registered"  # it is tried anew
    rig.now += 1
    assert rig.health() == {3: (UNKNOWN, "monitor")}
    machine.clear_rules()
    rig.now += 31
    assert rig.health() == {3: (UNKNOWN, "monitor")}
    assert rig.next() == "registered"
    assert rig.health() == {}


@pytest.mark.parametrize("events", [-1, 0, 0x1], ids=["unsupported", "none", "no-xids"])
def test_a_gpu_too_old_for_events_is_well_without(make: Make, events: int) -> None:
    machine = sim.Scenario([replace(sim.T4, pci="0000:10:00.0", minor=0, events=events)])
    rig = make(machine, monitorTimeout=60)
    rig.devices()
    rig.listen()
    rig.now += 3600
    assert rig.health() == {}


def test_an_event_that_names_no_gpu_is_said_and_harms_none(caplog: pytest.LogCaptureFixture) -> None:
    from deviceplugin._native.nvml import XID, Event
    from deviceplugin.plugins.gpu.config import Faults
    from deviceplugin.plugins.gpu.health import Judge

    with caplog.at_level(logging.ERROR):
        Judge(Faults(), 60.0).hear([Event(XID, 79, None, "", None, None)])
    assert "XID 79 (GPU has fallen off the bus) without saying of which GPU" in caplog.text
