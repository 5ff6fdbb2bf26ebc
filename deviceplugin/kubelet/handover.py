# SPDX-License-Identifier: Apache-2.0
"""How an instance that is told to go hands a resource to the standby, so that the kubelet never has a moment without devices.

Plainly ended, a stream costs the kubelet all devices of the resource until the successor's first list, and pods that arrive in those milliseconds are
refused for good. So the successor registers while the old stream still lives. Up to 1.36 that is dangerous by itself: the kubelet keeps one client
per resource, and when the old stream ends it closes the new one (runClient in pkg/kubelet/cm/devicemanager/plugin/v1beta1/handler.go). It finds
nothing to close, though, after a registration that failed: that deletes the record and touches neither streams nor devices. The order is therefore:

1. the old instance asks, and passes its lock along: the descriptor itself, so that no third instance can come between;
2. the successor registers and is read from;
3. it registers once more with a socket that refuses to answer, on purpose, and the record is gone;
4. the old instance ends its stream, which closes nothing;
5. a little later the successor registers a last time, beside its own living stream, and the kubelet has a record again.

If any step fails the old instance ends as it would have, and the standby finds the lock free. Later kubelets keep clients by socket path
(https://github.com/kubernetes/kubernetes/pull/135437), where steps 3 and 5 change nothing.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable

from deviceplugin.kubelet.paths import SUN_PATH_MAX, socket_stem

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds that the old instance waits for its successor. A pod has 30 s to end; this process promises 2."""

_ASK, _DONE, _FAILED = b"take over\n", b"done\n", b"failed\n"
_nonce, _numbers = os.urandom(4).hex(), itertools.count(1)


class Heir:
    """A standby's ear: a socket on which the instance that serves may ask it to take over.

    ``take_over`` gets the lock's descriptor, now ours to close, and returns whether the kubelet reads from us.
    """

    def __init__(self, directory: str, resource: str, take_over: Callable[[int], bool]) -> None:
        self.path = os.path.join(directory, f"{socket_stem(resource, 60)}-{_nonce}-{next(_numbers)}.heir")
        self._take_over = take_over
        self._socket: socket.socket | None = None
        self._resource = resource

    def listen(self) -> None:
        """Starts listening. Without a socket a takeover is still one, with a gap of milliseconds: so trouble is a line in the log."""
        if len(os.fsencode(self.path)) > SUN_PATH_MAX:
            log.debug("%s: no socket for a handover: %s is too long a path", self._resource, self.path)
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self.path)
            os.chmod(self.path, 0o600)
            listener.listen(1)
        except OSError as error:
            log.warning("%s: no socket for a handover at %s: %s", self._resource, self.path, error.strerror)
            listener.close()
            return
        self._socket = listener
        threading.Thread(target=self._serve, args=(listener,), name=f"heir-{self._resource}", daemon=True).start()

    def close(self) -> None:
        """Stops listening and removes the socket. Idempotent."""
        listener, self._socket = self._socket, None
        if listener is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # close alone does not wake a thread that waits in accept
            listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            with connection:
                connection.settimeout(PATIENCE)
                try:
                    self._answer(connection)
                except OSError as error:
                    log.warning("%s: a handover broke off: %s", self._resource, error)

    def _answer(self, connection: socket.socket) -> None:
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        message, descriptors, _, _ = socket.recv_fds(connection, len(_ASK), 1)
        if message != _ASK or len(descriptors) != 1 or uid != os.getuid():
            for descriptor in descriptors:
                os.close(descriptor)
            return
        connection.sendall(_DONE if self._take_over(descriptors[0]) else _FAILED)


def offer(directory: str, resource: str, lock: int, timeout: float = PATIENCE) -> bool:
    """Asks a standby, if there is one, to take the resource over, and passes it the lock. Whether the kubelet now reads from it."""
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), f"{glob.escape(socket_stem(resource, 60))}-*.heir"))):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(path)
            except OSError:
                _sweep(path)  # its owner was killed
                continue
            try:
                socket.send_fds(connection, [_ASK], [lock])
                return connection.recv(len(_FAILED)) == _DONE
            except OSError as error:
                log.warning("%s: the standby did not take over: %s", resource, error)
                return False
    return False


def _sweep(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
