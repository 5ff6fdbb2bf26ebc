# SPDX-License-Identifier: Apache-2.0
"""Looks at the hardware for one plugin, when something happened and now and then, and keeps its inventory. One thread owns both."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

from msgspec import Struct

from deviceplugin import files
from deviceplugin.events import Scope
from deviceplugin.hooks import HookFailed, Hooks
from deviceplugin.inventory import Held, Inventory, Transition
from deviceplugin.model import Connection, Health, Sharing
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

WATCH_BACKOFF_CAP = 60.0

BREATH = 0.02
"""Seconds between two looks at the least, however often a plugin's watch() calls for one."""

IN_VAIN = 30.0
"""Seconds between two looks at the least where there is nothing and watch() tells of what comes: a node without the hardware pays nothing for it."""


class ScanReport(Struct, frozen=True):
    """How the last look went. Times are on the monotonic clock; ``error`` is empty after a success."""

    succeeded_at: float = 0.0
    seconds: float = 0.0
    error: str = ""
    failures: int = 0


class Scanner:
    """Runs one plugin's discovery for ever. A failure keeps the last inventory, is counted and shown, and is tried again."""

    def __init__(
        self,
        inventory: Inventory,
        hooks: Hooks,
        tally: Tally,
        *,
        on_publish: Callable[[Scanner, tuple[Transition, ...]], None],
        held: Held,
        interval: float,
        unknown_after: float,
        state_file: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = inventory.name
        self.inventory = inventory
        self.hooks = hooks
        self.report = ScanReport()
        self.connections: tuple[Connection, ...] = ()
        self._tally = tally
        self._on_publish = on_publish
        self._held = held
        self._interval = interval
        self._unknown_after = unknown_after
        self._state_file = state_file
        self._clock = clock
        self._started = False
        self._began = clock()
        self._distrusted = False
        self._unsaved = ""
        self._wake = threading.Event()
        self._look = threading.Event()
        self._stopping = threading.Event()
        self._first = threading.Event()
        self._watching = Scope(self.wake)
        self._pardons: queue.SimpleQueue[tuple[str, Future[str | None]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"scan-{self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something may have changed: discover soon."""
        self._look.set()
        self._wake.set()

    def share(self, sharing: Mapping[str, Sharing]) -> None:
        """Takes new sharing rules and applies them on the scanner's own thread."""
        self.hooks.plugin.sharing = sharing
        self.inventory.share(sharing)
        self.wake()

    def forgive(self, unit: str) -> Future[str | None]:
        """An administrator's pardon: the unit's fault is forgotten, and the unit looked at anew. From any thread.

        Done after that look, with the cause that was forgiven, None if there was none.
        """
        pardon: Future[str | None] = Future()
        self._pardons.put((unit, pardon))
        self.wake()
        return pardon

    def recheck(self) -> None:
        """Who holds what may have changed: look at the tombstones, not at the hardware."""
        if self.inventory.tombstones:
            self._wake.set()

    def wait_first(self, timeout: float) -> bool:
        """Whether the first look ended, well or not, within ``timeout`` seconds."""
        return self._first.wait(timeout)

    def stop(self) -> None:
        """Ends the scanning and lets the plugin clean up."""
        self._stopping.set()
        self._wake.set()
        self._watching.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=1.0)
        if self._started:
            try:
                self.hooks.call("stop")
            except HookFailed as error:
                log.warning("%s", error)
        self.hooks.close()

    def _run(self) -> None:
        self._load()
        if self.hooks.has("watch"):
            threading.Thread(target=self._watch, name=f"watch-{self.name}", daemon=True).start()
        next_scan = self._clock()
        while not self._stopping.is_set():
            self._wake.clear()
            if self._look.is_set() or self._clock() >= next_scan:
                self._look.clear()
                with self._pardoning():
                    self._scan()
                next_scan = self._clock() + self._pause()
                self._stopping.wait(BREATH)
            else:
                before = self.inventory.snapshots
                transitions = self.inventory.bury(self._held)
                if self.inventory.snapshots is not before:
                    self._publish(transitions)
            self._first.set()
            self._wake.wait(max(0.0, next_scan - self._clock()))

    def _pause(self) -> float:
        """Seconds to the next look: sooner while something is to be expected."""
        due = self.inventory.book.due(self._clock())
        if due is None and not self.report.error and self.inventory.empty and self.hooks.has("watch"):
            return max(self._interval, IN_VAIN)
        # A look that takes long is not repeated all the time because something is broken.
        pause = self._interval if due is None else min(self._interval, max(due, 20 * self.report.seconds))
        if self.report.error:
            pause = min(pause, 5.0)
        return max(0.05, pause)

    @contextmanager
    def _pardoning(self) -> Iterator[None]:
        """Grants the pardons that were asked for, and tells of them after the block."""
        granted: list[tuple[Future[str | None], str | None]] = []
        while not self._pardons.empty():
            unit, pardon = self._pardons.get()
            cause = self.inventory.book.forgive(unit)
            if cause is not None:
                log.warning("plugin %s: %s: the fault %s is forgiven, as was asked for", self.name, unit, cause)
            granted.append((pardon, cause))
        if any(cause is not None for _, cause in granted):
            self._save()
        yield
        for pardon, cause in granted:
            pardon.set_result(cause)

    def _scan(self) -> None:
        began = self._clock()
        for hook, _ in self.hooks.hung():
            if hook in ("start", "discover"):
                self._failed(f"plugin {self.name}: {hook}() still hangs; it is not called again before it comes back")
                return
        try:
            if not self._started:
                self.hooks.call("start")
                self._started = True
            found = self.hooks.call("discover")
        except HookFailed as error:
            self._failed(str(error))
            return
        took = self._clock() - began
        self._tally.time("scan_seconds", took, plugin=self.name)
        try:
            transitions = self.inventory.update(found, self.hooks, self._held)
        except Exception as error:  # a bug of ours must not end the thread: without it a node's devices would freeze
            log.exception("plugin %s: the inventory could not be made", self.name)
            self._failed(f"plugin {self.name}: the inventory could not be made: {error!r}")
            return
        if self.report.error:
            log.info("plugin %s: discovery works again", self.name)
        self.report = ScanReport(self._clock(), took)
        self._distrusted = False
        self._publish(transitions)
        self._connect()

    def _connect(self) -> None:
        """For the picture only: a failure costs nothing else."""
        if self.hooks.has("connections") and not any(hook == "connections" for hook, _ in self.hooks.hung()):
            try:
                self.connections = tuple(one for one in self.hooks.call("connections") if isinstance(one, Connection))
            except HookFailed as error:
                self.connections = ()
                log.debug("%s", error)

    def _failed(self, text: str) -> None:
        self._tally.count("scan_failures", plugin=self.name)
        if text != self.report.error:  # once per reason, not once per try
            log.error("%s; the last known devices stay", text)
        self.report = ScanReport(self.report.succeeded_at, self.report.seconds, text, self.report.failures + 1)
        blind = self._clock() - (self.report.succeeded_at or self._began)
        if blind >= self._unknown_after and self.inventory.hooks is not None and not self._distrusted:
            self._distrusted = True
            log.error("plugin %s: no successful discovery for %.0f s; its devices are unknown now", self.name, blind)
            self._publish(self.inventory.distrust("discovery fails"))

    def _publish(self, transitions: tuple[Transition, ...]) -> None:
        for change in transitions:
            self._tally.count("health_transitions", plugin=self.name, health=change.after.value)
            # A unit that is there and well from the start is no news.
            level = logging.DEBUG if change.before is None and change.after is Health.HEALTHY else logging.INFO
            level = logging.WARNING if change.after is not Health.HEALTHY else level
            was = f" (was {change.before.value})" if change.before else ""
            log.log(level, "plugin %s: %s is %s%s%s", self.name, change.unit, change.after.value, f": {change.cause}" if change.cause else "", was)
        if transitions or self._unsaved:
            self._save()
        try:
            self._on_publish(self, transitions)
        except Exception:  # as above: the next look publishes again
            log.exception("plugin %s: its devices could not be published", self.name)

    def _watch(self) -> None:
        delay = 1.0
        while not self._stopping.is_set():
            began = self._clock()
            try:
                with self._watching:
                    for _ in self.hooks.plugin.watch():
                        self.wake()
                        if self._stopping.is_set():
                            return
                log.debug("plugin %s: watch() ended", self.name)
            except BaseException as error:  # noqa: BLE001 - whatever a vendor's code raises, SystemExit too: said, counted, tried again
                log.error("plugin %s: watch() failed: %s: %s; looking every %g s meanwhile", self.name, type(error).__name__, error, self._interval)
                self._tally.count("hook_failures", plugin=self.name, hook="watch", reason="error")
            delay = 1.0 if self._clock() - began > WATCH_BACKOFF_CAP else min(delay * 2, WATCH_BACKOFF_CAP)
            self._stopping.wait(delay)

    def _load(self) -> None:
        if not self._state_file:
            return
        try:
            with open(self._state_file, encoding="utf-8") as file:
                self.inventory.book.load(json.load(file))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("plugin %s: faults remembered in %s cannot be read (%s); starting without them", self.name, self._state_file, error)

    def _save(self) -> None:
        if not self._state_file:
            return
        try:
            files.replace(self._state_file, json.dumps(self.inventory.book.dump()).encode(), 0o600)
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._unsaved:  # once per reason, and tried again with each look
                log.warning("plugin %s: faults cannot be written to %s: %s; they would not survive a restart", self.name, self._state_file, reason)
            self._unsaved = reason
            return
        self._unsaved = ""
