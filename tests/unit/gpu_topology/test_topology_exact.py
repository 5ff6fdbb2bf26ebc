# SPDX-License-Identifier: Apache-2.0
"""The search against one that looks at every set."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin._native.linkset import STEPS, Links
from deviceplugin.plugins.gpu.topology import Topology
from tests.oracles import linkset as oracle
from tests.unit.gpu_topology.graphs import KINDS, graphs
from tests.unit.gpu_topology.machines import Scores, any_links, any_numa


def check_all_sizes(links: Scores, numa: list[int | None], required: int = 0) -> None:
    """The very sets of the oracle, so no score can be below its."""
    count = len(links)
    search = Links(links, [3 if node is None else node + 4 for node in numa])
    for size, (_, expected) in oracle.best_of_each_size(links, numa, required).items():
        chosen, steps = search.choose((1 << count) - 1, required, size)
        assert (chosen, steps < STEPS) == (expected, True), (links, numa, required, size)


def test_all_graphs_are_enumerated() -> None:
    assert [len(graphs(count)) for count in range(len(KINDS))] == KINDS


@pytest.mark.parametrize("part", range(8))
def test_every_graph_of_up_to_8_gpus_is_solved_exactly(part: int) -> None:
    # Each kind of graph once, numbered at random: pairs are linked or not. Every second has random NUMA nodes and required GPUs.
    chance = random.Random(part)
    for count in range(1, 9):
        for i, graph in enumerate(graphs(count)[part::8]):
            order = chance.sample(range(count), count)
            links = [[0 if a == b else 10 + 100 * (graph[a] >> b & 1) for b in order] for a in order]
            numa: list[int | None] = any_numa(count, chance) if i % 2 else [0] * count
            check_all_sizes(links, numa, chance.getrandbits(count) & chance.getrandbits(count) if i % 2 else 0)


@pytest.mark.parametrize("seed", range(25))
def test_random_scores_of_9_to_16_gpus_are_solved_exactly(seed: int) -> None:
    chance = random.Random(seed)
    for i in range(20):
        count = 9 + i % 8
        required = chance.getrandbits(count) & chance.getrandbits(count) & chance.getrandbits(count) if i % 4 == 3 else 0
        check_all_sizes(any_links(count, chance), any_numa(count, chance), required)


REGULAR: dict[str, Callable[[int, int], bool]] = {
    "hypercube": lambda a, b: (a ^ b).bit_count() == 1,
    "ring": lambda a, b: (a - b) % 16 in (1, 15),
    "bipartite": lambda a, b: (a + b) % 2 == 1,
    "halves": lambda a, b: a // 8 != b // 8,
    "pairs": lambda a, b: a % 8 == b % 8,
    "rook": lambda a, b: a // 4 == b // 4 or a % 4 == b % 4,
    "clebsch": lambda a, b: (a ^ b).bit_count() in (1, 4),
}


@pytest.mark.parametrize("name", REGULAR)
def test_regular_graphs_of_16_gpus_with_many_equal_sets_are_solved_exactly(name: str) -> None:
    links = [[0 if a == b else 10 + 100 * REGULAR[name](a, b) for b in range(16)] for a in range(16)]
    check_all_sizes(links, [0] * 16)
    check_all_sizes(links, [gpu % 3 for gpu in range(16)])


@st.composite
def questions(draw: st.DrawFn) -> tuple[Scores, list[int | None], list[int], list[int], int]:
    count = draw(st.integers(0, 7))
    levels = draw(st.sampled_from([[0, 1], [10, 20, 110], [0, 32767], list(range(1900))]))
    links = [[0] * count for _ in range(count)]
    for a in range(count):
        for b in range(a):
            links[a][b] = links[b][a] = draw(st.sampled_from(levels))
    numa = draw(st.lists(st.sampled_from([None, 0, 1]), min_size=count, max_size=count))
    available = [gpu for gpu in range(count) if draw(st.integers(0, 3))]
    required = [gpu for gpu in range(count) if not draw(st.integers(0, 4 if gpu in available else 30))]
    return links, numa, available, required, draw(st.integers(-1, count + 1))


@settings(deadline=None, max_examples=300)
@given(questions())
def test_any_question_is_answered_as_by_the_plain_oracle(question: tuple[Scores, list[int | None], list[int], list[int], int]) -> None:
    links, numa, available, required, size = question
    assert Topology(links, numa).choose("topology", available, required, size) == oracle.choose(links, numa, available, required, size)


@settings(deadline=None, max_examples=100)
@given(questions())
def test_the_fast_oracle_agrees_with_the_plain_one(question: tuple[Scores, list[int | None], list[int], list[int], int]) -> None:
    links, numa, _, required, _ = question
    everything = range(len(links))
    fast = oracle.best_of_each_size(links, numa, sum(1 << gpu for gpu in required))
    for size, (rank, chosen) in fast.items():
        plain = oracle.choose(links, numa, everything, required, size)
        assert (rank, chosen) == (oracle.rank(links, numa, everything, plain), sum(1 << gpu for gpu in plain))
    assert fast.keys() == set(range(len(required), len(links) + 1))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 14), st.randoms(use_true_random=False))
def test_the_rank_does_not_depend_on_how_gpus_are_numbered(count: int, chance: random.Random) -> None:
    links, numa = any_links(count, chance), any_numa(count, chance)
    order = chance.sample(range(count), count)
    renumbered = [[links[a][b] for b in order] for a in order], [numa[a] for a in order]
    available = [gpu for gpu in range(count) if chance.random() < 0.8]
    size = chance.randint(0, len(available))
    here = Topology(links, numa).choose("topology", available, [], size)
    there = Topology(*renumbered).choose("topology", [order.index(gpu) for gpu in available], [], size)
    assert oracle.rank(links, numa, available, here) == oracle.rank(links, numa, available, [order[gpu] for gpu in there])
