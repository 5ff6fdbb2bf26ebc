# SPDX-License-Identifier: Apache-2.0
"""Real processes in a simulated resctrl."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deviceplugin.testing import fuse
from deviceplugin.testing.resctrl import SCENARIOS, MountedTree, SimResctrl
from deviceplugin.testing.resctrl.conformance import Bench, Rule, tasks
from deviceplugin.testing.resctrl.processes import RealTasks
from tests.hardware.test_resctrl import Family

REAL_RULES = (
    tasks.tasks_are_in_one_group,
    tasks.wrong_tasks_are_refused,
    tasks.lists_of_tasks_move_up_to_a_mistake,
    tasks.monitors_take_from_their_group,
)


@pytest.fixture
def family() -> Iterator[Family]:
    family = Family()
    yield family
    family.end()


@pytest.mark.parametrize("rule", REAL_RULES, ids=lambda rule: rule.__name__)
def test_the_rules_of_tasks_hold(rule: Rule, family: Family) -> None:
    bench = Bench(SimResctrl(SCENARIOS["skylake"], real=True), family.spawn)
    with bench.tidy():
        rule(bench)


def test_they_hold_behind_a_mount(family: Family) -> None:
    if lack := fuse.missing():
        pytest.skip(lack)
    with fuse.serve(SimResctrl(SCENARIOS["skylake"], real=True)) as directory:
        bench = Bench(MountedTree(directory), family.spawn)
        with bench.tidy():
            tasks.tasks_are_in_one_group(bench)


def test_a_thread_is_in_the_group_of_its_process_until_it_is_moved_itself() -> None:
    sim = SimResctrl(SCENARIOS["skylake"], real=True)
    sim.mkdir("a")
    sim.mkdir("b")
    sim.write("a/tasks", str(os.getpid()).encode())
    started, done = threading.Event(), threading.Event()

    def stay() -> None:
        started.set()
        done.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    started.wait()
    try:
        assert {str(os.getpid()), str(thread.native_id)} <= set(sim.read("a/tasks").decode().split())
        sim.write("b/tasks", f"{thread.native_id}\n".encode())
        assert sim.read("b/tasks").decode().split() == [str(thread.native_id)]
    finally:
        done.set()
        thread.join()
    assert sim.cpu_resctrl_groups(os.getpid()) == "res:a\nmon:\n"


def test_another_process_of_the_same_number_is_not_in_its_group(tmp_path: Path) -> None:
    def start(pid: int, parent: int, at: int) -> None:
        task = tmp_path / f"{pid}/task/{pid}"
        task.mkdir(parents=True, exist_ok=True)
        (task / "stat").write_text(f"{pid} (a) b)) S {parent} {' '.join('0' for _ in range(17))} {at} 0\n")

    start(1, 0, 1)
    start(7, 1, 100)
    tasks = RealTasks(str(tmp_path))
    tasks[7].closid = 3
    start(8, 7, 120)
    assert [(task.pid, task.closid) for task in tasks] == [(1, 0), (7, 3), (8, 3)]
    start(7, 1, 200)
    assert [(task.pid, task.closid) for task in tasks] == [(1, 0), (7, 0), (8, 3)]


def test_a_process_that_ends_is_in_no_group(family: Family) -> None:
    sim = SimResctrl(SCENARIOS["skylake"], real=True)
    sim.mkdir("a")
    pid = family.spawn(None)
    sim.write("a/tasks", str(pid).encode())
    family.end()
    assert sim.read("a/tasks") == b""
    with pytest.raises(ProcessLookupError):
        sim.write("a/tasks", str(pid).encode())
