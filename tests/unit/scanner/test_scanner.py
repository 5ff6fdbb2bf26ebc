# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin import scanner as scanning
from deviceplugin.health import HealthBook
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Inventory
from deviceplugin.model import Device, Health, Recovery, Rule
from deviceplugin.scanner import Scanner
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET, Clock, Widgets, sick

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

    def __init__(self, plugin: Scripted | None = None, *, state: Path | None = None, held: bool | None = None, unknown_after: float = 60.0) -> None:
        self.clock = Clock()
        self.tally = Tally()
        self.plugin = plugin or Scripted()
        self.held = held
        book = HealthBook({"fatal": Rule(Recovery.NEVER)}, boot_id="boot")
        self.inventory = Inventory("widgets", book=book, clock=self.clock)
        self.published: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.scanner = Scanner(
            self.inventory,
            Hooks(self.plugin, "widgets", self.tally),
            self.tally,
            on_publish=lambda scanner, _changes: self.published.put(sum(len(one.rows) for one in scanner.inventory.snapshots.values())),
            held=lambda _resource, _id: self.held,
            interval=3600.0,
            unknown_after=unknown_after,
            state_file=str(state) if state else "",
            clock=self.clock,
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


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.end()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_is_found_is_published(bench: Bench) -> None:
    bench.find(Device("a"), Device("b"))
    assert bench.published.get_nowait() == 2
    assert bench.listed() == {"a": "healthy", "b": "healthy"}
    assert (bench.scanner.report.error, bench.scanner.report.failures, bench.scanner.report.succeeded_at) == ("", 0, bench.clock())
    assert bench.scanner.wait_first(0)


def test_a_failure_keeps_the_last_devices_and_is_counted_and_said_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.find(Device("a"))
    before = bench.inventory.snapshots
    for _ in range(3):
        bench.answer(OSError("bus error"))
    assert bench.inventory.snapshots is before
    assert (bench.scanner.report.failures, bench.tally.value("scan_failures", plugin="widgets")) == (3, 3)
    assert "bus error" in bench.scanner.report.error
    assert errors(caplog) == ["plugin widgets: discover() failed: OSError: bus error; the last known devices stay"]
    with caplog.at_level(logging.INFO):
        bench.find(Device("a"))
    assert "discovery works again" in caplog.text
    assert (bench.scanner.report.error, bench.scanner.report.failures) == ("", 0)


def test_another_reason_is_said_too(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.answer(OSError("one"))
    bench.answer(OSError("two"))
    assert len(errors(caplog)) == 2


def test_after_failing_for_long_the_devices_are_unknown_until_a_look_succeeds(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.find(Device("a"), sick("b"))
    bench.clock.advance(59)
    bench.answer(OSError("bus error"))
    assert bench.listed() == {"a": "healthy", "b": "unhealthy"}
    bench.clock.advance(1)
    bench.answer(OSError("bus error"))
    assert bench.listed() == {"a": "unknown", "b": "unhealthy"}
    bench.answer(OSError("bus error"))
    assert sum("unknown now" in line for line in errors(caplog)) == 1
    bench.find(Device("a"), Device("b"))
    assert bench.listed() == {"a": "healthy", "b": "healthy"}


def test_an_inventory_that_cannot_be_made_is_a_failure_like_any_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.find(Device("a"))

    def update(*_arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.inventory, "update", update)
    bench.find(Device("b"))
    bench.clock.advance(60)
    bench.find(Device("b"))
    assert bench.scanner.report.failures == 2
    assert "a bug" in bench.scanner.report.error
    assert bench.listed() == {"a": "unknown"}


def test_a_publication_that_fails_does_not_end_the_looking(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError("no space for a socket")

    publish, bench.scanner._on_publish = bench.scanner._on_publish, refuse
    bench.find(Device("a"))
    assert "could not be published" in caplog.text
    bench.scanner._on_publish = publish
    bench.find(Device("a"), Device("b"))
    assert bench.published.get_nowait() == 2


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


def test_a_tombstone_that_nobody_holds_is_buried_without_a_look_and_published() -> None:
    bench = Bench()
    bench.find(Device("a"), Device("b"))
    bench.plugin.script.put([Device("b")])
    assert [bench.published.get(timeout=WAIT) for _ in range(2)] == [2, 2]
    bench.held = False
    bench.clock.advance(10)
    bench.scanner.recheck()
    assert bench.published.get(timeout=WAIT) == 1
    assert bench.plugin.looks.empty()
    bench.scanner.stop()


def test_a_fault_survives_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "state" / "health.json"
    first = Bench(state=state)
    first.find(sick("a", "fatal"), sick("b", "passing"), Device("c"))
    first.end()
    second = Bench(state=state)
    second.find(Device("a"), Device("b"), Device("c"))
    assert second.listed() == {"a": "unhealthy", "b": "healthy", "c": "healthy"}
    second.end()
    assert [path.name for path in state.parent.iterdir()] == ["health.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"units": [1]}', '{"boot_id": "boot", "units": {"a": {}}}', "\udcff"])
def test_a_state_that_cannot_be_read_is_left_aside_and_said(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "health.json"
    state.write_bytes(text.encode("utf-8", "surrogateescape"))
    bench = Bench(state=state)
    bench.find(Device("a"))
    assert bench.listed() == {"a": "healthy"}
    assert sum("starting without them" in record.getMessage() for record in caplog.records) == 1
    bench.end()


def test_a_state_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    bench = Bench(state=tmp_path / "file" / "health.json")
    bench.find(sick("a"))
    assert bench.listed() == {"a": "unhealthy"}
    assert "would not survive a restart" in caplog.text
    bench.end()


def test_each_change_of_health_is_logged_and_counted(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.find(Device("a"))
    bench.find(sick("a", "too hot"))
    bench.find(Device("a"))
    lines = [line for line in (record.getMessage() for record in caplog.records) if " a is " in line]
    assert lines == ["plugin widgets: a is unhealthy: too hot (was healthy)", "plugin widgets: a is healthy (was unhealthy)"]
    counts = [bench.tally.value("health_transitions", plugin="widgets", health=health.value) for health in Health]
    assert counts == [2, 1, 0]


def test_stopping_is_prompt_and_lets_the_plugin_clean_up() -> None:
    bench = Bench()
    bench.plugin.script.put([Device("a")])
    bench.published.get(timeout=WAIT)
    bench.scanner.stop()
    assert bench.plugin.stopped.is_set()
    assert not bench.scanner._thread.is_alive()


def test_stopping_does_not_wait_for_a_look_that_hangs() -> None:
    bench = Bench()
    began = time.monotonic()
    bench.scanner.stop()
    assert time.monotonic() - began < 3
    bench.plugin.script.put([])


def test_a_scanner_that_never_ran_can_be_stopped() -> None:
    plugin = Scripted()
    tally = Tally()
    scanner = Scanner(
        Inventory("widgets"), Hooks(plugin, "widgets", tally), tally, on_publish=lambda *_: None, held=lambda *_: None, interval=1, unknown_after=1
    )
    scanner.stop()
    assert not plugin.stopped.is_set()
