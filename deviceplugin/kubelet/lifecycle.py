# SPDX-License-Identifier: Apache-2.0
"""When to make a socket, when to register it and when to throw it away: pure decisions from what can be seen.

Two rules stand above the rest. Never register while a stream is alive: up to 1.36 the kubelet keeps one client per resource name, and when the
older stream ends it closes the newer one (runClient in pkg/kubelet/cm/devicemanager/plugin/v1beta1/handler.go). And a stream's end is final: the
kubelet never dials again, so only a new registration brings the devices back.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from deviceplugin.kubelet.paths import SocketId

PROMPT = 1.0
"""Seconds from a successful Register to the kubelet's ListAndWatch, for a first try: it has connected inside the call, and asks as soon as it has
answered. Where it does not, the late end of another stream has closed the connection, or the kubelet is one that answers OK to what it ignores."""

EXPECT = 10.0
"""The same at the most: each try that fails gives the next twice the time, and a call without an answer has all of it."""

ZOMBIE = 1.0
"""Seconds that a stream of a kubelet may outlive its kubelet.sock before it is given up: the process behind it hangs."""

REDIAL = 1.0
"""Seconds that the plugin watcher gets, a restarted kubelet's too, to open a stream before a new socket is put there; twice as many after each time
that it did not."""

SHORT_LIVED = 5.0
BACKOFF_FIRST, BACKOFF_CAP, BACKOFF_PERMANENT = 0.05, 5.0, 60.0


class Phase(enum.Enum):
    DOWN = "down"
    """No socket is announced; one is wanted."""
    REGISTERING = "registering"
    """The kubelet has been told, or will find the socket, and has not answered."""
    EXPECTING = "expecting"
    """The kubelet said yes and has not opened a stream."""
    SERVING = "serving"


class Outcome(enum.Enum):
    """How a Register call ended."""

    ACCEPTED = "accepted"
    UNKNOWN = "unknown"
    """It ran out of time: the kubelet may have taken it."""
    FAILED = "failed"
    REFUSED = "refused"
    """The kubelet will never take this name or version."""


class Action(enum.Enum):
    NONE = "none"
    ANNOUNCE = "announce"
    """Make a fresh socket and announce it."""
    RETIRE = "retire"
    """Stop the server and forget its socket."""


class State(Struct, frozen=True):
    phase: Phase = Phase.DOWN
    since: float = 0.0
    kubelet: SocketId | None = None
    """The kubelet.sock of the last attempt."""
    failures: int = 0
    not_before: float = 0.0
    odd_since: float | None = None
    """Since when things have been so that they may right themselves: another kubelet.sock under a live stream, or no stream yet after a restart."""
    patience: float = 0.0
    """Seconds that the stream may take while one is expected."""


class Facts(Struct, frozen=True):
    """What can be seen now. ``kubelet`` is None where kubelet.sock is absent; ``opened`` counts the streams this socket ever had."""

    now: float
    kubelet: SocketId | None = None
    intact: bool = True
    streams: int = 0
    opened: int = 0
    outcome: Outcome | None = None


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait after so many failures in a row: the first is tried again at once. ``jitter`` is from 0 to 1."""
    if failures <= 1:
        return 0.0
    return min(BACKOFF_FIRST * 2.0 ** min(failures - 2, 20), BACKOFF_CAP) * (0.5 + jitter / 2)


def announced(state: State, facts: Facts, jitter: Callable[[], float]) -> tuple[State, Action]:
    """The next step with kubelet.sock, where we call Register."""
    now = facts.now
    moved = facts.kubelet is not None and facts.kubelet != state.kubelet
    match state.phase:
        case Phase.DOWN:
            if facts.kubelet is None:
                return state, Action.NONE
            if moved:  # another kubelet: what the last one answered does not count
                state = replace(state, failures=0, not_before=now)
            if not _due(state, now):
                return state, Action.NONE
            return State(Phase.REGISTERING, now, facts.kubelet, state.failures), Action.ANNOUNCE
        case Phase.REGISTERING | Phase.EXPECTING if facts.streams == 0 and facts.opened == 0:
            if not facts.intact or (moved and facts.kubelet is not None and not facts.kubelet.same_file(state.kubelet)):
                # Somebody who keeps removing our socket does not set our pace.
                failures = 0 if moved else state.failures + 1
                return _down(replace(state, failures=failures), now, backoff(failures, jitter())), Action.RETIRE
            return _awaiting(state, facts, jitter)
        case _ if facts.streams == 0:
            brief = state.phase is not Phase.SERVING or now - state.since < SHORT_LIVED
            failures = state.failures + 1 if brief else 0
            return _down(replace(state, failures=failures), now, backoff(failures, jitter())), Action.RETIRE
        case Phase.SERVING:
            return _outlived(state, facts)
        case _:
            if facts.outcome in (Outcome.FAILED, Outcome.REFUSED):
                # The kubelet dropped its record of us and still reads the stream: when that ends nobody would notice. Start afresh.
                failures = state.failures + 1
                return _down(replace(state, failures=failures), now, backoff(failures, jitter())), Action.RETIRE
            if state.phase is Phase.REGISTERING and facts.outcome is None:
                return state, Action.NONE
            return _outlived(replace(state, phase=Phase.SERVING, since=now), facts)


