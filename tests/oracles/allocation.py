# SPDX-License-Identifier: Apache-2.0
"""What deviceplugin.allocation must answer, in plain Python: every set of NUMA nodes is tried, and nothing is precomputed."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

SETS_LIMIT = 65536

UNPLACED = 1000  # a node beyond all others


def natural(id_: str) -> tuple[list[object], str]:
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", id_))], id_


@dataclass
class Unit:
    number: int
    nodes: frozenset[int] = frozenset()
    free: list[str] = field(default_factory=list)
    used: int = 0
    ours: int = 0

    @property
    def tier(self) -> int:
        return 0 if self.ours else 1 if self.used else 2


def choose(rows: Sequence[tuple[str, str, tuple[int, ...]]], policy: str, available: Iterable[str], required: Iterable[str], size: int) -> list[str]:
    available, required = set(available), set(required)
    known = sorted((row for row in rows), key=lambda row: natural(row[0]))
    ids = {row[0] for row in known}
    units: dict[str, Unit] = {}
    for id_, name, numa in known:
        unit = units.setdefault(name, Unit(len(units)))
        unit.nodes |= {n for n in numa if n >= 0}
        if id_ in required:
            unit.ours += 1
        elif id_ in available:
            unit.free.append(id_)
        else:
            unit.used += 1
    for unit in units.values():
        unit.nodes = unit.nodes or frozenset({UNPLACED})
    answer = sorted(required - ids, key=natural) + sorted(required & ids, key=natural)
    need = min(max(0, size - len(answer)), sum(len(u.free) for u in units.values()))
    answer += {"any": any_, "spread": spread, "pack": pack}[policy](list(units.values()), need)
    answer += sorted(available - ids - required, key=natural)[: max(0, size - len(answer))]
    return answer


def take(unit: Unit, count: int) -> list[str]:
    taken, unit.free = unit.free[:count], unit.free[count:]
    unit.ours += len(taken)
    return taken


def near(units: Iterable[Unit]) -> frozenset[int]:
    return frozenset(n for u in units if u.ours for n in u.nodes)


def local(units: Iterable[Unit], nodes: frozenset[int]) -> list[Unit]:
    return [u for u in units if u.nodes & nodes]


def any_(units: list[Unit], need: int) -> list[str]:
    return sorted((id_ for u in units for id_ in u.free), key=natural)[:need]


def fewest_nodes(units: list[Unit], base: frozenset[int], cost: Callable[[frozenset[int]], tuple[object, int] | None]) -> frozenset[int]:
    """``cost`` says what a set of nodes would cost and how many slots it leaves over, or None where it does not suffice."""
    extra = sorted(frozenset(n for u in units if u.free for n in u.nodes) - base)
    whole = cost(base | set(extra))
    assert whole is not None
    best, seen = whole[0], 0
    for count in range(len(extra)):
        seen += math.comb(len(extra), count)
        if seen > SETS_LIMIT:
            for node in reversed(list(extra)):
                rest = cost(base | (set(extra) - {node}))
                if rest is not None and rest[0] == best:
                    extra.remove(node)
            break
        good = []
        for nodes in map(frozenset, itertools.combinations(extra, count)):
            found = cost(base | nodes)
            if found is not None and found[0] == best:
                good.append((UNPLACED in base | nodes, found[1], sum(1 << n for n in nodes), base | nodes))
        if good:
            return min(good, key=lambda g: g[:3])[3]
    return base | set(extra)


def fewest_units(units: Iterable[Unit], need: int) -> tuple[int, int]:
    """How many of the units, the largest first, are needed, and how many slots those have."""
    count = total = 0
    for free in sorted((len(u.free) for u in units), reverse=True):
        if total >= need:
            break
        count, total = count + 1, total + free
    return count, total


def tiers(units: Iterable[Unit]) -> tuple[list[Unit], list[Unit], list[Unit]]:
    of: tuple[list[Unit], list[Unit], list[Unit]] = ([], [], [])
    for u in units:
        if u.free:
            of[u.tier].append(u)
    return of


def total(units: Iterable[Unit]) -> int:
    return sum(len(u.free) for u in units)


def cover(units: list[Unit], need: int, *, whole: bool = False) -> list[str]:
    """Whole units, the largest first; the last is the smallest that has all that is missing."""
    taken: list[str] = []
    units = list(units)
    while len(taken) < need:
        missing = need - len(taken)
        enough = [u for u in units if len(u.free) >= missing]
        unit = min(enough, key=lambda u: (len(u.free), u.number)) if enough else min(units, key=lambda u: (-len(u.free), u.number))
        units.remove(unit)
        taken += take(unit, len(unit.free) if whole else min(missing, len(unit.free)))
    return taken


def pack(units: list[Unit], need: int) -> list[str]:
    def cost(nodes: frozenset[int]) -> tuple[object, int] | None:
        ours, in_use, fresh = tiers(local(units, nodes))
        left = total(ours) + total(in_use) + total(fresh) - need
        if left < 0:
            return None
        missing = max(0, need - total(ours))
        opened, slots = fewest_units(fresh, max(0, missing - total(in_use)))
        return (opened, opened + fewest_units(in_use, max(0, missing - slots))[0]), left

    nodes = fewest_nodes(units, near(units), cost)
    ours, in_use, fresh = tiers(local(units, nodes))
    answer = cover(ours, min(need, total(ours)))
    missing = need - len(answer)
    if missing <= total(in_use):
        return answer + cover(in_use, missing)
    slots = fewest_units(fresh, missing - total(in_use))[1]
    answer += cover(in_use, max(0, missing - slots), whole=True)
    return answer + cover(fresh, need - len(answer))


def spread(units: list[Unit], need: int) -> list[str]:
    answer: list[str] = []
    while len(answer) < need:
        fewest = min(u.ours for u in units if u.free)
        this_round = [u for u in units if u.free and u.ours == fewest]
        for used in sorted({u.used for u in this_round}):
            alike = [u for u in this_round if u.used == used]
            missing = need - len(answer)
            if len(alike) > missing:
                base = near(units)

                def cost(nodes: frozenset[int], alike: list[Unit] = alike, missing: int = missing) -> tuple[object, int] | None:
                    left = len(local(alike, nodes)) - missing
                    return None if left < 0 else ((), left)

                alike = local(alike, fewest_nodes(alike, base, cost))[:missing]
            for unit in alike:
                answer += take(unit, 1)
    return answer
