# SPDX-License-Identifier: Apache-2.0
r"""A simulation behind a real mount: real system calls, their errno and inotify, for code that a tree of plain files cannot test.

::

    with serve(SimResctrl(SCENARIOS["skylake"])) as directory:
        os.mkdir(f"{directory}/mine")                                # calls mkdir("mine")
        Path(directory, "mine/schemata").write_text("L3:0=f0000\n")  # calls write("mine/schemata", ...); an OSError comes back to whoever writes

It is for tests as root: :func:`missing` says what a machine lacks. It needs the package mfusepy and libfuse 3, Debian's libfuse3-3.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import importlib.util
import itertools
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

P = ParamSpec("P")
R = TypeVar("R")

_END_SECONDS = 10.0
_MNT_FORCE, _MNT_DETACH = 1, 2  # of umount2(2): the first lets whoever waits for the tree come back
_CAP_SYS_ADMIN = 21


class Tree(Protocol):
    """What :func:`serve` serves. Paths are relative to where it is mounted, ``""`` is that directory. Threads call at once.

    Every method may raise OSError, whose errno is what the system call answers; ``stat`` must, with ENOENT, where nothing is. One that has symbolic
    links is :class:`Linked` too.
    """

    def stat(self, path: str) -> os.stat_result:
        """Type, permissions, links and size, of the link itself for a link. Reads pay no heed to the size."""

    def list(self, path: str) -> Iterable[str]:
        """The names in a directory, in any order, without ``.`` and ``..``."""

    def read(self, path: str) -> bytes:
        """All of a file. It is asked for each time that somebody reads from the start."""

    def write(self, path: str, data: bytes) -> None:
        """Takes all that one system call writes, whatever the offset. To truncate a file does nothing, as in sysfs."""

    def mkdir(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...


@runtime_checkable
class Linked(Protocol):
    """A tree that has symbolic links."""

    def readlink(self, path: str) -> str: ...


class FuseError(Exception):
    """A tree could not be mounted, or did not let go."""


def missing() -> str | None:
    """What this machine lacks to serve a tree, in words for whoever skips a test; None if nothing."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "missing: a /dev/fuse that this user may open"
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        capabilities = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    if not capabilities >> _CAP_SYS_ADMIN & 1:
        return "missing: the capability CAP_SYS_ADMIN, to mount (run it as root)"
    if not ctypes.util.find_library("fuse3"):
        return "missing: libfuse 3 (Debian's libfuse3-3)"
    if importlib.util.find_spec("mfusepy") is None:
        return "missing: the Python package mfusepy"
    return None


@contextlib.contextmanager
def serve(tree: Tree, at: str | None = None) -> Iterator[str]:
    """Mounts the tree on a new directory, or on the one ``at``, until the end of the block; gives the directory.

    Nothing is cached: every stat, list, read and write reaches the tree. Whoever still waits for it at the end gets ECONNABORTED or ENOTCONN, but the
    tree's method must return too. Threads of libfuse call the tree, so a fork without exec must not use it.

    Raises FuseError. At the end also whatever the tree raised that is no OSError with an errno; whoever made the call has seen EIO.
    """
    if lack := missing():
        raise FuseError(f"cannot serve a tree: {lack}")
    with contextlib.ExitStack() as stack:
        directory = at or stack.enter_context(tempfile.TemporaryDirectory(prefix="fuse-"))
        operations = _Operations(tree)
        thread = threading.Thread(target=_run, args=(operations, directory), name=f"fuse-{directory}", daemon=True)
        with _staying():
            thread.start()
            operations.settled.wait()
        if not operations.mounted:
            raise FuseError(f"{directory} cannot be mounted on: {operations.ended or 'libfuse says why on stderr'}")
        try:
            _take_signals_back()
            yield directory
        finally:
            _unmount(directory)
            thread.join(_END_SECONDS)
        if thread.is_alive():
            raise FuseError(f"{directory} is still served: a call of {type(tree).__name__} does not come back")
        if operations.bugs:
            raise operations.bugs[0]


