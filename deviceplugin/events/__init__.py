# SPDX-License-Identifier: Apache-2.0
"""What happens to files and devices, as it happens: inotify and the kernel's uevents.

A plugin that wants to look at its hardware the moment it changes needs two lines::

    def watch(self):
        yield from Events(self.host, paths=["/dev"], subsystems=["usb"])

The framework closes them when the plugin is no longer needed.
Events say where to look and are no record: some are merged, and the kernel may drop some.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from deviceplugin.events.uevents import Uevent, open_uevents
from deviceplugin.events.watch import Change, Kind, Watch
from deviceplugin.model import Host

__all__ = ["Change", "Events", "Kind", "Scope", "Uevent", "Watch"]

T = TypeVar("T")


class Scope:
    """The Events that are made in a thread while it is inside, so that another thread can end them all: whoever runs a plugin's watch() holds one.

    ``made`` is called each time that some are made: what happened before that is told by nobody, so who looked already must look again.
    """

    def __init__(self, made: Callable[[], None] = lambda: None) -> None:
        self._told = made
        self._lock = threading.Lock()
        self._made: list[Events] = []
        self._closed = False

    def __enter__(self) -> Scope:
        self._token = _scope.set(self)
        return self

    def __exit__(self, *_error: object) -> None:
        _scope.reset(self._token)

    def add(self, events: Events) -> None:
        with self._lock:
            closed = self._closed
            self._made = [*(one for one in self._made if not one.closed), events]
        if closed:
            events.close()
        else:
            self._told()

    def close(self) -> None:
        """Closes all of them, and each that is still made."""
        with self._lock:
            self._closed = True
            made, self._made = self._made, []
        for events in made:
            events.close()


_scope: ContextVar[Scope | None] = ContextVar("scope", default=None)

# While things keep happening, Events holds them back for this many times its settling time at most.
_PATIENCE = 20


class Events:
    """Changes below some of the host's paths and the uevents of some subsystems, told soon and not too often.

    Iterating blocks until something happens and then yields what did, a list of :class:`Change` and :class:`Uevent`. The first is told at once; what
    follows is held back until nothing has happened for ``settle`` seconds, or twenty times as long in a storm. ``paths`` are directories or files
    that may come and go (see :class:`~deviceplugin.events.Watch`). :meth:`close`, from any thread, ends the iteration, and an iteration that ends
    closes: there can be only one.

    Where uevents cannot be had (in a user namespace the kernel sends none) a line in the log says so, and paths alone are watched. Raises OSError
    when the kernel's limits for inotify are reached.
    """

    def __init__(self, host: Host, *, paths: Iterable[str] = (), subsystems: Iterable[str] | None = None, settle: float = 0.05) -> None:
        self._settle = settle
        self._uevents = open_uevents(tuple(subsystems or ()))
        try:
            self._watch = Watch(host.path(path) for path in paths)
        except BaseException:
            if self._uevents:
                self._uevents.close()
            raise
        if (scope := _scope.get()) is not None:
            scope.add(self)

    def __iter__(self) -> Iterator[list[Change | Uevent]]:
        try:
            yield from coalesce(self._wait, self._settle)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the iteration and gives all descriptors back. Idempotent."""
        self._watch.close()
        if self._uevents:
            self._uevents.close()

    @property
    def closed(self) -> bool:
        return self._watch.closed

    def _wait(self, timeout: float | None) -> list[Change | Uevent] | None:
        changes = self._watch.wait(timeout, self._uevents.fileno() if self._uevents else -1)
        if changes is None:
            return None
        try:
            return [*changes, *(self._uevents.receive() if self._uevents else ())]
        except OSError:
            if not self._watch.closed:  # by another thread, meanwhile
                raise
            return None


def coalesce(wait: Callable[[float | None], list[T] | None], settle: float, clock: Callable[[], float] = time.monotonic) -> Iterator[list[T]]:
    """The first things at once, and those that follow together when ``settle`` seconds were quiet.

    ``wait(timeout)`` returns what happened within that time; an empty list may come early, and None ends it all.
    """
    while (things := wait(None)) is not None:
        if not things:
            continue
        yield things
        held: list[T] = []
        first = last = clock()
        while (left := min(last + settle, first + _PATIENCE * settle) - clock()) > 0:
            things = wait(left)
            if things is None:
                return
            if things:
                held += things
                last = clock()
        if held:
            yield held
