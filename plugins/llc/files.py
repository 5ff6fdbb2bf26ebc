# SPDX-License-Identifier: Apache-2.0
"""How resctrl's files are reached: what is asked of a file system, and the host's own."""

from __future__ import annotations

import os
from typing import Protocol

from deviceplugin import Host

MAX_BYTES = 1 << 16
"""No file but ``tasks`` is longer: 4,096 caches would have schemata of 60 KiB."""


class Files(Protocol):
    """A resctrl file system: paths are relative to its mount point, and whatever fails raises OSError."""

    def read(self, path: str) -> bytes:
        """All of a file, or more than :data:`MAX_BYTES` of it."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Opens the file and writes once."""
        ...

    def list(self, path: str) -> list[str]:
        """The directories in a directory, at least."""
        ...

    def mkdir(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...

    def read_only(self) -> bool:
        """Whether it is mounted so."""
        ...


class HostFiles:
    """The host's own."""

    def __init__(self, host: Host, mount_point: str) -> None:
        self._at = host.path(mount_point)

    def read(self, path: str) -> bytes:
        fd = os.open(self._path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            content = b""
            while len(content) <= MAX_BYTES and (part := os.read(fd, MAX_BYTES + 1 - len(content))):
                content += part
            return content
        finally:
            os.close(fd)

    def write(self, path: str, data: bytes) -> None:
        fd = os.open(self._path(path), os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            os.write(fd, data)  # one call: the kernel takes what comes with it as the whole
        finally:
            os.close(fd)

    def list(self, path: str) -> list[str]:
        with os.scandir(self._path(path)) as found:
            return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]

    def mkdir(self, path: str) -> None:
        os.mkdir(self._path(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._path(path))

    def read_only(self) -> bool:
        return bool(os.statvfs(self._at).f_flag & os.ST_RDONLY)

    def _path(self, path: str) -> str:
        return os.path.join(self._at, path)
