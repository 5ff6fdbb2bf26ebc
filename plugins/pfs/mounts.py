# SPDX-License-Identifier: Apache-2.0
"""The kernel's mount tables: ``/proc/<pid>/mountinfo``, as proc(5) has it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from msgspec import Struct

from deviceplugin import Host
from deviceplugin.sysfs import SysfsError

MAX_BYTES = 16 << 20
"""At most so much of a table is read: some 100,000 mounts."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(Struct, frozen=True):
    """One line. ``device`` is the file system's number, ``root`` the directory in it that is mounted, ``options`` those of the mount and of the file
    system.
    """

    id: int
    device: str
    root: str
    target: str
    fstype: str
    source: str
    options: tuple[str, ...]

    def option(self, name: str) -> str | None:
        """The value of ``name=value`` among the options."""
        return next((one.partition("=")[2] for one in self.options if one.startswith(f"{name}=")), None)


def parse(text: str) -> tuple[Mount, ...]:
    """The mounts of a table, in its order. A line that is none is left out: the others are worth having."""
    found = []
    for line in text.split("\n"):  # a form feed in a name ends no line
        fields = line.split(" ")
        # Six fields, optional ones, "-", then type, source and options: the number of the optional ones varies.
        try:
            dash = fields.index("-", 6)
            number, device, root, target, own = int(fields[0]), fields[2], fields[3], fields[4], fields[5]
            fstype, source, shared = fields[dash + 1 : dash + 4]
        except ValueError:
            continue
        found.append(Mount(number, device, _plain(root), _plain(target), _plain(fstype), _plain(source), (*own.split(","), *shared.split(","))))
    return tuple(found)


def read(host: Host, process: str) -> tuple[Mount, ...]:
    """The mounts in the namespace of a process, ``/proc/1``. Raises SysfsError, also where there is no such table."""
    path = f"{process}/mountinfo"
    parts, size = [], 0
    try:
        fd = os.open(host.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # The kernel hands out whole lines, a page or so at a time.
            while size < MAX_BYTES and (part := os.read(fd, 1 << 20)):
                parts.append(part)
                size += len(part)
        finally:
            os.close(fd)
    except OSError as error:
        raise SysfsError(path, error.strerror or str(error)) from error
    return parse(b"".join(parts).decode("utf-8", "surrogateescape"))


def at(table: Iterable[Mount], target: str) -> Mount | None:
    """What is seen at ``target``: of several mounts on top of each other the last."""
    return next((one for one in reversed(tuple(table)) if one.target == target), None)


def _plain(field: str) -> str:
    r"""The kernel writes space, tab, newline and backslash as ``\040``, ``\011``, ``\012`` and ``\134`` (show_path, seq_path_root)."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field) if "\\" in field else field
