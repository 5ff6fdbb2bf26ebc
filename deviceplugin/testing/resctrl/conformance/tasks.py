# SPDX-License-Identifier: Apache-2.0
"""Rules of what is in a group: tasks, CPUs, and groups that monitor (fs/resctrl/rdtgroup.c)."""

from __future__ import annotations

import errno
import re
from functools import partial

from deviceplugin.testing.resctrl.conformance.bench import PREFIX, Bench, Inapplicable, refused, require, same, write_refused
from deviceplugin.testing.resctrl.parsing import cpu_list, cpu_mask
from deviceplugin.testing.resctrl.tree import last_status

_NOBODY = (1 << 22) + 5
"""More than any process id (PID_MAX_LIMIT)."""


def tasks_are_in_one_group(bench: Bench) -> None:
    """They come from the root group, are moved by their number, and fall back when the group is removed; children follow their parent."""
    one, two = bench.make("a"), bench.make("b")
    same(bench.pids(one), set(), "the tasks of a new group")
    pid = bench.spawn(None)
    require(pid in bench.pids(""), f"the new process {pid} is not in the root group")
    bench.tree.write(f"{one}/tasks", f"{pid}\n".encode())
    same((bench.pids(one), pid in bench.pids("")), ({pid}, False), f"the tasks of the group that {pid} was moved to, and if the root group has it,")
    child = bench.spawn(pid)
    same(bench.pids(one), {pid, child}, "the tasks of the group after one had a child")
    bench.tree.write(f"{two}/tasks", str(pid).encode())  # here a newline is not needed
    same((bench.pids(one), bench.pids(two)), ({child}, {pid}), "the tasks of two groups after one was moved")
    bench.tree.rmdir(two)
    bench.tree.rmdir(one)
    require({pid, child} <= bench.pids(""), "tasks of groups that were removed are not in the root group")


def wrong_tasks_are_refused(bench: Bench) -> None:
    group = bench.make()
    lists = _takes_lists(bench, group)
    after = f"\nError while processing task {_NOBODY}" if lists else ""
    write_refused(bench, f"{group}/tasks", f"{_NOBODY}\n", f"No task {_NOBODY}{after}", errno.ESRCH)
    same(bench.pids(group), set(), "the tasks of the group")
    for text in ("x", "1 2", str(1 << 32)):
        write_refused(bench, f"{group}/tasks", f"{text}\n", f"Task list parsing error pid {text}" if lists else f"No task {_NOBODY}")
    write_refused(bench, f"{group}/tasks", "-1\n", "Invalid pid -1" if lists else f"No task {_NOBODY}")


def _takes_lists(bench: Bench, group: str) -> bool:
    """Whether ``tasks`` takes several numbers, or none: from Linux 6.7 on."""
    try:
        bench.tree.write(f"{group}/tasks", b"\n")
    except OSError:
        return False
    same(last_status(bench.tree), "ok", "the status after no task was written")
    return True


def lists_of_tasks_move_up_to_a_mistake(bench: Bench) -> None:
    group = bench.make()
    if not _takes_lists(bench, group):
        raise Inapplicable("this kernel takes one task at a time")
    one, two = bench.spawn(None), bench.spawn(None)
    bench.tree.write(f"{group}/tasks", f"{one},{two}\n".encode())
    same(bench.pids(group), {one, two}, "the tasks after a list")
    bench.tree.rmdir(group)
    bench.make()
    wrong = f"{one},{_NOBODY},{two}\n".encode()
    status = f"No task {_NOBODY}\nError while processing task {_NOBODY}"
    refused(bench, errno.ESRCH, status, lambda: bench.tree.write(f"{group}/tasks", wrong), what="a list with a number of no task")
    same(bench.pids(group), {one}, "the tasks after a list with a mistake in its midst")


def cpus_are_in_one_group(bench: Bench) -> None:
    """They come from the root group and fall back; the root group cannot be told to drop any."""
    group = bench.make()
    same((_cpus(bench, group), bench.text(f"{group}/cpus_list")), (set(), "\n"), "the CPUs of a new group")
    mine = sorted(_cpus(bench, ""))
    if not mine:
        raise Inapplicable("the root group has no CPU")
    bench.tree.write(f"{group}/cpus_list", f"{mine[-1]}\n".encode())
    same(
        (_cpus(bench, group), mine[-1] in _cpus(bench, "")), ({mine[-1]}, False), "the CPUs of the group, and whether the root group has one of them,"
    )
    refused(
        bench,
        errno.EINVAL,
        "Can't drop CPUs from default group",
        lambda: bench.tree.write("cpus_list", b"\n"),
        what="an empty list to the root group",
    )
    refused(bench, errno.EINVAL, "Bad CPU list/mask", lambda: bench.tree.write(f"{group}/cpus_list", b"x\n"), what="a CPU x")
    bench.tree.write(f"{group}/cpus", b"0\n")
    same((_cpus(bench, group), mine[-1] in _cpus(bench, "")), (set(), True), "the CPUs after a mask of none")
    bench.tree.write(f"{group}/cpus_list", f"{mine[-1]}\n".encode())
    bench.tree.rmdir(group)
    same(sorted(_cpus(bench, "")), mine, "the root group's CPUs after the group was removed")


