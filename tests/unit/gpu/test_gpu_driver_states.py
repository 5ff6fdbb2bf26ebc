# SPDX-License-Identifier: Apache-2.0
"""Drivers that are missing, late, restarted, or deadly."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deviceplugin import Device, Health, Host, Skipped
from deviceplugin.plugins.gpu import Gpu, GpuConfig, probe, session
from deviceplugin.plugins.gpu.probe import Probe
from deviceplugin.testing import nvml as sim
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import UNKNOWN


def test_without_a_library_there_are_no_gpus_and_no_error(tmp_path: Path) -> None:
    plugin = Gpu(GpuConfig(), Host(str(tmp_path)))
    found = list(plugin.discover())
    assert [type(one) for one in found] == [Skipped]
    assert isinstance(found[0], Skipped)
    assert "library not found" in found[0].reason
    plugin.stop()


def test_a_driver_that_is_loaded_later_is_noticed_through_its_device_file(make: Make) -> None:
    machine = sim.dgx_h100()
    rig = make(machine)
    machine.unload()
    assert rig.devices() == []
    assert "driver not loaded" in rig.skipped()["NVIDIA driver"]
    thread, reasons = rig.background()
    (rig.root / "dev").mkdir()
    while not reasons:
        (rig.root / "dev/nvidiactl").touch()
        (rig.root / "dev/nvidiactl").unlink()
        thread.join(0.01)
    assert reasons[0] == "files"
    machine.load()
    assert len(rig.devices()) == 8
    rig.plugin.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_driver_that_is_unloaded_takes_its_gpus_and_brings_them_back_heard(make: Make) -> None:
    rig = make(sim.dgx_h100())
    assert len(rig.devices()) == 8
    thread, reasons = rig.background()
    while "registered" not in reasons:
        thread.join(0.01)
    rig.machine.unload()
    assert rig.devices() == []
    assert "driver not loaded" in rig.skipped()["NVIDIA driver"]
    rig.machine.load()
    rig.load_driver()
    assert len(rig.devices()) == 8
    while reasons.count("registered") < 2:
        thread.join(0.01)
    rig.machine.inject_xid(3, 79)
    while not any(getattr(reason, "data", 0) == 79 for reason in reasons):
        thread.join(0.01)
    assert list(rig.health()) == [3]
    rig.plugin.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(("code", "state"), [(18, "driver and library versions differ"), (999, "initialisation failed")])
def test_a_driver_that_is_there_and_does_not_work_makes_its_gpus_unknown(make: Make, code: int, state: str) -> None:
    rig = make(sim.dgx_h100())
    before = rig.devices()
    rig.machine.rule("nvmlInit", result=code)
    rig.machine.rule("*", result=1)
    found = rig.found()
    devices = [one for one in found if isinstance(one, Device)]
    assert [(d.id, d.health, d.cause) for d in devices] == [(d.id, UNKNOWN, "driver") for d in before]
    assert [one.reason.startswith(f"cannot be asked: {state}") for one in found if isinstance(one, Skipped)] == [True]
    rig.machine.clear_rules()
    assert {d.health for d in rig.devices()} == {Health.HEALTHY}


def test_a_library_that_crashes_does_not_take_the_daemon_with_it(make: Make) -> None:
    machine = sim.dgx_h100()
    machine.rule("nvmlInit", crash=True)
    rig = make(machine)
    assert rig.devices() == []
    assert "crashes when it initialises" in rig.skipped()["NVIDIA driver"]
    machine.clear_rules()
    assert rig.devices() == []
    rig.now += probe.RETRY
    rig.plugin._session.probe._at -= probe.RETRY
    assert len(rig.devices()) == 8


def test_the_library_is_tried_once_for_each_file_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    run = subprocess.Popen

    def count(*args: object, **more: object) -> object:
        started.append(args)
        return run(*args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", count)
    library = sim.one_t4().install(tmp_path)
    prober = Probe()
    for driver in ("1", "1", "2"):
        assert prober.fault([str(library)], driver) == ""
    assert len(started) == 2
    sim.one_t4().install(tmp_path)
    assert prober.fault([str(library)], "2") == ""
    assert len(started) == 3


def test_a_library_that_hangs_is_given_up_on_and_tried_again_later(tmp_path: Path) -> None:
    machine = sim.one_t4()
    machine.rule("nvmlInit", delay=30)
    library = str(machine.install(tmp_path))
    now = [0.0]
    prober = Probe(lambda: now[0], timeout=1.0)
    assert "did not initialise within 1 s" in prober.fault([library], "")
    began = time.monotonic()
    assert prober.fault([library], "")
    assert time.monotonic() - began < 0.9
    machine.clear_rules()
    now[0] = probe.RETRY
    assert Probe(timeout=10).fault([library], "") == ""


def test_a_first_look_waits_for_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LEAVE", 30.0)
    rig = make(sim.dgx_h100())
    began = time.monotonic()
    assert len(rig.devices()) == 8
    assert time.monotonic() - began < 10.0


def test_the_plugin_brings_no_other_binding_of_nvml() -> None:
    program = "import sys, deviceplugin.plugins.gpu; print([m for m in sys.modules if 'pynvml' in m])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_stopping_ends_a_watch_that_waits_for_a_driver(make: Make) -> None:
    machine = sim.one_t4()
    rig = make(machine)
    machine.unload()
    rig.devices()
    thread, _ = rig.background()
    rig.plugin.stop()
    thread.join(10)
    assert not thread.is_alive()
