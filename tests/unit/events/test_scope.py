# SPDX-License-Identifier: Apache-2.0
"""Whoever runs a plugin's watch() can end it, though the plugin kept no handle."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from deviceplugin import Host
from deviceplugin.events import Events, Scope


def watch(path: Path) -> Iterator[object]:
    yield from Events(Host(), paths=[str(path)])


def test_closing_the_scope_ends_a_watch_that_blocks_in_another_thread(tmp_path: Path) -> None:
    scope, entered, seen = Scope(), threading.Event(), list[object]()

    def run() -> None:
        with scope:
            iterator = watch(tmp_path)
            (tmp_path / "first").touch()
            entered.set()
            seen.extend(iterator)

    before = len(os.listdir("/proc/self/fd"))
    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(5)
    scope.close()
    thread.join(5)
    assert not thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_events_made_after_the_scope_was_closed_are_closed_at_once(tmp_path: Path) -> None:
    scope = Scope()
    scope.close()
    with scope:
        assert list(watch(tmp_path)) == []


def test_events_outside_a_scope_stay_open(tmp_path: Path) -> None:
    scope = Scope()
    with scope:
        pass
    events = Events(Host(), paths=[str(tmp_path)])
    scope.close()
    assert not events.closed
    events.close()