def watched(state: State, facts: Facts, jitter: Callable[[], float]) -> tuple[State, Action]:
    """The next step with the plugins_registry directory, where the kubelet finds the socket and asks. It finds it again by itself after a restart."""
    now = facts.now
    if state.phase is Phase.DOWN:
        if not _due(state, now):
            return state, Action.NONE
        return State(Phase.REGISTERING, now, failures=state.failures), Action.ANNOUNCE
    if facts.outcome is Outcome.FAILED:  # the socket could not be made
        failures = state.failures + 1
        return _down(replace(state, failures=failures), now, max(backoff(failures, jitter()), BACKOFF_FIRST)), Action.RETIRE
    if not facts.intact and facts.streams == 0:
        failures = state.failures + 1
        return _down(replace(state, failures=failures), now, backoff(failures, jitter())), Action.RETIRE
    if facts.streams > 0:
        return (state if state.phase is Phase.SERVING else replace(state, phase=Phase.SERVING, since=now, failures=0)), Action.NONE
    if state.phase is Phase.SERVING or (state.phase is Phase.REGISTERING and (facts.opened > 0 or facts.outcome is Outcome.ACCEPTED)):
        # The stream is over, perhaps between two looks; or the kubelet knows this socket and may never open one: up to 1.36 the removal of another
        # instance's socket, which it sees at the same moment, closes the connection to ours (DeRegisterPlugin in handler.go asks by name).
        return replace(state, phase=Phase.EXPECTING, since=now, patience=_patience(REDIAL, state.failures)), Action.NONE
    if state.phase is Phase.EXPECTING and _due(state, now):
        # The kubelet did not come back to this socket. It looks again only at a socket that is new.
        return _down(replace(state, failures=state.failures + 1), now, 0.0), Action.RETIRE
    return state, Action.NONE


def wake_at(state: State) -> float | None:
    """When the state may change with time alone."""
    if state.phase is Phase.DOWN:
        return state.not_before
    if state.phase is Phase.EXPECTING:
        return state.since + state.patience
    if state.odd_since is not None:
        return state.odd_since + ZOMBIE
    return None


def _due(state: State, now: float) -> bool:
    """Whether the time has come that :func:`wake_at` names. Reckoned in any other way it could differ by rounding, and be waited for in vain."""
    due = wake_at(state)
    return due is not None and now >= due


def _patience(first: float, failures: int) -> float:
    """Seconds to wait for a stream: ``first``, twice as many after each failure, and never more than EXPECT."""
    return min(first * 2.0 ** min(failures, 10), EXPECT)


def _down(state: State, now: float, delay: float) -> State:
    return State(Phase.DOWN, now, state.kubelet, state.failures, now + delay)


def _awaiting(state: State, facts: Facts, jitter: Callable[[], float]) -> tuple[State, Action]:
    now = facts.now
    if state.phase is Phase.EXPECTING:
        if not _due(state, now):
            return state, Action.NONE
        failures = state.failures + 1
        return _down(replace(state, failures=failures), now, backoff(failures, jitter())), Action.RETIRE
    match facts.outcome:
        case None:
            return state, Action.NONE
        case Outcome.ACCEPTED:
            return replace(state, phase=Phase.EXPECTING, since=now, patience=_patience(PROMPT, state.failures)), Action.NONE
        case Outcome.UNKNOWN:
            return replace(state, phase=Phase.EXPECTING, since=now, patience=EXPECT), Action.NONE
        case Outcome.REFUSED:
            return _down(replace(state, failures=state.failures + 1), now, BACKOFF_PERMANENT), Action.RETIRE
        case Outcome.FAILED:
            failures = state.failures + 1
            return _down(replace(state, failures=failures), now, max(backoff(failures, jitter()), BACKOFF_FIRST / 5)), Action.RETIRE


def _outlived(state: State, facts: Facts) -> tuple[State, Action]:
    """A live stream. Only a kubelet.sock that is another file, for a while, says that its kubelet is not the one that counts."""
    if facts.kubelet is None or facts.kubelet.same_file(state.kubelet):
        return (state if state.odd_since is None else replace(state, odd_since=None)), Action.NONE
    if state.odd_since is None:
        return replace(state, odd_since=facts.now), Action.NONE
    if _due(state, facts.now):
        return _down(replace(state, failures=0), facts.now, 0.0), Action.RETIRE
    return state, Action.NONE
