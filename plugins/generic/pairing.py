# SPDX-License-Identifier: Apache-2.0
"""How the matches of a group's entries are put together into devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """How many matches an entry has, in how many devices each may be, and whether the device does without."""

    matches: int
    limit: int = 1
    optional: bool = False


def pair(columns: Sequence[Column]) -> list[tuple[int | None, ...]]:
    """The devices: for each, which match of every column it has, None for an optional one that has run out.

    The first match goes with the first, the second with the second. When a column has run out it starts again, until each of its matches was used
    ``limit`` times. There are as many devices as the shortest column that is not optional allows, but never more than the longest has matches.
    """
    longest = max((column.matches for column in columns), default=0)
    devices = min([longest, *(column.matches * column.limit for column in columns if not column.optional)])
    return [tuple(n % c.matches if n < c.matches * c.limit else None for c in columns) for n in range(devices)]
