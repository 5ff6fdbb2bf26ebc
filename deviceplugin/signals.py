# SPDX-License-Identifier: Apache-2.0
"""The signals that a process is to act on, each told on a thread of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Self


class Signals:
    """While the block lasts, ``told`` is called with the number of each signal that comes, in order, on one thread.

    A signal that another thread takes, or that comes a moment before the main thread waits, does not wake the main thread (signal(7): the kernel
    gives it to any thread). So the interpreter writes each to a pipe, and that thread reads them: also while the main thread is busy or hangs.
    To be entered on the main thread, as whatever sets a handler.
    """

    _OVER = 255

    def __init__(self, numbers: Iterable[signal.Signals], told: Callable[[int], None]) -> None:
        """``told`` must not raise."""
        self._numbers = frozenset(numbers)
        self._told = told
        self._thread = threading.Thread(target=self._read, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writer, False)
        self._handlers = {number: signal.signal(number, _noted) for number in self._numbers}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.tell(self._OVER)
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def tell(self, byte: int) -> None:
        """Calls ``told`` with a byte above every signal's number, as if that had come: for what the process's own threads find out."""
        os.write(self._writer, bytes([byte]))

    def _read(self) -> None:
        while True:
            for byte in os.read(self._reader, 64):
                if byte == self._OVER:
                    return
                if byte in self._numbers or byte >= signal.NSIG:
                    self._told(byte)


def _noted(_number: int, _frame: object) -> None:
    """The interpreter has written the signal to the pipe before it calls this."""
