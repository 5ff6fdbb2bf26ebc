# SPDX-License-Identifier: Apache-2.0
"""The latest value of something, written by one thread and awaited by others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cell(Generic[T]):
    """Holds one immutable value. Readers see the latest, never a queue of changes: nobody can miss one or take another's."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._changed = threading.Condition()

    def get(self) -> T:
        return self._value

    def set(self, value: T) -> None:
        with self._changed:
            self._value = value
            self._changed.notify_all()

    def wake(self) -> None:
        """Lets everyone who waits look again, though nothing changed: their own reason to wait may have gone."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, until: Callable[[T], bool], timeout: float | None = None) -> T:
        """The value once ``until`` holds for it, or the current one after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: until(self._value), timeout)
            return self._value