def _cpus(bench: Bench, group: str) -> set[int]:
    """From ``cpus_list``, which must be what ``cpus`` says."""
    shown = bench.text(f"{group}/cpus".lstrip("/"))
    as_list, as_mask = cpu_list(bench.text(f"{group}/cpus_list".lstrip("/")), 1 << 16), cpu_mask(shown, 1 << 16)
    same(as_list, as_mask, "cpus_list, compared with cpus,")
    return as_list


def counters_are_per_cache(bench: Bench) -> None:
    """``mon_data`` has a directory for each L3, and in it a file for each event in ``mon_features``."""
    bench.need_monitors()
    group = bench.make()
    events = {event for event in bench.info("L3_MON/mon_features").split() if not event.endswith("_config")}
    require(bench.number("L3_MON/num_rmids") > 1, "there is no RMID for a group")
    for name in bench.tree.list(f"{group}/mon_data"):
        require(re.fullmatch(r"mon_[A-Z0-9]+_\d\d+", name) is not None, f"{name} is in mon_data")
        if name.startswith("mon_L3"):
            there = {event for event in bench.tree.list(f"{group}/mon_data/{name}") if not event.startswith("mon_sub")}
            same(there, events, f"the events in mon_data/{name}")
            for event in sorted(events):
                value = bench.text(f"{group}/mon_data/{name}/{event}")
                require(re.fullmatch(r"(\d+|Unavailable|Error|Unassigned)\n", value) is not None, f"{event} is {value!r}")


def monitors_take_from_their_group(bench: Bench) -> None:
    """A group that monitors is made in ``mon_groups``, takes tasks of its parent only, and gives them back to it."""
    bench.need_monitors()
    group = bench.make()
    monitor = f"{group}/mon_groups/m"
    bench.tree.mkdir(monitor)
    require({"tasks", "cpus", "cpus_list", "mon_data"} <= set(bench.tree.list(monitor)), f"{monitor} lacks files")
    require("schemata" not in bench.tree.list(monitor), f"{monitor} has a schemata file")
    pid = bench.spawn(None)
    status = rf"Can't move task to different control group(\nError while processing task {pid})?"
    refused(bench, errno.EINVAL, status, lambda: bench.tree.write(f"{monitor}/tasks", f"{pid}\n".encode()), what="a task of another group")
    bench.tree.write(f"{group}/tasks", f"{pid}\n".encode())
    bench.tree.write(f"{monitor}/tasks", f"{pid}\n".encode())
    same((bench.pids(monitor), bench.pids(group)), ({pid}, {pid}), "the tasks of the group that monitors, and of its parent,")
    bench.tree.rmdir(monitor)
    same(bench.pids(group), {pid}, "the tasks of the parent after the group that monitors was removed")
    for path in (f"{group}/mon_groups/mon_groups", f"{group}/mon_data/x"):
        refused(bench, errno.EPERM, None, partial(bench.tree.mkdir, path), what=f"mkdir {path}")


def only_monitors_are_renamed(bench: Bench) -> None:
    bench.need_monitors()
    one, two = bench.make("a"), bench.make("b")
    bench.tree.mkdir(f"{one}/mon_groups/m")
    pid = bench.spawn(None)
    for path in (one, f"{one}/mon_groups/m"):
        bench.tree.write(f"{path}/tasks", f"{pid}\n".encode())
    move = partial(bench.tree.rename, f"{one}/mon_groups/m")
    try:
        move(f"{two}/mon_groups/n")
    except PermissionError as error:
        raise Inapplicable("this kernel cannot rename groups") from error
    same(
        (bench.pids(one), bench.pids(two), bench.pids(f"{two}/mon_groups/n")), (set(), {pid}, {pid}), "the tasks after the group that has them moved"
    )
    refused(bench, errno.EPERM, "Source must be a MON group", lambda: bench.tree.rename(one, f"{PREFIX}c"), what="renaming a group")
    move = partial(bench.tree.rename, f"{two}/mon_groups/n")
    refused(
        bench,
        errno.EPERM,
        "Destination must be a mon_groups subdirectory",
        lambda: move(f"{PREFIX}c"),
        what="moving a group that monitors to the top",
    )


RULES = (
    tasks_are_in_one_group,
    wrong_tasks_are_refused,
    lists_of_tasks_move_up_to_a_mistake,
    cpus_are_in_one_group,
    counters_are_per_cache,
    monitors_take_from_their_group,
    only_monitors_are_renamed,
)
