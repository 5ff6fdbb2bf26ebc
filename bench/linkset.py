# SPDX-License-Identifier: Apache-2.0
"""The choice of linked GPUs: the native search beside its oracle, and beside the way of NVIDIA's allocator.

That allocator (go-gpuallocator's best effort policy) is told here in Python from what it does: it tries all ways to divide the available GPUs, with
empty places to make up the last set, into sets of the size asked for; takes the division with the highest sum of scores; and answers with the best
set of that. None of its Go code is run, so the times compare the amounts of work and two languages at once; the answers compare as they are.
"""

from __future__ import annotations

import functools
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from bench.report import table
from deviceplugin._native.linkset import STEPS, Links
from tests.oracles import linkset as oracle
from tests.unit.gpu_topology.machines import DGX1, DGX2, HGX_H100, Scores, any_links, machine

SIZES = (1, 2, 3, 4, 8)
QUESTIONS = 2000
CUBE_MESHES = [[DGX1[a % 8][b % 8] if a // 8 == b // 8 else 10 for b in range(16)] for a in range(16)]
BOARDS = {count: machine(count, {20: 4}, lambda a, b: 18 if a // 8 == b // 8 else 0) for count in (32, 64)}


def divisions(gpus: Sequence[int], size: int, empty: int) -> Iterator[list[tuple[int, ...]]]:
    """All ways to divide the GPUs and `empty` places into sets of `size`, each once. A set with empty places is shorter."""
    if not gpus:
        yield []
        return
    first, rest = gpus[0], gpus[1:]
    for places in range(min(empty, size - 1) + 1):
        for others in itertools.combinations(rest, size - 1 - places):
            for division in divisions([gpu for gpu in rest if gpu not in others], size, empty - places):
                yield [(first, *others), *division]


def divide(links: Scores, available: Sequence[int], size: int) -> tuple[int, ...]:
    """What NVIDIA's allocator answers; it may be a set that is too short."""

    @functools.cache
    def inside(chosen: tuple[int, ...]) -> int:
        return sum(links[a][b] for a, b in itertools.combinations(chosen, 2))

    empty = -len(available) % size
    best = max(divisions(available, size, empty), key=lambda division: sum(map(inside, division)))
    return max(best, key=inside)


def milliseconds(call: Callable[[], object], rounds: int = 1) -> float:
    figures = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        figures.append((time.perf_counter() - start) * 1e3)
    return statistics.median(figures)


def microseconds(graphs: Sequence[Scores], size: int, questions: int) -> tuple[list[float], int]:
    """How long each answer takes, sorted, and the longest search in steps: all GPUs are available in one question, some are taken in the next."""
    chance = random.Random(size)
    count = len(graphs[0])
    searches = [Links(links, [gpu * 2 // count for gpu in range(count)]) for links in graphs]
    figures, longest = [], 0
    for i in range(questions):
        free = range(count) if i % 2 == 0 else chance.sample(range(count), chance.randint(size, count))
        available = sum(1 << gpu for gpu in free)
        search = searches[i % len(searches)]
        start = time.perf_counter_ns()
        _, steps = search.choose(available, 0, size)
        figures.append((time.perf_counter_ns() - start) / 1e3)
        longest = max(longest, steps)
    return sorted(figures), longest


def three(figures: Sequence[float]) -> list[str]:
    return [f"{figures[len(figures) // 2]:.1f}", f"{figures[len(figures) * 99 // 100]:.1f}", f"{figures[-1]:.1f}"]


def exact() -> Iterator[list[object]]:
    chance = random.Random(0)
    for count, kinds in (
        (8, {"fully linked": [HGX_H100], "cube mesh": [DGX1], "random": [any_links(8, chance) for _ in range(101)]}),
        (16, {"fully linked": [DGX2], "two cube meshes": [CUBE_MESHES], "random": [any_links(16, chance) for _ in range(101)]}),
    ):
        for kind, graphs in kinds.items():
            numa = [gpu * 2 // count for gpu in range(count)]
            for size in SIZES:
                figures, longest = microseconds(graphs, size, QUESTIONS)
                if longest >= STEPS:
                    raise SystemExit(f"{count} GPUs, {kind}, size {size}: the search was cut short")
                slow = milliseconds(lambda: oracle.choose(graphs[0], numa, range(count), [], size), 3 if count == 8 else 1)  # noqa: B023
                search = Links(graphs[0], numa)
                fast = milliseconds(lambda: search.choose((1 << count) - 1, 0, size), 51)  # noqa: B023
                peer = f"{milliseconds(lambda: divide(graphs[0], range(count), size), 3):.2f}" if count == 8 else "-"  # noqa: B023
                yield [count, kind, size, *three(figures), longest, f"{slow:.2f}", f"{slow / fast:,.0f}", peer]


def large() -> Iterator[list[object]]:
    chance = random.Random(1)
    for count, boards in BOARDS.items():
        for kind, graphs in (("boards of 8", [boards]), ("random", [any_links(count, chance) for _ in range(11)])):
            for size in (2, 8, count // 2):
                figures, longest = microseconds(graphs, size, 100)
                yield [count, kind, size, *three(figures), longest, "cut short" if longest >= STEPS else "exact"]


def answers() -> Iterator[list[object]]:
    """How the score inside the set compares with the answer of NVIDIA's allocator, where some of 8 GPUs are taken."""
    chance = random.Random(2)
    for kind, graphs in (("cube mesh", [DGX1]), ("random", [any_links(8, chance) for _ in range(40)])):
        for size in (2, 3, 4):
            short = worse = same = better = 0
            for i in range(120):
                links = graphs[i % len(graphs)]
                free = sorted(chance.sample(range(8), chance.randint(size + 1, 8)))
                ours = oracle.rank(links, [0] * 8, free, members(Links(links, [0] * 8).choose(sum(1 << gpu for gpu in free), 0, size)[0]))[0]
                theirs = divide(links, free, size)
                score = oracle.rank(links, [0] * 8, free, theirs)[0]
                short += len(theirs) < size
                worse += len(theirs) == size and score < ours
                same += len(theirs) == size and score == ours
                better += len(theirs) == size and score > ours
            yield [kind, size, short, worse, same, better]


def members(mask: int) -> list[int]:
    return [gpu for gpu in range(64) if mask >> gpu & 1]


def report() -> str:
    times = ["p50 us", "p99 us", "max us", "most steps"]
    return "\n".join(
        [
            table(
                f"Choosing linked GPUs: the search alone, {QUESTIONS} questions each, half of them with some GPUs taken",
                ["GPUs", "links", "size", *times, "oracle ms", "times faster", "all divisions, Python, ms"],
                list(exact()),
            ),
            table("More than 16 GPUs, 100 questions each", ["GPUs", "links", "size", *times, "answers"], list(large())),
            table(
                "What dividing all available GPUs answers instead, 120 questions each with 8 GPUs or fewer: score inside against ours",
                ["links", "size", "too few GPUs", "lower", "equal", "higher"],
                list(answers()),
            ),
        ]
    )


if __name__ == "__main__":
    print(report())
