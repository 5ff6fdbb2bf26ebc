# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from deviceplugin import cli, demo
from deviceplugin.demo import gpus
from deviceplugin.demo.cameras import Cameras
from deviceplugin.demo.gpus import Gpus
from deviceplugin.demo.stage import Stage
from deviceplugin.demo.story import seconds_without
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.events import EventLog


@pytest.mark.parametrize(("arguments", "steps"), [([], 14), (["--machine", "cameras"], 12)], ids=["gpus", "cameras"])
def test_every_step_does_what_it_says(arguments: list[str], steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *arguments]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^ ?(\d+)\. ", out, re.MULTILINE) == [str(number) for number in range(1, steps + 1)]
    assert f"All {steps} steps did what they say" in out
    assert "\033" not in out


def test_machine_that_there_is_not_is_a_mistake_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--machine", "toasters"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "gpus" in line
    assert "cameras" in line


class Glued(Cameras):
    """Its cameras cannot be pulled out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def unplug(self, host: SimulatedHost, serial: str) -> str:
        self._monkeypatch.setattr(Stage, "patience", 0.3)
        return "nothing happens"


def test_a_step_that_does_not_do_what_it_says_is_owned_up_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(machine=Glued(monkeypatch)) == 1
    out = capsys.readouterr().out
    assert "waited 0.3 s for the status of pod viewer to say Unhealthy" in out
    assert "| pid " in out, "the daemon's log is shown"
    assert out.endswith("This step did not do what it says.\n")


class Contagious(Gpus):
    """An error of one GPU is an error of its neighbour too."""

    def __init__(self) -> None:
        super().__init__()
        kept = ("A machine", "Start the daemon", "A pod asks for two", "A GPU that a pod uses breaks")
        self.steps = tuple(step for step in self.steps if step[0].startswith(kept))

    def hit(self, gpu: int, code: int) -> None:
        self.scenario.inject_xid((gpu + 1) % self.count, code)
        super().hit(gpu, code)


def test_fault_that_spreads_is_owned_up_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Contagious()
    monkeypatch.setattr(Stage, "patience", 2.0)
    assert demo.main(machine=machine) == 1
    assert capsys.readouterr().out.endswith("This step did not do what it says.\n")


def test_handover_that_leaves_a_gap_is_owned_up_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def deafen(stage: Stage) -> None:
        """Without the standby's socket nobody can hand over to it: it takes over when the lock is free."""
        for path in Path(stage.paths.locks).glob("*.heir"):
            path.unlink()

    machine = Gpus()
    kept = ("A machine", "Start the daemon", "Start a second", "Tell the first")
    *before, handover = (step for step in machine.steps if step[0].startswith(kept))
    machine.steps = (*before, ("Deafen the second", deafen), handover)
    monkeypatch.setattr(Stage, "patience", 5.0)
    assert demo.main(machine=machine) == 1
    assert re.search(r"without all its devices for \d+\.\d ms\n", capsys.readouterr().out)


def test_gpus_that_are_not_the_best_linked_are_owned_up_to(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Gpus()
    machine.links = {**machine.links, frozenset((0, 5)): 6}  # a cable that NVML knows nothing of
    assert demo.main(machine=machine) == 1
    assert "share 2 NVLinks, and others of the free ones 6" in capsys.readouterr().out


def test_picture_shows_every_link_once() -> None:
    machine = Gpus()
    numa = [gpu.numa for gpu in machine.scenario.gpus]
    lines = gpus.picture(machine.links, numa, "utf-8")
    double = {(0, 3), (2, 3), (1, 2), (4, 7), (6, 7), (5, 6), (0, 4), (1, 5)}
    assert {pair for pair, n in machine.links.items() if n == 2} == {frozenset(pair) for pair in double}
    drawn = "\n".join(line.partition("      ")[0] for line in (lines[0], *lines[2:])) + lines[1].rpartition("      and")[0]
    assert (drawn.count("══"), drawn.count("║"), drawn.count("│")) == (6, 2, 2)
    assert lines[1].endswith("and one each: 0-1 0-2 1-3 4-5 4-6 5-7")
    machine.links = {pair: n for pair, n in machine.links.items() if pair != {0, 3}}
    assert gpus.picture(machine.links, numa, "utf-8")[0].startswith("CPU 0  0    3 ══ 2")
    "\n".join(gpus.picture(machine.links, numa, "ascii")).encode("ascii")


def test_time_without_devices_counts_every_moment_from_the_first_loss_to_the_full_list() -> None:
    now = [0.0]
    events = EventLog(lambda: now[0])
    stage = cast(Stage, SimpleNamespace(resource="a/b", machine=SimpleNamespace(count=8), kubelet=SimpleNamespace(events=events)))

    def at(seconds: float, kind: str, resource: str = "a/b", **detail: object) -> None:
        now[0] = seconds
        events.record(kind, resource, **detail)

    at(1, "disconnected")
    mark = len(events)
    at(2, "list", healthy=8)
    at(3, "disconnected", "another/one")
    at(4, "stream ended")
    assert seconds_without(stage, mark) == 0.0
    at(5, "list", healthy=7)
    at(6, "disconnected")
    at(8, "list", healthy=8)
    assert seconds_without(stage, mark) == 3.0
    assert seconds_without(stage, 0) == 4.0


@pytest.mark.parametrize("end", [signal.SIGHUP, signal.SIGINT])
def test_demo_that_is_ended_leaves_nothing_behind(end: signal.Signals) -> None:
    command = [sys.executable, "-m", "deviceplugin", "demo", "--machine", "cameras"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        stage = next(psutil.Process(process.pid) for line in process.stdout if "had the list of devices" in line)
        (daemon,) = stage.children()
        place = daemon.cmdline()[daemon.cmdline().index("--root") + 1]
        process.send_signal(end)
        assert process.wait(10) == 128 + end
    assert not daemon.is_running()
    assert not os.path.exists(place)


def test_reader_who_has_seen_enough_is_no_failure() -> None:
    command = [sys.executable, "-m", "deviceplugin", "demo", "--machine", "cameras"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(10)) == ("", 0)