class _Operations:
    """What mfusepy calls, by its names. What is absent is answered with ENOSYS, "Function not implemented"."""

    use_ns = True  # times are in nanoseconds; mfusepy warns of anything else

    def __init__(self, tree: Tree) -> None:
        self.settled = threading.Event()
        """Set once it is mounted, or cannot be."""
        self.mounted = False
        self.ended: BaseException | None = None
        """What the thread that served it ended with."""
        self.bugs: list[Exception] = []
        self._tree = tree
        self._handles = itertools.count(1)
        self._contents: dict[int, bytes] = {}
        """What each open file is read from. A file is one text from its start to its end, even if it changes meanwhile: as kernel's seq_file does."""

    def init(self, path: str) -> None:
        self.mounted = True
        self.settled.set()

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        status = self._call(self._tree.stat, path[1:])
        return {name: getattr(status, name) or 0 for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_rdev")}

    def readdir(self, path: str, handle: int) -> list[str]:
        return [".", "..", *self._call(self._tree.list, path[1:])]

    def readlink(self, path: str) -> str:
        if not isinstance(self._tree, Linked):
            raise OSError(errno.EINVAL, "this tree has no links")
        return self._call(self._tree.readlink, path[1:])

    def open(self, path: str, flags: int) -> int:
        return next(self._handles)

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        if offset == 0 or handle not in self._contents:
            self._contents[handle] = self._call(self._tree.read, path[1:])
        return self._contents[handle][offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, handle: int) -> int:
        self._call(self._tree.write, path[1:], data)
        return len(data)

    def release(self, path: str, handle: int) -> None:
        self._contents.pop(handle, None)

    def truncate(self, path: str, length: int, handle: int | None = None) -> None:
        return

    def mkdir(self, path: str, mode: int) -> None:
        self._call(self._tree.mkdir, path[1:])

    def rmdir(self, path: str) -> None:
        self._call(self._tree.rmdir, path[1:])

    def rename(self, old: str, new: str) -> None:
        self._call(self._tree.rename, old[1:], new[1:])

    # A directory of kernfs lacks these operations too, and this is what the callers then get (fs/namei.c).

    def create(self, path: str, mode: int) -> int:
        raise OSError(errno.EACCES, "no files are made here")

    def mknod(self, path: str, mode: int, device: int) -> None:
        raise OSError(errno.EPERM, "no files are made here")

    def unlink(self, path: str) -> None:
        raise OSError(errno.EPERM, "no files are removed here")

    def symlink(self, path: str, target: str) -> None:
        raise OSError(errno.EPERM, "no links are made here")

    def _call(self, method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if isinstance(error, OSError) and error.errno:
                raise
            self.bugs.append(error)
            raise OSError(errno.EIO, "the tree raised what is no OSError with an errno") from error


def _run(operations: _Operations, directory: str) -> None:
    """What the thread does until the tree is unmounted."""
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # mfusepy would prefer an older one that is there too
    options: dict[str, Any] = {"fsname": "deviceplugin", "allow_other": True, "hard_remove": True, "direct_io": True}
    options |= {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    options |= {"max_threads": 64}  # each call that hangs keeps one, and there are 10 unless told
    try:
        import mfusepy

        mfusepy.FUSE(operations, directory, foreground=True, **options)
    except BaseException as error:  # noqa: BLE001 - it is raised where serve() waits
        operations.ended = error
    finally:
        operations.settled.set()


@contextlib.contextmanager
def _staying() -> Iterator[None]:
    """Undoes that libfuse takes the whole process to "/", as it would a daemon of its own (fuse_daemonize, lib/helper.c)."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _take_signals_back() -> None:
    """Undoes that libfuse lets SIGHUP and SIGTERM end its loop instead of the process, for any that has no handler. Only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGHUP, signal.SIGTERM):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)


def _unmount(directory: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), _MNT_FORCE | _MNT_DETACH) and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise FuseError(f"{directory} cannot be unmounted: {os.strerror(ctypes.get_errno())}")
