# SPDX-License-Identifier: Apache-2.0
"""The tasks of this machine itself, for a simulated resctrl that real programs write real numbers into, such as a container runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from deviceplugin.testing.resctrl.tasks import Caller, Task


@dataclass(slots=True)
class RealTasks:
    """Every thread in /proc of this process's PID namespace, which stands for the host's.

    The kernel passes on a group at each fork. Here that is made up for when /proc is looked at, whenever tasks are listed or moved:
    a new task is in the groups that its process, or else its parent, is in by then.
    """

    proc: str = "/proc"
    _known: dict[tuple[int, int], Task] = field(default_factory=dict)
    """By number and time of start, since numbers come round again."""

    def __iter__(self) -> Iterator[Task]:
        """Process by process."""
        self._look()
        return iter(sorted(self._known.values(), key=lambda task: (task.process, task.pid)))

    def __getitem__(self, pid: int) -> Task:
        found = self.find(pid, Caller())
        if found is None:
            raise KeyError(pid)
        return found

    def find(self, number: int, caller: Caller) -> Task | None:
        """A task by its number."""
        return next((task for task in self if task.pid == number), None)

    def _look(self) -> None:
        there: dict[tuple[int, int], Task] = {}
        for process in filter(str.isdecimal, os.listdir(self.proc)):
            try:
                threads = os.listdir(f"{self.proc}/{process}/task")
            except OSError:  # it ended meanwhile
                continue
            for thread in threads:
                if status := self._status(f"{self.proc}/{process}/task/{thread}/stat"):
                    parent, start = status
                    key = int(thread), start
                    there[key] = self._known.get(key) or Task(key[0], int(process), parent, closid=-1)
        self._known = there
        by_pid = {task.pid: task for task in there.values()}
        for task in there.values():
            self._inherit(task, by_pid)

    def _inherit(self, task: Task, by_pid: dict[int, Task]) -> None:
        if task.closid >= 0:
            return
        above = by_pid.get(task.process if task.pid != task.process else task.parent)
        if above is None:
            task.closid = 0
            return
        self._inherit(above, by_pid)
        task.closid, task.rmid = above.closid, above.rmid

    @staticmethod
    def _status(path: str) -> tuple[int, int] | None:
        """Parent and time of start (proc_pid_stat(5)), None for a task that is gone."""
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return None
        return int(fields[1]), int(fields[19])
