# SPDX-License-Identifier: Apache-2.0
"""When the plugin calls for another look."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from deviceplugin.plugins import pfs
from tests.unit.pfs.rig import T0, Rig

Make = Callable[..., Rig]
WAIT = 5.0


class Watching:
    """The plugin's watch() on a thread of its own."""

    def __init__(self, one: Rig) -> None:
        self.calls: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.one = one
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for _ in self.one.plugin.watch():
            self.calls.put(None)

    def __enter__(self) -> Watching:
        self.thread.start()
        while self.one.plugin._watching is None:
            assert self.thread.is_alive()
        return self

    def __exit__(self, *_error: object) -> None:
        self.one.plugin.stop()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def called(self) -> None:
        self.calls.get(timeout=WAIT)

    def falls_quiet(self) -> int:
        """How many calls come until there is none for half a second. What was on its way is among them."""
        for count in range(20):
            try:
                self.calls.get(timeout=0.5)
            except queue.Empty:
                return count
        raise AssertionError("calls without end")


def test_the_mount_table_and_the_file_with_the_number_call_for_a_look(rig: Make) -> None:
    one = rig({**{key: value for key, value in T0.items() if key != "slots"}, "slotsFile": "/etc/pfs/slots"}, tree="lustre-2.15")
    one.host.write("/etc/pfs/slots", "2")
    with Watching(one) as watching:
        one.pfs.unmount("/mnt/scratch")
        watching.called()
        one.host.write("/etc/pfs/slots", "3")
        watching.called()


def test_what_is_not_settled_is_looked_at_again_soon_and_what_is_settled_is_not(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pfs, "LOOK_AGAIN", 0.05)
    one = rig(T0, tree="lustre-2.15")
    with Watching(one) as watching:
        one.look()
        one.pfs.set_import("OST0000", "DISCONN")
        one.look()
        watching.called()
        one.look()
        watching.called()
        one.look()
        assert not one.plugin._debounce.unsettled
        assert watching.falls_quiet() <= 2


def test_a_slot_that_came_free_of_too_many_calls_for_a_look(rig: Make) -> None:
    one = rig({**{key: value for key, value in T0.items() if key != "slots"}, "slotsFile": "/etc/pfs/slots"}, tree="lustre-2.15")
    one.host.write("/etc/pfs/slots", "2")
    held = one.look()
    one.host.write("/etc/pfs/slots", "1")
    assert len(one.look()) == 2
    with Watching(one) as watching:
        one.verdicts(held[1:])
        watching.called()
        assert one.later(held[1:]) == [1]
        watching.falls_quiet()
        one.verdicts(held[1:])
        assert watching.falls_quiet() == 0


def test_a_stop_before_the_watch_ends_it_at_once(rig: Make) -> None:
    one = rig(T0, tree="lustre-2.15")
    one.plugin.stop()
    assert list(one.plugin.watch()) == []
