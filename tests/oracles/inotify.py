# SPDX-License-Identifier: Apache-2.0
"""deviceplugin._native.inotify with ctypes and struct."""

from __future__ import annotations

import ctypes
import os
import select
import struct

HEAD = struct.Struct("iIII")

Event = tuple[int, int, int, str]

_libc = ctypes.CDLL(None, use_errno=True)


def parse(data: bytes) -> list[Event]:
    events = []
    at = 0
    while at < len(data):
        if len(data) - at < HEAD.size:
            raise ValueError("cut off")
        wd, mask, cookie, length = HEAD.unpack_from(data, at)
        at += HEAD.size
        if len(data) - at < length:
            raise ValueError("cut off")
        events.append((wd, mask, cookie, os.fsdecode(data[at : at + length].split(b"\0", 1)[0])))
        at += length
    return events


class Inotify:
    def __init__(self) -> None:
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def add(self, path: str, mask: int) -> int:
        wd: int = _libc.inotify_add_watch(self.fd, os.fsencode(path), mask)
        if wd < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", path)
        return wd

    def read(self, timeout: float | None = None) -> list[Event]:
        if not self._poll.poll(None if timeout is None else timeout * 1000):
            return []
        return parse(os.read(self.fd, 16384))

    def close(self) -> None:
        os.close(self.fd)
