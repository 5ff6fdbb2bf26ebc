# SPDX-License-Identifier: Apache-2.0
"""A scanner whose plugin finds what it is told to, one look at a time."""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deviceplugin.health import HealthBook
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Inventory
from deviceplugin.model import Device, Recovery, Rule
from deviceplugin.scanner import Scanner
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET, Clock, Widgets

WAIT = 10


class Scripted(Widgets):
    """Each of its looks waits for what it shall find. A watch that it has ends with what comes from :attr:`watched`."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.script: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.stopped = threading.Event()

    def discover(self) -> list[Device]:
        self.looks.put(None)
        found = self.script.get()
        if isinstance(found, BaseException):
            raise found
        return list(found)

    def stop(self) -> None:
        self.stopped.set()


class Bench:
    """A running scanner that is always in the middle of a look: whatever it was told before is done."""

    def __init__(
        self,
        plugin: Scripted | None = None,
        *,
        state: Path | None = None,
        held: bool | None = None,
        unknown_after: float = 60.0,
        interval: float | None = None,
    ) -> None:
        """Time stands still until it is told to go on, unless there is an interval, in real seconds."""
        self.clock = Clock()
        clock = self.clock if interval is None else time.monotonic
        self.tally = Tally()
        self.plugin = plugin or Scripted()
        self.held = held
        book = HealthBook({"fatal": Rule(Recovery.NEVER)}, boot_id="boot")
        self.inventory = Inventory("widgets", book=book, clock=clock)
        self.published: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.scanner = Scanner(
            self.inventory,
            Hooks(self.plugin, "widgets", self.tally),
            self.tally,
            on_publish=lambda scanner, _changes: self.published.put(sum(len(one.rows) for one in scanner.inventory.snapshots.values())),
            held=lambda _resource, _id: self.held,
            interval=3600.0 if interval is None else interval,
            unknown_after=unknown_after,
            state_file=str(state) if state else "",
            clock=clock,
        )
        self.scanner.start()
        self.plugin.looks.get(timeout=WAIT)

    def find(self, *found: Device) -> None:
        self.answer(found)

    def answer(self, found: Any) -> None:
        """Lets the look end with this, and waits until the next has begun."""
        self.scanner.wake()
        self.plugin.script.put(found)
        self.plugin.looks.get(timeout=WAIT)

    def listed(self) -> dict[str, str]:
        return {row.id: row.health.value for row in self.inventory.snapshots[WIDGET].rows}

    def end(self) -> None:
        self.plugin.script.put(ValueError("the end"))
        self.scanner.stop()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
