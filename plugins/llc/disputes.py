# SPDX-License-Identifier: Apache-2.0
"""When to stop mending what somebody else keeps changing."""

from __future__ import annotations

from collections.abc import Callable

LIMIT = 3
WINDOW = 600.0
PAUSE = 5.0


class Disputes:
    """Counts repairs of each thing: after :data:`LIMIT` within :data:`WINDOW` seconds there are no more until so much time has passed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[str, list[float]] = {}

    def may_mend(self, what: str) -> bool:
        """Whether it may be mended now, at most once in :data:`PAUSE` seconds; that counts as a repair."""
        times = self._recent(what)
        if len(times) >= LIMIT or (times and self._clock() - times[-1] < PAUSE):
            return False
        self._times[what] = [*times, self._clock()]
        return True

    def given_up(self, what: str) -> bool:
        """Whether it was mended too often lately."""
        return len(self._recent(what)) >= LIMIT

    def _recent(self, what: str) -> list[float]:
        since = self._clock() - WINDOW
        return [time for time in self._times.get(what, ()) if time > since]
