# SPDX-License-Identifier: Apache-2.0
"""The tests for real hardware, on simulated hardware: they pass where all is well, and fail where it is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.nvml import Scenario, dgx1_v100, l40s_pcie, write_host
from tools import hardware

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
CUDA = r"""
#include <stdio.h>
#include <unistd.h>

static int started;

int cuInit(unsigned int flags) {
    started = flags == 0 && access("/dev/nvidiactl", R_OK | W_OK) == 0;
    return started ? 0 : 100;
}

int cuDeviceGetCount(int *count) {
    char path[32];
    if (!started) return 3;
    *count = 0;
    for (int minor = 0; minor < 16; minor++) {
        snprintf(path, sizeof path, "/dev/nvidia%d", minor);
        *count += access(path, R_OK | W_OK) == 0;
    }
    return 0;
}
"""


class Machine:
    """The scenario's GPUs below a root directory, with their driver's files."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.scenario = scenario
        self.host = SimulatedHost(folder / "root")
        self.library = scenario.install(folder / "lib")
        write_host(scenario, self.host.root)
        for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{gpu.minor}" for gpu in scenario.gpus)):
            self.host.device_file(f"/dev/{name}", major=195)
        for name in ("libcuda", "libnvidia-ml"):
            self.host.write(f"{LIBRARIES}/{name}.so.{scenario.driver}")
            self.host.link(f"{LIBRARIES}/{name}.so.1", f"{LIBRARIES}/{name}.so.{scenario.driver}")

    def compile_cuda(self, *options: str) -> None:
        target = self.host.path(f"{LIBRARIES}/libcuda.so.{self.scenario.driver}")
        command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-x", "c", "-", "-o", target, *options]
        subprocess.run(command, input=CUDA, text=True, check=True)

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        return run(f"--library={self.library}", f"--host-root={self.host.root}", *more)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/hardware.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda scenario: Machine(tmp_path, scenario)


def test_all_of_them_pass_on_the_simulator(make: Make) -> None:
    machine = make(dgx1_v100())
    machine.compile_cuda()
    ran = machine.run()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"GPUs: {len(machine.scenario.gpus)} x {machine.scenario.gpus[0].name}" in ran.stdout
    if os.geteuid() == 0:
        assert "test_cuda_starts_with_what_the_spec_names_and_nothing_else PASSED" in ran.stdout or "no mount namespace" in ran.stdout


def failed(ran: subprocess.CompletedProcess[str]) -> set[str]:
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return set(re.findall(r"::(test_\w+) FAILED", ran.stdout))


def test_missing_device_file_and_missing_link_are_found(make: Make) -> None:
    machine = make(l40s_pcie())
    os.unlink(machine.host.path("/dev/nvidia2"))
    os.unlink(machine.host.path(f"{LIBRARIES}/libcuda.so.1"))
    ends = failed(machine.run("-k", "opens or libraries"))
    assert ends == {"test_every_device_file_is_there_and_opens", "test_the_spec_names_the_drivers_libraries_and_all_that_it_names_is_there"}


def test_gpu_that_is_not_well_and_events_that_cannot_be_had_are_found(make: Make) -> None:
    machine = make(l40s_pcie())
    machine.scenario.rule("nvmlDeviceRegisterEvents", gpu=1, result=999)
    machine.scenario.change(3, remap_failure=1)
    ends = failed(machine.run("-k", "listed or listened"))
    assert ends == {"test_every_gpu_is_listed_once_healthy_and_by_its_uuid", "test_events_of_every_gpu_that_has_any_are_listened_to"}


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace takes root")
def test_driver_file_that_the_spec_does_not_name_is_missed_by_cuda(make: Make) -> None:
    machine = make(l40s_pcie())
    machine.compile_cuda("-Wl,--no-as-needed", "-lstdc++")  # stands for a library of the driver that libcuda needs and nobody mounts
    ran = machine.run("-k", "nothing_else")
    assert "no mount namespace" in ran.stdout or failed(ran) == {"test_cuda_starts_with_what_the_spec_names_and_nothing_else"}


def test_without_a_driver_it_says_so_and_ends_with_77(tmp_path: Path) -> None:
    ran = run(f"--library={tmp_path}/libnvidia-ml.so.1")
    assert (ran.returncode, ran.stdout) == (77, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("no NVIDIA driver here: library not found: ")


def test_driver_without_a_gpu_is_no_machine_to_test_on(make: Make) -> None:
    machine = make(Scenario())
    ran = machine.run()
    assert (ran.returncode, ran.stderr) == (77, f"no NVIDIA driver here: {machine.library} works and lists no GPU\n")


def test_run_on_the_simulator_is_never_recorded(make: Make, tmp_path: Path) -> None:
    ran = make(l40s_pcie()).run(f"--record={tmp_path}/page.md")
    assert ran.returncode == 2
    assert not (tmp_path / "page.md").exists()


REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite>
<testcase name="test_all_is_well"/>
<testcase name="test_cuda_starts"><skipped message="a mount namespace takes root"/></testcase>
<testcase name="test_files_open"><failure message="no"/></testcase>
</testsuite></testsuites>
"""


def test_record_replaces_the_last_run_and_nothing_above_it(tmp_path: Path) -> None:
    page, report = tmp_path / "page.md", tmp_path / "report.xml"
    report.write_text(REPORT, encoding="utf-8")
    page.write_text(f"# Runs\n\n{hardware.MARK}\nnothing yet\n", encoding="utf-8")
    for driver in ("1.2.3", "4.5.6"):
        hardware.record(page, {"driver": driver}, hardware.read(str(report)))
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# Runs\n\n{hardware.MARK}")
    assert "nothing yet" not in text
    assert "1.2.3" not in text
    assert text.splitlines()[-3:] == [
        "| all is well | passed |",
        "| cuda starts | skipped: a mount namespace takes root |",
        "| files open | **failed** |",
    ]
    assert "| driver | 4.5.6 |" in text


def test_page_without_the_mark_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Another page\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="nothing was written"):
        hardware.record(page, {}, [])
    assert page.read_text(encoding="utf-8") == "# Another page\n"


def test_the_projects_page_can_be_written() -> None:
    assert (ROOT / "docs/hardware-runs.md").read_text(encoding="utf-8").count(hardware.MARK) == 1
