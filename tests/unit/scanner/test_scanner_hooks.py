# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin import scanner as scanning
from deviceplugin.events import Events
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Inventory
from deviceplugin.model import Device, Skipped
from deviceplugin.scanner import Scanner
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET
from tests.helpers.scanning import WAIT, Bench, Scripted, errors


class Slow(Scripted):
    """Hangs in the named hook."""

    def __init__(self, where: str, gate: threading.Event) -> None:
        super().__init__()
        self.where = where
        self.gate = gate
        self.calls = {"start": 0, "discover": 0}

    def start(self) -> None:
        self.hang("start")

    def discover(self) -> list[Device]:
        self.hang("discover")
        return [Device("a")]

    def hang(self, hook: str) -> None:
        self.calls[hook] += 1
        if self.where == hook:
            self.gate.wait(WAIT)


@pytest.mark.parametrize("hook", ["start", "discover"])
def test_a_hook_that_hangs_is_not_called_again_before_it_comes_back(hook: str) -> None:
    gate = threading.Event()
    plugin = Slow(hook, gate)
    tally = Tally()
    came: queue.SimpleQueue[None] = queue.SimpleQueue()
    inventory = Inventory("widgets", clock=time.monotonic)
    scanner = Scanner(
        inventory,
        Hooks(plugin, "widgets", tally, {"start": 0.02, "discover": 0.02}),
        tally,
        on_publish=lambda *_: came.put(None),
        held=lambda *_: None,
        interval=0.05,
        unknown_after=60,
    )
    reports: queue.SimpleQueue[str] = queue.SimpleQueue()
    failed = scanner._failed

    def say(text: str) -> None:
        failed(text)
        reports.put(text)

    scanner._failed = say  # type: ignore[method-assign]
    scanner.start()
    assert "did not answer" in reports.get(timeout=WAIT)
    for _ in range(3):
        assert f"{hook}() still hangs" in reports.get(timeout=WAIT)
    assert plugin.calls[hook] == 1
    gate.set()
    came.get(timeout=WAIT)
    assert [row.id for row in inventory.snapshots[WIDGET].rows] == ["a"]
    scanner.stop()


class Watching(Scripted):
    def __init__(self) -> None:
        super().__init__()
        self.watched: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def watch(self) -> Iterator[object]:
        while (event := self.watched.get()) is not StopIteration:
            if isinstance(event, BaseException):
                raise event
            yield event


@pytest.mark.parametrize("end", [RuntimeError("netlink"), SystemExit(1), StopIteration])
def test_a_watch_calls_for_a_look_and_is_begun_again_when_it_ends(
    end: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scanning, "WATCH_BACKOFF_CAP", 0.001)
    plugin = Watching()
    bench = Bench(plugin)
    plugin.watched.put("something")
    plugin.script.put([Device("a")])
    plugin.looks.get(timeout=WAIT)
    plugin.watched.put(end)
    plugin.watched.put("something else")
    plugin.script.put([Device("b")])
    plugin.looks.get(timeout=WAIT)
    failures = bench.tally.value("hook_failures", plugin="widgets", hook="watch", reason="error")
    assert failures == (0 if end is StopIteration else 1)
    assert sum("watch() failed" in line for line in errors(caplog)) == failures
    bench.end()
    plugin.watched.put("the end")


class Late(Scripted):
    """Begins to watch when a look is under way."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.looking = threading.Event()

    def watch(self) -> Iterator[object]:
        self.looking.wait(WAIT)
        yield from Events(self.host, paths=[str(self.path)])


def test_what_happens_before_the_watch_has_begun_is_looked_for_once_it_has(tmp_path: Path) -> None:
    plugin = Late(tmp_path)
    bench = Bench(plugin)
    plugin.looking.set()
    plugin.script.put([])
    plugin.looks.get(timeout=WAIT)
    bench.end()


@pytest.mark.parametrize("there", [Device("a"), Skipped("b", "is broken")])
def test_where_there_is_nothing_only_the_watch_calls_for_a_look(there: Device | Skipped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "IN_VAIN", 3600.0)
    plugin = Watching()
    bench = Bench(plugin, interval=0.01)
    plugin.script.put([])
    with pytest.raises(queue.Empty):
        plugin.looks.get(timeout=0.3)
    plugin.watched.put("something")
    plugin.looks.get(timeout=WAIT)
    for _ in range(3):  # of themselves now
        plugin.script.put([there])
        plugin.looks.get(timeout=WAIT)
    bench.end()
    plugin.watched.put(StopIteration)


def test_who_has_no_watch_looks_on_where_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "IN_VAIN", 3600.0)
    bench = Bench(interval=0.01)
    for _ in range(3):
        bench.plugin.script.put([])
        bench.plugin.looks.get(timeout=WAIT)
    bench.end()
