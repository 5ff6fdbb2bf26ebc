# SPDX-License-Identifier: Apache-2.0
"""Which names appear in and are deleted from a directory tree, as fsnotify tells the kubelet's plugin watcher."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

_IN_MOVED_TO, _IN_CREATE, _IN_DELETE, _IN_ISDIR = 0x80, 0x100, 0x200, 0x40000000
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Change:
    path: str
    created: bool
    directory: bool


class Watch:
    """Names that are created or moved in, and names that are deleted. Names that are moved away are not reported: the kubelet does not see them."""

    def __init__(self) -> None:
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._directories: dict[int, str] = {}

    def add(self, directory: str) -> None:
        """:raises OSError: it cannot be watched."""
        number = _libc.inotify_add_watch(self.fd, os.fsencode(directory), _IN_CREATE | _IN_MOVED_TO | _IN_DELETE)
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), directory)
        self._directories[number] = directory

    def read(self) -> list[Change]:
        """What has happened since the last call; never waits."""
        changes: list[Change] = []
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return changes
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                directory = self._directories.get(number)
                if directory is not None and name:
                    path = os.path.join(directory, os.fsdecode(name))
                    changes.append(Change(path, not mask & _IN_DELETE, bool(mask & _IN_ISDIR)))

    def close(self) -> None:
        os.close(self.fd)
