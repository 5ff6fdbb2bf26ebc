# SPDX-License-Identifier: Apache-2.0
"""Groups, the classes of service they hold, and the last command's status."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

SHAREABLE, EXCLUSIVE = "shareable", "exclusive"


def refuse(number: int) -> OSError:
    """The error that a system call answers with."""
    return OSError(number, os.strerror(number))


class LastCommand:
    """info/last_cmd_status: a seq_buf of 512 bytes (fs/resctrl/rdtgroup.c)."""

    _SIZE = 512

    def __init__(self) -> None:
        self._text = ""

    def clear(self) -> None:
        self._text = ""

    def say(self, text: str) -> None:
        self._text = (self._text + text)[: self._SIZE - 1]

    def refuse(self, number: int, text: str = "") -> OSError:
        """Says why, and returns the error to raise."""
        self.say(text)
        return refuse(number)

    def __str__(self) -> str:
        return self._text or "ok\n"


@dataclass(eq=False, slots=True)
class Group:
    """A group of class CTRL_MON, or with ``parent`` one that only monitors."""

    name: str
    closid: int
    rmid: int = 0
    parent: Group | None = None
    mode: str = SHAREABLE
    cpus: set[int] = field(default_factory=set)
    monitors: dict[str, Group] = field(default_factory=dict)
    event: str = "mbm_local_bytes"
    """What ``mba_MBps`` goes by."""

    @property
    def controls(self) -> bool:
        return self.parent is None


class Groups:
    """The root group, which is always there, and the others, the newest first as in the kernel's list."""

    def __init__(self, closids: int) -> None:
        self.root = Group("", closid=0)
        self._others: dict[str, Group] = {}
        self._free = set(range(1, closids))

    def __iter__(self) -> Iterator[Group]:
        yield from reversed(self._others.values())
        yield self.root

    def __contains__(self, name: str) -> bool:
        return name in self._others

    def __getitem__(self, name: str) -> Group:
        return self._others[name]

    @property
    def names(self) -> list[str]:
        return list(self._others)

    @property
    def taken(self) -> dict[int, Group]:
        """The groups by class of service."""
        return {group.closid: group for group in self}

    def take_closid(self) -> int | None:
        """The lowest free one (closid_alloc())."""
        closid = min(self._free, default=None)
        self._free.discard(closid or 0)
        return closid

    def give_back(self, closid: int) -> None:
        self._free.add(closid)

    def add(self, group: Group) -> None:
        self._others[group.name] = group

    def remove(self, group: Group) -> None:
        del self._others[group.name]
        self._free.add(group.closid)
