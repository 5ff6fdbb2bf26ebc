# SPDX-License-Identifier: Apache-2.0
"""Counts and durations, kept where things happen and read by whoever shows them.

Metrics libraries cost 40 ms at import, which is a fifth of the time from start to registration; so the counting is done here, and the library is
loaded by the thread that serves /metrics.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the duration buckets, in seconds."""

Labels = tuple[tuple[str, str], ...]


class Histogram(Struct, frozen=True):
    """How often a duration fell into each bucket (the last is everything above), and their sum in seconds."""

    counts: tuple[int, ...]
    total: float


class Tally:
    """Counters and histograms by name and labels. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], int] = {}
        self._times: dict[tuple[str, Labels], tuple[list[int], float]] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        self.counter(name, **labels)(amount)

    def counter(self, name: str, **labels: str) -> Callable[[int], None]:
        """Adds to one counter: for callers in a hurry, who name it once."""
        key = (name, tuple(sorted(labels.items())))

        def add(amount: int) -> None:
            with self._lock:
                self._counts[key] = self._counts.get(key, 0) + amount

        return add

    def time(self, name: str, seconds: float, **labels: str) -> None:
        self.timer(name, **labels)(seconds)

    def timer(self, name: str, **labels: str) -> Callable[[float], None]:
        """Adds a duration to one histogram: for callers in a hurry, who name it once."""
        key = (name, tuple(sorted(labels.items())))

        def add(seconds: float) -> None:
            slot = bisect.bisect_left(BUCKETS, seconds)
            with self._lock:
                buckets, total = self._times.get(key) or ([0] * (len(BUCKETS) + 1), 0.0)
                buckets[slot] += 1
                self._times[key] = (buckets, total + seconds)

        return add

    def value(self, name: str, **labels: str) -> int:
        """One counter, 0 if nothing was counted."""
        with self._lock:
            return self._counts.get((name, tuple(sorted(labels.items()))), 0)

    def counters(self) -> Iterator[tuple[str, Mapping[str, str], int]]:
        with self._lock:
            rows = sorted(self._counts.items())
        return ((name, dict(labels), value) for (name, labels), value in rows)

    def histograms(self) -> Iterator[tuple[str, Mapping[str, str], Histogram]]:
        with self._lock:
            rows = sorted((key, Histogram(tuple(buckets), total)) for key, (buckets, total) in self._times.items())
        return ((name, dict(labels), value) for (name, labels), value in rows)
