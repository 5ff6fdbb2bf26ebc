# SPDX-License-Identifier: Apache-2.0
"""A directory, served as it is but for what is made to fail: what drivers do and plain files cannot.

::

    tree = FaultyTree(machine.root)
    with tree.served() as root:
        tree.fail("/sys/class/acme/card0/state", errno.EIO)
        stuck = tree.hang("/sys/class/acme/card1/state")
        ...
        stuck.release()
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from deviceplugin.testing.fuse import serve


class Hang:
    """Calls that do not come back yet."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        """Set once a call waits."""
        self._released = threading.Event()

    def release(self) -> None:
        """Lets all of them go on, as if nothing were wrong, and those that follow."""
        self._released.set()

    def wait(self) -> None:
        self.entered.set()
        self._released.wait()


class FaultyTree:
    """What is below a directory, for :func:`deviceplugin.testing.fuse.serve`. Paths may start with a slash, which says nothing.

    A fault meets whoever reads, writes or lists the path, or makes, removes or renames it as a directory; to stat it is always possible. A path has
    one fault, the last one told, besides its length.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        self._faults: dict[str, int | Hang | None] = {}
        self._lengths: dict[str, int] = {}

    def fail(self, path: str, number: int) -> None:
        """Answers with an errno."""
        self._tell(path, number)

    def hang(self, path: str) -> Hang:
        """Does not answer before it is released, or the tree served no longer."""
        hang = Hang()
        self._tell(path, hang)
        return hang

    def lengthen(self, path: str, size: int) -> None:
        """The file has so many bytes: its own ones over and over."""
        self._lengths[path.lstrip("/")] = size

    def mend(self, path: str) -> None:
        """Nothing is wrong with it from now on."""
        self._lengths.pop(path.lstrip("/"), None)
        self._tell(path, None)

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Serves it on a new directory, which this gives. What hangs at the end is released."""
        with serve(self) as root:
            try:
                yield root
            finally:
                for path in list(self._faults):
                    self.mend(path)

    def stat(self, path: str) -> os.stat_result:
        return os.lstat(self._at(path))

    def list(self, path: str) -> list[str]:
        return os.listdir(self._reach(path))

    def read(self, path: str) -> bytes:
        with open(self._reach(path), "rb") as file:
            data = file.read()
        size = self._lengths.get(path)
        return data if size is None else ((data or b"x") * (size // len(data or b"x") + 1))[:size]

    def write(self, path: str, data: bytes) -> None:
        fd = os.open(self._reach(path), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def mkdir(self, path: str) -> None:
        os.mkdir(self._reach(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._reach(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._reach(old), self._at(new))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def _tell(self, path: str, fault: int | Hang | None) -> None:
        before = self._faults.get(path.lstrip("/"))
        self._faults[path.lstrip("/")] = fault
        if isinstance(before, Hang):
            before.release()

    def _at(self, path: str) -> str:
        return os.path.join(self._directory, path)

    def _reach(self, path: str) -> str:
        """Where a path is, once its fault lets anybody there."""
        fault = self._faults.get(path)
        if isinstance(fault, Hang):
            fault.wait()
        elif fault is not None:
            raise OSError(fault, os.strerror(fault), path)
        return self._at(path)
