# SPDX-License-Identifier: Apache-2.0
"""Calls a vendor's hooks: each on a thread of its own, under a deadline, so that one that hangs or raises takes down nothing but itself.

The kubelet puts no deadline on Allocate and makes the call inside its sync loop: a hook that hung there would freeze the whole node.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field

from deviceplugin.plugin import Plugin, overrides
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

DEADLINES: Mapping[str, float] = {
    "advice": 5.0,
    "discover": 30.0,
    "allocate": 5.0,
    "connections": 5.0,
    "measure": 2.0,
    "prefer": 1.0,
    "prepare": 25.0,
    "reconcile": 10.0,
    "start": 30.0,
    "stop": 1.0,
}
"""Seconds that each hook may take. The kubelet gives up on PreStartContainer after 30 s."""

MAX_HUNG = 16
"""How many calls of one plugin may hang before further ones are refused at once: each holds a thread."""


SHOWN = 300
"""Characters of an exception's text that are passed on: it may end up in a pod's status."""


class HookFailed(Exception):
    """A vendor's hook raised, hung, or could not be called; the text names the plugin and the hook."""


class HookTimeout(HookFailed):
    """The hook did not answer in time. Its thread is left to it and its answer will be thrown away."""


class _Call(Struct, eq=False):
    hook: str
    run: Callable[[], Any]
    started: float
    gate: threading.Lock = field(default_factory=threading.Lock)
    """Held until the hook has answered: an Event would be a lock, a condition and a list more, on every Allocate."""
    done: bool = False
    result: Any = None
    error: BaseException | None = None
    abandoned: bool = False


class Hooks:
    """The hooks of one plugin instance. Threads are made when needed, kept, and replaced when one hangs."""

    def __init__(self, plugin: Plugin, name: str, tally: Tally, deadlines: Mapping[str, float] | None = None) -> None:
        self.plugin = plugin
        self.name = name
        self._tally = tally
        self._deadlines = {**DEADLINES, **(deadlines or {})}
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Call | None]] = []
        self._hung: dict[int, _Call] = {}
        self._closed = False

    def has(self, hook: str) -> bool:
        """Whether the vendor overrides ``hook``."""
        return overrides(self.plugin, hook)

    def hung(self) -> tuple[tuple[str, float], ...]:
        """The calls that did not answer in time and still run: hook and age in seconds, oldest first."""
        now = time.monotonic()
        with self._lock:
            calls = list(self._hung.values())
        return tuple(sorted(((c.hook, now - c.started) for c in calls), key=lambda pair: -pair[1]))

    def call(self, hook: str, *args: Any, deadline: float | None = None) -> Any:
        """The hook's answer (a list, where the hook returns an iterable or generator). Raises HookFailed or HookTimeout, never anything else."""
        limit = self._deadlines[hook] if deadline is None else min(deadline, self._deadlines[hook])
        function = getattr(self.plugin, hook)
        collect = hook in ("advice", "discover", "measure", "prefer", "reconcile", "uninstall")
        call = _Call(hook, (lambda: _collect(hook, function(*args))) if collect else (lambda: function(*args)), time.monotonic())
        call.gate.acquire()
        self._submit(call)
        finished = call.gate.acquire(timeout=limit)
        if not finished:
            with self._lock:
                call.abandoned = not call.done
                if call.abandoned:
                    self._hung[id(call)] = call
        self._tally.time("hook_seconds", time.monotonic() - call.started, plugin=self.name, hook=hook)
        if call.abandoned:
            self._tally.count("hook_failures", plugin=self.name, hook=hook, reason="timeout")
            raise HookTimeout(f"plugin {self.name}: {hook}() did not answer within {limit:g} s")
        if call.error is not None:
            self._tally.count("hook_failures", plugin=self.name, hook=hook, reason="error")
            raise HookFailed(f"plugin {self.name}: {hook}() failed: {_describe(call.error)}") from call.error
        return call.result

    def close(self) -> None:
        """Lets the idle threads end. A hung one ends with the process."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)

    def _submit(self, call: _Call) -> None:
        with self._lock:
            if len(self._hung) >= MAX_HUNG:
                oldest = min(self._hung.values(), key=lambda c: c.started)
                self._tally.count("hook_failures", plugin=self.name, hook=call.hook, reason="refused")
                raise HookFailed(
                    f"plugin {self.name}: {call.hook}() not called, since {MAX_HUNG} calls hang, the oldest in {oldest.hook}() for "
                    f"{time.monotonic() - oldest.started:.0f} s"
                )
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = queue.SimpleQueue()
            try:
                threading.Thread(target=self._work, args=(inbox,), name=f"hook-{self.name}", daemon=True).start()
            except RuntimeError as error:  # the limit of processes and threads is reached
                raise HookFailed(f"plugin {self.name}: {call.hook}() not called: {error}") from error
        inbox.put(call)

    def _work(self, inbox: queue.SimpleQueue[_Call | None]) -> None:
        while (call := inbox.get()) is not None:
            try:
                call.result = call.run()
            except BaseException as error:  # noqa: BLE001 - whatever a vendor's code raises is handed to the caller, SystemExit too
                call.error = error
            with self._lock:
                call.done = True
                call.gate.release()
                self._hung.pop(id(call), None)
                closed = self._closed
                if not closed:
                    self._idle.append(inbox)
            if call.abandoned:
                log.warning(
                    "plugin %s: %s() came back after %.1f s; its answer is thrown away", self.name, call.hook, time.monotonic() - call.started
                )
            del call
            if closed:
                return


def _collect(hook: str, answer: Any) -> Any:
    """An iterable's items, since a generator runs only now; None, where prefer() leaves the choice to the policy."""
    return None if answer is None and hook == "prefer" else list(answer)


def _describe(error: BaseException) -> str:
    """One short line for a log or a pod's status: the text of the exception, or its type where it has none."""
    try:
        text = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - also the text of an exception is a vendor's code
        text = []
    first = text[0] if text else ""
    return f"{type(error).__name__}: {first[:SHOWN]}" if first else type(error).__name__
