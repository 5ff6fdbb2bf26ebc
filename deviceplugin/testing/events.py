# SPDX-License-Identifier: Apache-2.0
"""What the fake kubelet did and saw, in order, and waiting for it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType


class NotReached(AssertionError):
    """A state that a test waited for did not come in time. The text says what was waited for, what is, and what happened last."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. ``at`` is in seconds on the kubelet's clock."""

    at: float
    kind: str
    resource: str
    detail: Mapping[str, object]

    def __str__(self) -> str:
        detail = " ".join(f"{key}={_brief(value)}" for key, value in self.detail.items())
        return f"{self.at:.3f} {self.kind}{' ' if self.resource else ''}{self.resource}{' ' if detail else ''}{detail}"


class EventLog:
    """Everything the kubelet did, over all its restarts; it only ever grows.

    Kinds: ``kubelet started``, ``kubelet stopped``, ``register``, ``registered``, ``register failed``, ``register ignored``, ``stream opened``,
    ``list``, ``stream ended``, ``disconnected``, ``call``, ``answer``, ``call failed``, ``admitted``, ``rejected``, ``container started``,
    ``container failed``, ``checkpoint written``, ``checkpoint failed``, ``checkpoint corrupt``, ``pod refreshed``, ``resource removed``,
    ``conflict``, ``plugin found``, ``plugin gone``, ``plugin registration failed``, ``sync loop blocked``, ``panic``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: list[Event] = []
        self._changed = threading.Condition()

    def record(self, kind: str, resource: str = "", **detail: object) -> None:
        event = Event(self._clock(), kind, resource, MappingProxyType(detail))
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def of(self, kind: str, resource: str | None = None, *, since: int = 0) -> list[Event]:
        """The events of a kind, from index ``since`` on (``len(events)`` at some moment marks that moment)."""
        return [e for e in itertools.islice(tuple(self._events), since, None) if e.kind == kind and resource in (None, e.resource)]

    def last(self, count: int = 12) -> str:
        """The last events, one a line, for a failure's text."""
        return "\n".join(f"  {event}" for event in tuple(self._events)[-count:]) or "  (nothing has happened)"

    def wait(self, reached: Callable[[], bool], timeout: float, describe: Callable[[], str]) -> None:
        """Waits until ``reached``, which is asked again after every event and, for what is no event, every 20 ms.

        :raises NotReached: after ``timeout`` real seconds, with the text of ``describe``.
        """
        deadline = time.monotonic() + timeout
        while True:
            # The predicate runs outside the condition's lock: it may take locks under which others record events.
            seen = len(self._events)
            if reached():
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotReached(f"{describe()}\nlast events:\n{self.last()}")
            with self._changed:
                if len(self._events) == seen:
                    self._changed.wait(min(left, 0.02))


def _brief(value: object) -> str:
    text = " ".join((value if isinstance(value, str) else str(value)).split())
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
