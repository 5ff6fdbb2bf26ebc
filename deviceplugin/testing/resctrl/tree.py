# SPDX-License-Identifier: Apache-2.0
"""A resctrl file system, simulated or real: what both can do. Paths are relative to its top, which is ``""``; errors are OSError."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol


class Tree(Protocol):
    """What there is to do with a resctrl. :class:`SimResctrl` is one."""

    def list(self, path: str) -> list[str]:
        """The names in a directory, in any order."""

    def read(self, path: str) -> bytes:
        """All of a file."""

    def write(self, path: str, data: bytes) -> None:
        """In one system call, to a file that is there."""

    def mkdir(self, path: str) -> None: ...

    def rmdir(self, path: str) -> None: ...

    def rename(self, old: str, new: str) -> None: ...


@dataclass(frozen=True, slots=True)
class MountedTree:
    """A resctrl mounted at ``top``: the kernel's, or a simulated one served by FUSE."""

    top: str

    def list(self, path: str) -> list[str]:
        return os.listdir(self._at(path))

    def read(self, path: str) -> bytes:
        with open(self._at(path), "rb") as file:
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        file = os.open(self._at(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, data)
        finally:
            os.close(file)

    def mkdir(self, path: str) -> None:
        os.mkdir(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def _at(self, path: str) -> str:
        return os.path.join(self.top, path)


def read_text(tree: Tree, path: str) -> str:
    return tree.read(path).decode()


def last_status(tree: Tree) -> str:
    """Why the last command failed, or ``ok``."""
    return read_text(tree, "info/last_cmd_status").rstrip("\n")


def groups(tree: Tree) -> list[str]:
    """The names of the groups that control something, but for the root group."""
    return sorted(name for name in tree.list("") if name != "info" and _is_group(tree, name))


def _is_group(tree: Tree, name: str) -> bool:
    try:
        tree.read(f"{name}/schemata")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


Values = dict[int, int]
"""By domain."""


def schemata(tree: Tree, group: str = "") -> dict[str, Values]:
    """What a group's schemata file says, by the name of the resource. A group that is being pseudo-locked has no values."""
    found: dict[str, Values] = {}
    for line in read_text(tree, f"{group}/schemata".lstrip("/")).splitlines():
        name, _, rest = line.strip().partition(":")
        pairs = (part.partition("=") for part in rest.split(";") if "=" in part)
        found[name] = {int(id_): int(value, 16 if name.startswith("L") else 10) for id_, _, value in pairs}
    return found


def line(name: str, values: Values) -> str:
    """A line to write into a schemata file, with the newline."""
    shown = (f"{id_}={value:x}" if name.startswith("L") else f"{id_}={value}" for id_, value in values.items())
    return f"{name}:{';'.join(shown)}\n"


def set_values(tree: Tree, group: str, name: str, values: Values) -> None:
    """Writes some domains of one resource. Raises OSError."""
    tree.write(f"{group}/schemata".lstrip("/"), line(name, values).encode())
