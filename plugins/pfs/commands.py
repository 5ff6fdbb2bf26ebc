# SPDX-License-Identifier: Apache-2.0
"""Programs run in the node's mount namespace, each in a child that can be left behind.

Whoever touches a parallel file system that hangs may sleep where no signal reaches, SIGKILL included. So nothing here does: children do, with a time
limit, and one that cannot be killed holds a lock that keeps a second from being started.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from deviceplugin import Host

NOT_ASKED = "not asked:"
"""What an answer of :meth:`Runner.statfs` begins with that says nothing of the file system."""

_POLL = 0.002
_GRACE = 0.2
"""Seconds that a killed child gets to vanish."""


class CommandFailed(Exception):
    """A program could not be run, failed, or did not end; the text says which and why, in one line."""


class Runner(Protocol):
    """What the plugin runs programs with: :class:`Commands`, or a simulation."""

    def run(self, argv: Sequence[str], limit: float, lock: str = "") -> str:
        """What the program wrote. Raises CommandFailed, after ``limit`` seconds at the latest, sooner where an earlier one of this ``lock`` hangs."""
        ...

    def statfs(self, locks: Mapping[str, str], limit: float) -> dict[str, str]:
        """Why the file system at each of the node's directories does not answer, empty if it does."""
        ...


class _Child(Struct, frozen=True):
    process: subprocess.Popen[bytes]
    began: float


class Commands:
    """Runs programs. ``process`` is one that lives in the node's mount namespace, ``/proc/1``: they run there, and are the node's own, such as
    mount.lustre, which must fit the node's kernel module.
    """

    def __init__(self, host: Host, process: str, kill: Callable[[subprocess.Popen[bytes]], None] = subprocess.Popen.kill) -> None:
        self._host = host
        self._namespace = f"{process}/ns/mnt"
        self._kill = kill
        self._lock = threading.Lock()
        self._left: list[subprocess.Popen[bytes]] = []
        """Children that could not be killed, until they end at last."""

    def run(self, argv: Sequence[str], limit: float, lock: str = "") -> str:
        """What the program wrote, for programs that write no more than a pipe holds (64 KiB). Raises CommandFailed, after ``limit`` seconds at the
        latest. ``lock`` is for those that touch a mount: see :meth:`statfs`.
        """
        try:
            child = self._locked(argv, lock, time.monotonic() + limit) if lock else self._start(argv, ())
        except _Busy as busy:
            raise CommandFailed(f"{_name(argv)} is not run, since process {busy} still hangs in that file system") from busy
        except OSError as error:
            raise CommandFailed(f"{lock} cannot be made: {error.strerror or error}") from error
        code = self._wait(child, child.began + limit)
        text, problem = _output(child.process)
        if code is None:
            raise CommandFailed(f"{_name(argv)} did not end within {limit:g} s ({self._end(child)})")
        if code != 0:
            raise CommandFailed(f"{_name(argv)} failed: {problem or f'status {code}'}")
        return text

    def statfs(self, locks: Mapping[str, str], limit: float) -> dict[str, str]:
        """Asks the file systems at several of the node's directories whether they answer, all at once; why not, for each, empty if it does.

        Each directory comes with the path of a lock file. A child holds it until it has ended, whatever becomes of this process: while one hangs, no
        other process of this program starts a second for the same directory.
        """
        deadline = time.monotonic() + limit
        answers: dict[str, str] = {}
        children: dict[str, _Child] = {}
        for path, lock in locks.items():
            try:
                # -f asks the file system, not the directory; the format keeps it to one line.
                children[path] = self._locked(["stat", "-f", "-c", "%i", "--", self._seen(path)], lock, deadline)
            except _Busy as busy:
                answers[path] = f"hang: {path} does not answer, and process {busy} still hangs there; no other is started"
            except CommandFailed as error:
                answers[path] = f"{NOT_ASKED} {error}"
            except OSError as error:
                answers[path] = f"{NOT_ASKED} {lock} cannot be made: {error.strerror or error}"
        for path, child in children.items():
            code = self._wait(child, deadline)
            _, problem = _output(child.process)
            if code is None:
                answers[path] = f"hang: {path} does not answer within {limit:g} s ({self._end(child)})"
            else:
                answers[path] = "" if code == 0 else f"statfs: {problem.rpartition('stat: ')[2] or f'{path}: status {code}'}"
        return answers

    def _locked(self, argv: Sequence[str], lock: str, deadline: float) -> _Child:
        """A child that holds the lock. Raises _Busy where another does and keeps it, OSError, CommandFailed."""
        at = self._host.path(lock)
        os.makedirs(os.path.dirname(at), mode=0o755, exist_ok=True)
        fd = os.open(at, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # Another instance on the node may be asking: that takes milliseconds.
                    if time.monotonic() >= deadline or _stuck(fd):
                        raise _Busy(os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "of another instance") from None
                    time.sleep(_POLL)
            child = self._start(argv, (fd,))
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{child.process.pid}\n".encode(), 0)
            return child
        finally:
            os.close(fd)

    def _start(self, argv: Sequence[str], keep: tuple[int, ...]) -> _Child:
        argv = [*self._enter(), *argv]
        with self._lock:
            self._left = [process for process in self._left if process.poll() is None]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", "LC_ALL": "C"},
                pass_fds=keep,
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(f"{argv[0]} cannot be run: {error.strerror or error}") from error
        return _Child(process, time.monotonic())

    def _enter(self) -> list[str]:
        """What to put before a program's name so that it runs in the node's namespace: nothing where that is ours."""
        path = self._host.path(self._namespace)
        try:
            theirs, ours = os.stat(path), os.stat("/proc/self/ns/mnt")
        except OSError as error:
            if error.errno == errno.ENOENT and self._host.root != "/":  # a tree of files stands in for the machine
                return []
            raise CommandFailed(f"{path}: {error.strerror}; the plugin must see the node's processes (hostPID) and be privileged") from error
        return [] if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) else ["nsenter", f"--mount={path}", "--"]

    def _seen(self, path: str) -> str:
        """Where a program that :meth:`_start` runs finds the node's path."""
        return path if self._enter() else self._host.path(path)

    def _wait(self, child: _Child, deadline: float) -> int | None:
        """The child's status, None if it runs on past the deadline."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.process.wait(max(0.0, deadline - time.monotonic()))
        return None

    def _end(self, child: _Child) -> str:
        """Kills a child that took too long, and says what became of it."""
        self._kill(child.process)
        code = self._wait(child, time.monotonic() + _GRACE)
        if code is not None:
            return f"process {child.process.pid} was killed"
        with self._lock:
            self._left.append(child.process)
        return f"process {child.process.pid} cannot be killed: the kernel waits for the file system"


class _Busy(Exception):
    """The lock is held; the text is the id of the process that holds it."""


def _stuck(fd: int) -> bool:
    """Whether the process that holds the lock has been sent SIGKILL and lives: it will not end soon."""
    try:
        pid = int(os.pread(fd, 20, 0))
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            pending = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
    except (OSError, ValueError, IndexError):
        return False
    return any(mask & (1 << 8) for mask in pending)  # SIGKILL is signal 9


def _output(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """What an ended child wrote, and the last line of what it complained of; nothing of one that still runs: reading would wait for it."""
    texts = []
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        text = stream.read(1 << 20) if process.returncode is not None else b""
        texts.append(text.decode("utf-8", "replace"))
        stream.close()
    lines = texts[1].strip().splitlines()
    return texts[0], lines[-1] if lines else ""


def _name(argv: Sequence[str]) -> str:
    return " ".join(argv[:12])
