# SPDX-License-Identifier: Apache-2.0
"""The links of machines that exist, and of some that do not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

Scores = list[list[int]]


def machine(count: int, groups: Mapping[int, int], nvlinks: Callable[[int, int], int] = lambda a, b: 0) -> Scores:
    """GPUs in groups of so many neighbours that have a score, 10 for pairs that are in no group, and 100 for each NVLink."""
    scores = [[0] * count for _ in range(count)]
    for a, b in itertools.combinations(range(count), 2):
        near = max((score for score, size in groups.items() if a // size == b // size), default=10)
        scores[a][b] = scores[b][a] = near + 100 * nvlinks(a, b)
    return scores


def both_ways(nvlinks: Mapping[tuple[int, int], int]) -> Callable[[int, int], int]:
    return lambda a, b: nvlinks.get((a, b), 0) or nvlinks.get((b, a), 0)


# `nvidia-smi topo -m` on a DGX-1 with V100s: a switch for two GPUs, a CPU for four, six NVLinks for each.
CUBE_MESH = both_ways(
    {(0, 1): 1, (0, 2): 1, (0, 3): 2, (1, 2): 2, (1, 3): 1, (2, 3): 2}
    | {(4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2}
    | {(0, 4): 2, (1, 5): 2, (2, 6): 1, (3, 7): 1}
)

DGX1 = machine(8, {50: 2, 20: 4}, CUBE_MESH)
HGX_H100 = machine(8, {20: 4}, lambda a, b: 18)
DGX2 = machine(16, {50: 2, 40: 4, 20: 8}, lambda a, b: 6)
L40S = machine(4, {20: 2})
PCIE16 = machine(16, {50: 2, 40: 4, 20: 8})
BRIDGED = machine(8, {20: 4}, lambda a, b: 4 if a // 2 == b // 2 else 0)

HALVES4, HALVES8, HALVES16 = [0] * 2 + [1] * 2, [0] * 4 + [1] * 4, [0] * 8 + [1] * 8


def any_links(count: int, chance: random.Random) -> Scores:
    """Random scores, of a kind that is random too: a few levels with many ties, or hardly any."""
    levels = chance.choice([[10, 20, 110, 210], [0, 1], [10, 20, 30, 40, 50, 60, 160, 260], list(range(1900))])
    scores = [[0] * count for _ in range(count)]
    for a, b in itertools.combinations(range(count), 2):
        scores[a][b] = scores[b][a] = chance.choice(levels)
    return scores


def any_numa(count: int, chance: random.Random) -> list[int | None]:
    return [chance.choice([None, 0, 1, 3]) for _ in range(count)]
