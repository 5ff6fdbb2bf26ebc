# SPDX-License-Identifier: Apache-2.0
"""Which slots of which caches, and which ways: deviceplugin._native.llc in plain Python, on sets of numbers instead of masks."""

from __future__ import annotations

from collections.abc import Sequence

WAYS = 32

Bits = frozenset[int]


def runs(bits: Bits) -> list[list[int]]:
    """The runs of neighbours, the lowest first."""
    found: list[list[int]] = []
    for bit in sorted(bits):
        if found and found[-1][-1] == bit - 1:
            found[-1].append(bit)
        else:
            found.append([bit])
    return found


def longest(bits: Bits) -> int:
    return max((len(run) for run in runs(bits)), default=0)


def windows(bits: Bits, size: int) -> list[tuple[int, Bits]]:
    """Every run of ``size`` bits that can be cut out, and the length of the run that it is cut from."""
    return [(len(run), frozenset(run[at : at + size])) for run in runs(bits) for at in range(len(run) - size + 1)]


def pick(available: Bits, required: Bits, size: int) -> tuple[tuple[int, ...], Bits]:
    """The best ``size`` slots of one cache, and how good they are."""

    def rank(chosen: Bits, run: int) -> tuple[int, ...]:
        rest = available - chosen
        return longest(available) - longest(rest), run, len(runs(rest)), len(rest), min(chosen, default=0)

    found = [((0, *rank(window, run)), window) for run, window in windows(available, size) if required <= window] if size else []
    if found:
        return min(found, key=lambda pair: pair[0])
    chosen = required | frozenset(sorted(available - required)[: size - len(required)])
    return (1, *rank(chosen, len(available))), chosen


def prefer(caches: Sequence[tuple[Bits, Bits, int]], size: int) -> list[Bits]:
    """What to take of each cache. A cache is its available slots, its required ones, and how many slots fit into its longest free run of ways."""
    answer = [required for _, required, _ in caches]
    users = [i for i, required in enumerate(answer) if required]
    single = []
    for i, (available, required, room) in enumerate(caches):
        if size and len(available) >= size and users in ([], [i]):
            rank, chosen = pick(available, required, size)
            single.append(((size > room, rank, i), chosen))
    if single:
        (_, _, best), chosen = min(single, key=lambda pair: pair[0])
        answer[best] = chosen
        return answer
    missing = size - sum(map(len, answer))
    waiting = {i: len(available - answer[i]) for i, (available, _, _) in enumerate(caches)}
    while missing > 0:
        among = {i: left for i, left in waiting.items() if left and i in users} or {i: left for i, left in waiting.items() if left}
        best = min(among)
        for i, left in among.items():  # in order: what a later one has to beat depends on the one that is best so far
            if (missing <= left < among[best]) if among[best] >= missing else left > among[best]:
                best = i
        take = min(waiting.pop(best), missing)
        available, required, _ = caches[best]
        answer[best] = pick(available, required, len(required) + take)[1]
        missing -= take
    return answer


def fit(pool: Bits, free: Bits, want: int, ideal: Bits) -> Bits | None:
    """The run of free ways to take."""

    def rank(pair: tuple[int, Bits]) -> tuple[int, ...]:
        run, window = pair
        to_an_end = min(min(window) - min(pool), max(pool) - max(window))
        return run, len(runs(free - window)), to_an_end, -len(window & ideal), min(window)

    return min(windows(free, want), key=rank, default=(0, None))[1]


def place(
    pool: Bits, live: Sequence[Bits], fixed: Sequence[bool], want: int, ideal: Bits, move: bool, sparse: bool
) -> tuple[Bits, list[Bits]] | None:
    """The ways of a new group, and those that the groups which are there have then; None where there is no place."""
    free = pool - frozenset[int]().union(*live)
    if window := fit(pool, free, want, ideal):
        return window, list(live)
    if move and len(free) >= want:
        plans = []
        for _, window in windows(pool, want):
            moved = clear(pool, live, fixed, window)
            if moved is not None:
                changed = [before for before, after in zip(live, moved, strict=True) if before & window]
                plans.append(((len(changed), sum(map(len, changed)), -len(window & ideal), min(window)), window, moved))
        if plans:
            _, window, moved = min(plans, key=lambda plan: plan[0])
            return window, moved
        if not any(fixed) and (plan := slide(pool, live, want)):
            return plan
    if sparse and len(free) >= want:
        near = sorted(free & ideal)[:want]
        return frozenset(near + sorted(free.difference(near))[: want - len(near)]), list(live)
    return None


def clear(pool: Bits, live: Sequence[Bits], fixed: Sequence[bool], window: Bits) -> list[Bits] | None:
    """Where all groups are once none is in ``window``."""
    moved = list(live)
    free = pool - window - frozenset[int]().union(*(mask for mask in live if not mask & window))
    for i in sorted((i for i, mask in enumerate(live) if mask & window), key=lambda i: -len(live[i])):
        place = None if fixed[i] else fit(pool, free, len(live[i]), live[i])
        if place is None:
            return None
        moved[i] = place
        free -= place
    return moved


def slide(pool: Bits, live: Sequence[Bits], want: int) -> tuple[Bits, list[Bits]] | None:
    """All groups at the low end of the longest run, in their order, and the new one after them."""
    run = max(runs(pool), key=len)
    moved = list(live)
    at = 0
    for i in sorted(range(len(live)), key=lambda i: min(live[i])):
        moved[i] = frozenset(run[at : at + len(live[i])])
        at += len(live[i])
    return (frozenset(run[at : at + want]), moved) if at + want <= len(run) else None
