# SPDX-License-Identifier: Apache-2.0
"""What deviceplugin.plugins.gpu.topology must answer, in plain Python: every set is looked at.

``choose`` says it in the plainest way; ``best_of_each_size`` gives the same for all sizes at once, fast enough for thousands of graphs; ``greedy``
is what a large search must never fall below.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

Scores = Sequence[Sequence[int]]
Numa = Sequence[int | None]

Rank = tuple[int, int, int]
"""Larger is better: the score inside, less the score cut, less the NUMA nodes."""


def rank(links: Scores, numa: Numa, available: Iterable[int], chosen: Iterable[int]) -> Rank:
    members = set(chosen)
    inside = sum(links[a][b] for a, b in itertools.combinations(sorted(members), 2))
    cut = sum(links[a][b] for a in members for b in set(available) - members)
    return inside, -cut, -len({numa[a] for a in members})


def choose(links: Scores, numa: Numa, available: Iterable[int], required: Iterable[int], size: int) -> list[int]:
    free, ours = sorted(set(available)), sorted(set(required))
    if not 0 < size <= len(free) or not len(ours) <= size or not set(ours) <= set(free):
        return (ours + [a for a in free if a not in ours])[: max(size, len(ours))]
    sets = (chosen for chosen in itertools.combinations(free, size) if set(ours) <= set(chosen))
    best = max(sets, key=lambda chosen: rank(links, numa, free, chosen))  # of equals the first, and they come with the lowest first
    return ours + [a for a in best if a not in ours]


def best_of_each_size(links: Scores, numa: Numa, required: int = 0) -> dict[int, tuple[Rank, int]]:
    """For each size the best rank, and as a mask the lowest set that has it, when all GPUs are available."""
    count = len(links)
    everything = (1 << count) - 1
    places = {node: 1 << i for i, node in enumerate(dict.fromkeys(numa))}
    inside = [0] * (1 << count)
    nodes = [0] * (1 << count)
    for chosen in range(1, 1 << count):
        low, high = chosen & -chosen, 1 << (chosen.bit_length() - 1)
        nodes[chosen] = nodes[chosen ^ low] | places[numa[low.bit_length() - 1]]
        if low != high:  # the pairs without the one, and those without the other, but for those without both twice; and the pair of the two
            pair = links[low.bit_length() - 1][high.bit_length() - 1]
            inside[chosen] = inside[chosen ^ low] + inside[chosen ^ high] - inside[chosen ^ low ^ high] + pair
    best: dict[int, tuple[Rank, int]] = {}
    for chosen in range(1 << count):
        if required & ~chosen:
            continue
        size = chosen.bit_count()
        cut = inside[everything] - inside[chosen] - inside[everything ^ chosen]
        found = inside[chosen], -cut, -nodes[chosen].bit_count()
        known = best.get(size)
        if known is None or found > known[0] or (found == known[0] and lower(chosen, known[1])):
            best[size] = found, chosen
    return best


def lower(one: int, other: int) -> bool:
    """Whether a set comes before another of its size in a list of sets: it has the lowest number that only one of them has."""
    differ = one ^ other
    return bool(one & differ & -differ)


def greedy(links: Scores, numa: Numa, available: Iterable[int], required: Iterable[int], size: int) -> Rank:
    """The best rank that is found when, from each GPU, the one that makes the best set is added until there are enough."""
    free, ours = sorted(set(available)), sorted(set(required))
    degree = {a: sum(links[a][b] for b in free if b != a) for a in free}
    found = []
    for start in free:
        chosen = sorted({*ours, start})
        gain = {a: sum(links[a][b] for b in chosen) for a in free if a not in chosen}
        nodes = {numa[a] for a in chosen}
        while len(chosen) < size:
            # As much as `a` adds inside, so much less is cut of all its links: of equal gains the fewest links are the best.
            best = max(gain, key=lambda a: (gain[a], -degree[a], numa[a] in nodes, -a))
            del gain[best]
            chosen.append(best)
            nodes.add(numa[best])
            for a in gain:
                gain[a] += links[a][best]
        if len(chosen) == size:
            found.append(rank(links, numa, free, chosen))
    return max(found)
