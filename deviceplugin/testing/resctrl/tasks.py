# SPDX-License-Identifier: Apache-2.0
"""The processes and threads of a simulated machine, as far as resctrl knows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

HOST = ""
"""The name of the initial PID namespace."""

_FIRST = 1000


@dataclass(eq=False, slots=True)
class Task:
    """A thread. ``pid`` and ``process`` (the thread group) are the host's numbers; ``inner`` is that in a ``namespace`` other than the host's."""

    pid: int
    process: int
    parent: int
    namespace: str = HOST
    inner: int = 0
    closid: int = 0
    rmid: int = 0

    def seen_from(self, namespace: str) -> int:
        """Its number there, 0 where it cannot be seen (task_pid_vnr())."""
        if namespace == HOST:
            return self.pid
        return self.inner if self.namespace == namespace else 0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who reads or writes: its PID namespace, and its own number on the host, which a written 0 stands for."""

    namespace: str = HOST
    pid: int = 1


class TaskTable(Protocol):
    """The tasks that there are, in order, and by their number on the host."""

    def __iter__(self) -> Iterator[Task]: ...

    def __getitem__(self, pid: int) -> Task: ...

    def find(self, number: int, caller: Caller) -> Task | None: ...


class Tasks:
    """All tasks of a simulated machine. From the start there are init (1) and kthreadd (2)."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {pid: Task(pid, pid, parent=0) for pid in (1, 2)}
        self._inner: dict[str, int] = {}

    def __iter__(self) -> Iterator[Task]:
        """Process by process, as for_each_process_thread() goes."""
        return iter(sorted(self._tasks.values(), key=lambda task: (task.process, task.pid)))

    def __getitem__(self, pid: int) -> Task:
        return self._tasks[pid]

    def spawn(self, parent: int = 1, *, pid: int = 0, namespace: str | None = None, thread: bool = False) -> int:
        """Forks ``parent``, or makes a thread of it. The child is in its groups, and its namespace unless another is named. Returns the number."""
        of = self._tasks[parent]
        pid = pid or max(_FIRST, *(task + 1 for task in self._tasks))
        if pid in self._tasks:
            raise ValueError(f"there is a task {pid} already")
        inside = of.namespace if namespace is None else namespace
        inner = 0
        if inside != HOST:
            inner = self._inner[inside] = self._inner.get(inside, 0) + 1
        self._tasks[pid] = Task(pid, of.process if thread else pid, parent, inside, inner, of.closid, of.rmid)
        return pid

    def exit(self, pid: int) -> None:
        """The process ends with all its threads, or that one thread does. Children go to init."""
        gone = {task.pid for task in self._tasks.values() if pid in (task.pid, task.process)}
        for number in gone:
            del self._tasks[number]
        for task in self._tasks.values():
            if task.parent in gone:
                task.parent = 1

    def find(self, number: int, caller: Caller) -> Task | None:
        """find_task_by_vpid(): a task by the number that the caller knows it by."""
        return next((task for task in self._tasks.values() if task.seen_from(caller.namespace) == number), None)
