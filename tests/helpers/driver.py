# SPDX-License-Identifier: Apache-2.0
"""A driver in user space for ioctl(2): real system calls of one thread, answered by this process (seccomp_unotify(2)).

The kernel stops the thread where it enters ioctl with a command of the given types, and wakes it with what a handler returns. The argument is memory
of our own process, so the handler sees what a driver would copy from user space, and may write to it what a driver would copy back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import struct
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

T = TypeVar("T")

Handler = Callable[[int, int, int], int]
"""Descriptor, command, argument; answers with the result or -errno."""

_libc = ctypes.CDLL(None, use_errno=True)
_SECCOMP, _IOCTL, _ARCH = 317, 16, 0xC000003E  # x86_64
_NO_NEW_PRIVS, _SET_FILTER, _NEW_LISTENER = 38, 1, 1 << 3
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")

_LOAD, _EQUAL, _AND, _SHIFT, _RETURN = 0x20, 0x15, 0x54, 0x74, 0x06


class Unavailable(Exception):
    """Why there can be no such driver here."""


def call(function: Callable[[], T], handler: Handler, types: Collection[int]) -> T:
    """Runs ``function`` on a thread of its own, where ioctls whose command has one of these types (its second byte) go to ``handler``.

    The handler runs on the calling thread, in Python: a function that kept the GIL over its ioctl would never come back, and fails after 10 s.
    """
    if platform.machine() != "x86_64":
        raise Unavailable(f"the filter is written for x86_64, this is {platform.machine()}")
    listener: list[int] = []
    outcome: list[tuple[bool, object]] = []
    armed = threading.Event()

    def run() -> None:
        try:
            listener.append(_install(types))
        except Unavailable as error:
            outcome.append((False, error))
            return
        finally:
            armed.set()
        try:
            outcome.append((True, function()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    armed.wait(10)
    try:
        if listener:
            _serve(listener[0], handler, thread)
        thread.join(10)
    finally:
        for fd in listener:
            os.close(fd)
    assert outcome, "the function kept the GIL while it was in its ioctl, or never came back"
    well, value = outcome[0]
    if not well:
        assert isinstance(value, BaseException)
        raise value
    return value  # type: ignore[return-value]


def _install(types: Collection[int]) -> int:
    last = 7 + len(types)  # the first instruction after the tests, which lets the call pass; the one behind it notifies
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, last - 2, _ARCH),  # jumps are counted from the next instruction
        (_LOAD, 0, 0, 0),
        (_EQUAL, 0, last - 4, _IOCTL),
        (_LOAD, 0, 0, 16 + 8),  # the low half of the second argument
        (_SHIFT, 0, 0, 8),
        (_AND, 0, 0, 0xFF),
        *((_EQUAL, last + 1 - (8 + i), 0, one) for i, one in enumerate(types)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOTIFY),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in program))
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    if _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Unavailable(f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(ctypes.get_errno())}")
    fd: int = _libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER, head)
    if fd < 0:
        raise Unavailable(f"seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER): {os.strerror(ctypes.get_errno())}; Linux 5.0 and later has it")
    return fd


def _serve(listener: int, handler: Handler, thread: threading.Thread) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    for _ in range(1000):
        if not thread.is_alive():
            return
        if not poll.poll(10):
            continue
        notice = ctypes.create_string_buffer(_NOTICE.size)
        if _libc.ioctl(listener, _RECEIVE, notice) < 0:
            if ctypes.get_errno() in (errno.ENOENT, errno.EINTR):
                continue
            raise OSError(ctypes.get_errno(), "SECCOMP_IOCTL_NOTIF_RECV")
        number, _pid, _flags, _nr, _arch, _ip, fd, command, argument, *_ = _NOTICE.unpack(notice.raw)
        result = handler(fd, command & 0xFFFFFFFF, argument)
        answer = ctypes.create_string_buffer(_ANSWER.pack(number, max(0, result), min(0, result), 0), _ANSWER.size)
        if _libc.ioctl(listener, _SEND, answer) < 0:
            raise OSError(ctypes.get_errno(), "SECCOMP_IOCTL_NOTIF_SEND")
