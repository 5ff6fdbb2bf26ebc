# SPDX-License-Identifier: Apache-2.0
"""More than 16 GPUs: the search may end before it has seen all, but never with less than greedy choice, and never late."""

from __future__ import annotations

import random

import pytest

from deviceplugin._native.linkset import STEPS, Links
from deviceplugin.plugins.gpu.topology import Topology
from tests.oracles import linkset as oracle
from tests.unit.gpu_topology.machines import Scores, any_links, any_numa, machine


def members(mask: int) -> list[int]:
    return [gpu for gpu in range(64) if mask >> gpu & 1]


@pytest.mark.parametrize("count", [17, 20, 24, 31, 32, 48, 63, 64])
def test_no_answer_is_below_greedy_choice_and_no_search_is_longer_than_its_limit(count: int) -> None:
    chance = random.Random(count)
    links, numa = any_links(count, chance), any_numa(count, chance)
    search = Links(links, [3 if node is None else node + 4 for node in numa])
    available = [gpu for gpu in range(count) if chance.random() < 0.95]
    required = chance.sample(available, 3)
    for size in (3, 4, 8, count // 3, len(available) - 2, len(available)):
        for ours in ([], required):
            chosen, steps = search.choose(sum(1 << gpu for gpu in available), sum(1 << gpu for gpu in ours), size)
            assert set(ours) <= set(members(chosen)) <= set(available)
            assert len(members(chosen)) == size
            assert steps <= STEPS
            assert oracle.rank(links, numa, available, members(chosen)) >= oracle.greedy(links, numa, available, ours, size)


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_that_was_cut_short_cannot_be_bettered_by_one_exchange(seed: int) -> None:
    chance = random.Random(seed)
    links, everything = any_links(64, chance), range(64)
    answer, steps = Links(links, [0] * 64).choose(2**64 - 1, 0, 32)
    chosen = members(answer)
    assert steps == STEPS
    inside = oracle.rank(links, [0] * 64, everything, chosen)[0]
    for out in chosen:
        without = sum(links[out][gpu] for gpu in chosen)
        for other in set(everything) - set(chosen):
            assert inside - without + sum(links[other][gpu] for gpu in chosen if gpu != out) <= inside


def hidden(count: int, size: int, chance: random.Random) -> tuple[Scores, list[int]]:
    """Random scores below 60 with one set, anywhere, that has 60 for each pair: no other set of its size can be as good."""
    best = sorted(chance.sample(range(count), size))
    scores = [[0] * count for _ in range(count)]
    for a in range(count):
        for b in range(a):
            scores[a][b] = scores[b][a] = 60 if a in best and b in best else chance.randrange(60)
    return scores, best


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_the_best_set_of_64_is_found_wherever_it_is(size: int) -> None:
    links, best = hidden(64, size, random.Random(size))
    assert Topology(links, [0] * 64).choose("topology", range(64), [], size) == best


def test_boards_of_8_in_64_are_given_out_whole_and_the_answer_is_known_to_be_the_best() -> None:
    order = random.Random(8).sample(range(64), 64)
    boards = [sorted(gpu for gpu in range(64) if order[gpu] // 8 == board) for board in range(8)]
    plain = machine(64, {20: 4}, lambda a, b: 18 if a // 8 == b // 8 else 0)
    search = Links([[plain[a][b] for b in order] for a in order], [a // 4 % 16 for a in order])
    free = set(range(64))
    given = []
    for _ in range(8):
        chosen, steps = search.choose(sum(1 << gpu for gpu in free), 0, 8)
        assert steps < STEPS
        given.append(members(chosen))
        free -= set(members(chosen))
    assert given == sorted(boards)


@pytest.mark.parametrize("size", [1, 2, 31, 32, 62, 63])
def test_64_gpus_that_are_all_alike_are_taken_from_the_lowest_without_a_search(size: int) -> None:
    chosen, steps = Links([[1860] * 64] * 64, [0] * 64).choose(2**64 - 1, 0, size)
    assert members(chosen) == list(range(size))
    assert steps < 64


def test_the_highest_scores_do_not_overflow() -> None:
    links = [[0 if a == b else 32767 - (a == 63) - (b == 63) for b in range(64)] for a in range(64)]
    topology = Topology(links, list(range(64)))
    for size in (2, 32, 63):
        assert topology.choose("topology", range(64), [], size) == list(range(size))
        assert topology.choose("topology", range(64), [63], size) == [63, *range(size - 1)]
