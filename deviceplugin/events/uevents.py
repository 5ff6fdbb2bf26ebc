# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of devices, through its netlink socket for uevents."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterable, Mapping

from msgspec import Struct

from deviceplugin.events.watch import Change, Kind

log = logging.getLogger("deviceplugin.events")

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_UEVENT_LIMIT = 8192  # the kernel's own buffers hold 2 KiB of variables and a path
_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO in the kernel's include/linux/proc_ns.h


class Uevent(Struct, frozen=True):
    """What the kernel said of a device: ``action`` is one of add, remove, change, move, online, offline, bind, unbind; ``devpath`` is below /sys."""

    action: str
    devpath: str
    properties: Mapping[str, str]


def parse_uevent(data: bytes) -> Uevent | None:
    """A datagram of the kernel's, ``ACTION@DEVPATH`` and ``KEY=VALUE`` each ended by a NUL; None for anything else, as udev sends it."""
    head, *pairs = (os.fsdecode(part) for part in data.split(b"\0"))
    action, at, devpath = head.partition("@")
    if not (action and at and devpath.startswith("/")):
        return None
    return Uevent(action, devpath, dict(pair.split("=", 1) for pair in pairs if "=" in pair))


class Uevents:
    """The kernel's uevents of some subsystems. Raises OSError where there is no such socket to be had."""

    def __init__(self, subsystems: Iterable[str]) -> None:
        self._subsystems = frozenset(subsystems)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # the kernel cuts it to its own limit
            self._socket.bind((0, _KERNEL_GROUP))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait on, -1 once closed."""
        return self._socket.fileno()

    def receive(self) -> list[Change | Uevent]:
        """What has arrived, without waiting. A :class:`Change` that is lost stands for what the kernel had to drop."""
        received: list[Change | Uevent] = []
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(_UEVENT_LIMIT)
            except BlockingIOError:
                return received
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                received.append(Change("", "", Kind.LOST))
                continue
            # Only the kernel sends from port 0: a process may send to the group as well.
            event = parse_uevent(data) if sender == 0 else None
            if event and event.properties.get("SUBSYSTEM") in self._subsystems:
                received.append(event)

    def close(self) -> None:
        self._socket.close()


def open_uevents(subsystems: tuple[str, ...]) -> Uevents | None:
    """The uevents of ``subsystems``; None, with a line in the log, where they cannot be had."""
    if not subsystems:
        return None
    try:
        uevents = Uevents(subsystems)
    except OSError as error:
        log.warning("no uevents of %s, so changes there are seen only when the hardware is looked at next: %s", ", ".join(subsystems), error)
        return None
    with contextlib.suppress(OSError):  # without /proc nothing can be said
        if os.stat("/proc/self/ns/user").st_ino != _FIRST_USER_NAMESPACE:
            log.warning("the kernel sends no uevents into a user namespace, such as this process is in: run it in the host's to see them at once")
    return uevents
