# SPDX-License-Identifier: Apache-2.0
"""The status page as it changes, for those who follow it: rendered once for all of them, and not at all for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from deviceplugin.daemon import Daemon

PERIOD = 1.0
"""Seconds between two looks whether the page has changed."""

HEARTBEAT = 15.0
"""Seconds after which a follower hears that nothing has changed: a dead connection is noticed by sending."""

LIMIT = 3600.0
"""Seconds that one connection may follow. A browser comes back by itself."""


class Live:
    """Safe from any thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._looked_at = -PERIOD
        self._text = ""
        self._number = 0
        self._message = b""

    def follow(self) -> Iterator[bytes]:
        """Server-sent events: the whole of what changes, at once and with every change. Each is complete, so one that is missed is no loss."""
        began = said = time.monotonic()
        seen = 0
        yield b"retry: 2000\n\n"
        while not self._over.is_set() and time.monotonic() - began < LIMIT:
            number, message = self._current()
            if number != seen:
                seen, said = number, time.monotonic()
                yield message
            elif time.monotonic() - said >= HEARTBEAT:
                said = time.monotonic()
                yield b":\n\n"
            self._over.wait(PERIOD)

    def stop(self) -> None:
        """Ends all who follow."""
        self._over.set()

    def _current(self) -> tuple[int, bytes]:
        from deviceplugin.observe import page, status  # only a daemon whose page is looked at needs them

        with self._lock:
            if time.monotonic() - self._looked_at >= PERIOD:
                text = page.fragment(status.take(self._daemon))
                self._looked_at = time.monotonic()
                if text != self._text:
                    self._text, self._number = text, self._number + 1
                    self._message = b"".join(b"data: %s\n" % line for line in text.encode().split(b"\n")) + b"\n"
            return self._number, self._message
