# SPDX-License-Identifier: Apache-2.0
"""One holder per resource on a node: a file lock that the kernel frees however its holder dies.

It is what makes a second instance a hot standby: it waits here, with everything else ready.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable

from msgspec import Struct

from deviceplugin.kubelet.paths import socket_stem

log = logging.getLogger(__name__)


class LockError(Exception):
    """The lock file cannot be used: its directory is missing, read-only, or not ours."""


class Owner(Struct, frozen=True):
    """Who holds a lock, as it said itself when it took it."""

    pid: int
    host: str
    since: float


class ResourceLock:
    """The lock of one resource. :meth:`acquire` waits on a thread of its own, since a wait for a file lock cannot be called off."""

    def __init__(self, directory: str, resource: str) -> None:
        self.resource = resource
        self.path = os.path.join(directory, f"{socket_stem(resource, 200)}.lock")
        self._directory = directory
        self._fd = -1
        self._guard = threading.Lock()
        self._released = False

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def open(self) -> int:
        """A descriptor of the lock file. Raises LockError."""
        try:
            os.makedirs(self._directory, mode=0o755, exist_ok=True)
            # Not through a symbolic link: a file in a shared directory must not lead us to another.
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise LockError(
                f"{self.resource}: cannot open the lock {self.path}: {error.strerror}; "
                f"the directory must be there, writable and shared by all instances (uid {os.getuid()})"
            ) from error

    def acquire(self, owner: Owner, on_held: Callable[[], None], on_wait: Callable[[], None]) -> None:
        """Calls ``on_held`` once the lock is ours: at once if it is free, else from another thread, after ``on_wait``. Raises LockError."""
        fd = self.open()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            threading.Thread(target=self._wait, args=(fd, owner, on_held), name=f"lock-{self.resource}", daemon=True).start()
            return
        except OSError as error:
            os.close(fd)
            raise LockError(f"{self.resource}: cannot lock {self.path}: {error.strerror}; the file system must support flock") from error
        self._take(fd, owner, on_held)

    def adopt(self, fd: int, owner: Owner) -> None:
        """Takes over the descriptor that holds the lock, passed on by its holder: the lock never becomes free in between."""
        self._take(fd, owner, lambda: None)

    @property
    def descriptor(self) -> int:
        """What holds the lock, -1 if nothing does: to pass on."""
        return self._fd

    def owner(self) -> Owner | None:
        """Who holds the lock, if that can be read."""
        try:
            with open(self.path, encoding="utf-8") as file:
                said = json.loads(file.read(4096))
            return Owner(int(said["pid"]), str(said["host"]), float(said["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def release(self) -> None:
        """Gives the lock up, or stops wanting it."""
        with self._guard:
            self._released = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _wait(self, fd: int, owner: Owner, on_held: Callable[[], None]) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            log.error("%s: waiting for the lock %s failed: %s", self.resource, self.path, error.strerror)
            os.close(fd)
            return
        self._take(fd, owner, on_held)

    def _take(self, fd: int, owner: Owner, on_held: Callable[[], None]) -> None:
        with self._guard:
            if self._released or self._fd >= 0:  # not wanted any more, or passed on to us meanwhile
                os.close(fd)
                return
            self._fd = fd
        on_held()
        with self._guard:
            if not self._released:  # else the number may be another file's by now
                self._label(fd, owner)

    def _label(self, fd: int, owner: Owner) -> None:
        said = json.dumps({"pid": owner.pid, "host": owner.host, "since": owner.since}).encode()
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, said, 0)
        except OSError as error:
            # The lock is held all the same; only its label is missing, on a full disk for one.
            log.warning("%s: cannot write who holds the lock to %s: %s", self.resource, self.path, error.strerror)
