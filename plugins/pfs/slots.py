# SPDX-License-Identifier: Apache-2.0
"""Which slots of a file system there are. Their number may shrink while containers hold some; a slot that is held stays."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable

from deviceplugin import Host, files, sysfs
from deviceplugin.plugins.pfs.config import MAX_SLOTS, FileSystem

RECENT = 60.0
"""Seconds for which a slot that was given out, or was held, counts as held, whatever the kubelet's list says: a pod that starts may not be in it yet,
and a kubelet that has started again lists no pod until it has heard of it anew.
"""


class Recent:
    """Which numbers may be in use: those that were given out or seen held within :data:`RECENT`, as of the kubelet's last list.

    While the kubelet is down nothing is known, and nothing comes free.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._asked = False
        self._used: dict[int, float] = {}

    def give(self, numbers: Iterable[int]) -> None:
        """A container is to have these."""
        with self._lock:
            self._used.update(dict.fromkeys(numbers, self._clock()))

    def view(self, held: Iterable[int], before: Iterable[int]) -> None:
        """The kubelet has said which are held. ``before`` are those that were there when we started: the first list may lack some that are held."""
        with self._lock:
            now = self._clock()
            if not self._asked:
                self._used.update(dict.fromkeys(before, now))
            self._asked = True
            self._used.update(dict.fromkeys(held, now))
            self._used = {number: at for number, at in self._used.items() if now - at < RECENT}

    def busy(self) -> frozenset[int] | None:
        """The numbers; None as long as the kubelet has said nothing."""
        with self._lock:
            return frozenset(self._used) if self._asked else None


class Slots:
    """The slots of one file system. Which there are is kept in a file, so that a restart does not take away those that are held.

    discover, allocate and reconcile call from threads of their own.
    """

    def __init__(self, host: Host, filesystem: FileSystem, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._filesystem = filesystem
        self._path = path
        self._recent = Recent(clock)
        self._lock = threading.Lock()
        self._listed: tuple[int, ...] | None = None
        self._too_many = False
        self._unsaved = ""

    def give(self, slots: Iterable[int]) -> None:
        """A container is to have these."""
        self._recent.give(slots)

    def view(self, held: Iterable[int]) -> bool:
        """The kubelet has said which slots are held; whether :meth:`numbers` may now be fewer than before."""
        with self._lock:
            self._recent.view(held, self._remembered())
            self._remember()
            return self._too_many

    def numbers(self) -> tuple[tuple[int, ...], str]:
        """The numbers of the slots, and what is wrong with the file that holds how many there are, empty if nothing is.

        Where that file cannot be used the slots stay as they are.
        """
        wanted, problem = self._wanted()
        with self._lock:
            before = self._remembered()
            if wanted is None:
                self._listed = before
                return before, problem
            busy = self._recent.busy()
            # Before the kubelet has said who holds what, nothing is taken away.
            keep = set(before) if busy is None else busy
            chosen = sorted(keep)
            for number in range(MAX_SLOTS):
                if len(chosen) >= wanted:
                    break
                if number not in keep:
                    chosen.append(number)
            self._listed = tuple(sorted(chosen))
            self._too_many = len(chosen) > wanted
            # An instance that waits behind another never hears who holds what, and leaves the file to that one.
            if busy is not None:
                self._remember()
            return self._listed, problem or self._unsaved

    def _wanted(self) -> tuple[int | None, str]:
        if (fixed := self._filesystem.fixed_slots) is not None:
            return fixed, ""
        path = self._filesystem.slots_file
        try:
            text = sysfs.read(self._host, path)
        except sysfs.SysfsError as error:
            return None, f"{error}; the slots stay as they are"
        if text is None:
            return None, f"{path} is not there, which is to hold the number of slots; they stay as they are"
        if not (text.isascii() and text.isdecimal()) or len(text) > 6 or int(text) > MAX_SLOTS:
            return None, f"{path} must hold a number from 0 to {MAX_SLOTS}, not {text[:20]!r}; the slots stay as they are"
        return int(text), ""

    def _remembered(self) -> tuple[int, ...]:
        try:
            with open(self._host.path(self._path), encoding="ascii") as file:
                found = json.loads(file.read(1 << 16))
        except (OSError, ValueError):
            # Never written, or damaged: what this process has listed is all that is known.
            return self._listed or ()
        return tuple(sorted({one for one in _numbers(found) if 0 <= one < MAX_SLOTS}))

    def _remember(self) -> None:
        if self._listed is None:  # an instance may hear who holds what before its first look
            return
        try:
            files.replace(self._host.path(self._path), json.dumps(self._listed).encode())
            self._unsaved = ""
        except OSError as error:
            self._unsaved = f"{self._path} cannot be written: {error.strerror or error}; after a restart slots that are held might be taken away"


def _numbers(found: object) -> list[int]:
    return [one for one in found if type(one) is int] if isinstance(found, list) else []
