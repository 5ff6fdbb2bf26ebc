# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Inventory
from deviceplugin.model import Device, Health
from deviceplugin.scanner import Scanner
from deviceplugin.tally import Tally
from tests.helpers.core import sick
from tests.helpers.scanning import WAIT, Bench, Scripted, errors


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.end()


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
