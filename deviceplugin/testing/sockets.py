# SPDX-License-Identifier: Apache-2.0
"""The kubelet's own sockets: grpc servers whose socket file behaves as Go's does."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

SUN_PATH_MAX = 107

_numbers = itertools.count(1)


class Listener:
    """A grpc server on a unix socket that outlives it, as a killed Go process leaves its socket behind.

    grpcio unlinks the path that it bound when it stops. So it binds a name of its own in ``hidden``, and the socket is linked (which is an IN_CREATE
    to whoever watches, as Go's bind is) or renamed into place; what is in place is then ours to leave or to remove.
    """

    def __init__(self, path: str, hidden: str, handlers: Iterable[Any], *, rename: bool = False, workers: int = 32) -> None:
        self.path = path
        self._hidden = hidden
        self._handlers = tuple(handlers)
        self._rename = rename
        self._workers = workers
        self._server: Any = None
        self._pool: ThreadPoolExecutor | None = None

    def start(self, inode: int | None = None) -> bool:
        """Serves. With ``inode``, tries to get a socket of that inode number; True if it has it (file systems reuse numbers as they please)."""
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fake-kubelet")
        self._server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers(self._handlers)
        inner = os.path.join(self._hidden, f"{next(_numbers)}.sock")
        spares = _take_other_inodes(self._hidden, inode) if inode else []
        try:
            self._server.add_insecure_port("unix:" + inner)
        finally:
            for spare in spares:
                os.unlink(spare)
        self._server.start()
        same = os.stat(inner).st_ino == inode
        if self._rename:
            os.rename(inner, self.path)
        else:
            os.link(inner, self.path)
        return same

    def stop(self) -> Callable[[], object]:
        """Stops serving and cancels every call; call the result to wait for the end. The socket file stays: connecting to it is refused."""
        stopped = self._server.stop(None) if self._server is not None else threading.Event()
        if self._server is None:
            stopped.set()
        self._server = None
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        wait: Callable[[], object] = stopped.wait
        return wait


def deaf_socket(path: str) -> socket.socket:
    """Binds a socket that listens and never accepts: connecting succeeds, and nothing ever answers. Close it and unlink the path to end it."""
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deaf.bind(path)
    deaf.listen(64)
    return deaf


def remove_sockets(directory: str) -> None:
    """Removes every socket directly in a directory, whosever it is, and nothing else.

    One that goes meanwhile is passed over, as in removeContents (pkg/kubelet/cm/devicemanager/manager.go): a plugin may remove its own.
    """
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                    os.unlink(entry.path)


def check_path(path: str) -> None:
    """:raises ValueError: no unix socket can have this path."""
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise ValueError(
            f"the root is too long: {path} has {len(os.fsencode(path))} bytes, and the path of a unix socket at most {SUN_PATH_MAX}. "
            "Use a shorter directory, such as one that tempfile.mkdtemp(dir='/tmp') makes"
        )


def _take_other_inodes(directory: str, wanted: int) -> list[str]:
    """Fills the free inode numbers below ``wanted`` with empty files, so that the next one made gets it where numbers are given lowest first."""
    spares: list[str] = []
    for attempt in range(64):
        spare = os.path.join(directory, f"spare{attempt}")
        os.close(os.open(spare, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if os.stat(spare).st_ino == wanted:
            os.unlink(spare)
            break
        spares.append(spare)
    return spares
