# SPDX-License-Identifier: Apache-2.0
"""What is promised about any question, and which topologies and questions are refused."""

from __future__ import annotations

import dataclasses
import random
import sys
import threading

import pytest

from deviceplugin._native.linkset import Links
from deviceplugin.plugins.gpu.topology import Topology
from tests.unit.gpu_topology.machines import DGX1, HALVES8, any_links, any_numa

dgx1 = Topology(DGX1, HALVES8)


@pytest.mark.parametrize(
    ("available", "required", "size", "expected"),
    [
        (range(8), [], 0, []),
        (range(8), [], -3, []),
        (range(8), [5], 0, [5]),
        (range(8), [5, 1], 1, [1, 5]),
        ([4, 2, 6], [], 4, [2, 4, 6]),
        ([4, 2, 6], [6], 4, [6, 2, 4]),
        ([4, 2, 6], [0], 2, [0, 2]),
        ([4, 2, 6], [0], 3, [0, 2, 4]),
        ([], [], 1, []),
        ([], [3], 2, [3]),
        ([6, 6, 7, 7, 2], [], 2, [6, 7]),
        ([6, 6, 2], [2, 2], 2, [2, 6]),
        ([3, 8, 64, 99, -1, 2], [], 2, [2, 3]),
        ([3, 2], [70], 2, [2, 3]),
        (range(8), [], 2**80, list(range(8))),
    ],
)
def test_a_question_without_an_answer_gets_the_required_and_then_the_lowest(
    available: list[int], required: list[int], size: int, expected: list[int]
) -> None:
    assert dgx1.choose("topology", available, required, size) == expected


def test_no_gpus_at_all() -> None:
    assert Topology([], []).choose("topology", [0], [1], 2) == []


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no policy 'best' to choose GPUs by; there is topology"):
        dgx1.choose("best", [0], [], 1)


def test_the_order_of_the_question_does_not_matter() -> None:
    chance = random.Random(1)
    topology = Topology(any_links(16, chance), any_numa(16, chance))
    expected = topology.choose("topology", range(16), [11, 3], 7)
    for _ in range(20):
        assert topology.choose("topology", chance.sample(range(16), 16), chance.sample([3, 11], 2), 7) == expected


def test_equal_topologies_answer_the_same() -> None:
    chance = random.Random(2)
    links, numa = any_links(40, chance), any_numa(40, chance)
    one, other = Topology(links, numa), Topology([list(row) for row in links], tuple(numa))
    assert one == other
    assert one.choose("topology", range(40), [], 6) == other.choose("topology", range(40), [], 6)


def test_one_topology_serves_many_threads() -> None:
    chance = random.Random(3)
    topology = Topology(any_links(20, chance), any_numa(20, chance))
    expected = [topology.choose("topology", range(20), [], size) for size in range(21)]
    answers: list[list[list[int]]] = []
    threads = [
        threading.Thread(target=lambda: answers.append([topology.choose("topology", range(20), [], size) for size in range(21)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4


def test_other_threads_run_while_a_search_lasts() -> None:
    chance = random.Random(4)
    topology = Topology(any_links(20, chance), any_numa(20, chance))
    begun, stop = threading.Event(), threading.Event()
    searches: list[list[int]] = []

    def search() -> None:
        begun.set()
        while not stop.is_set() and len(searches) < 500:
            searches.append(topology.choose("topology", range(20), [], 10))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # a thread gives way only where it gives up the GIL by itself
    try:
        thread = threading.Thread(target=search)
        thread.start()
        begun.wait()
        stop.set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(searches) < 500


def test_a_topology_does_not_change_with_what_it_was_made_from() -> None:
    links = [[0, 10, 200], [10, 0, 10], [200, 10, 0]]
    topology = Topology(links, [0, 0, 0])
    links[0][2] = links[2][0] = 0
    assert topology.choose("topology", range(3), [], 2) == [0, 2]
    assert topology.links == ((0, 10, 200), (10, 0, 10), (200, 10, 0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology.numa = [1, 1, 1]  # type: ignore[misc]


def test_the_diagonal_is_ignored() -> None:
    assert Topology([[-5, 10, 20], [10, 99999, 10], [20, 10, 7]], [0, 0, 0]).choose("topology", range(3), [], 2) == [0, 2]


@pytest.mark.parametrize(
    ("links", "numa", "message"),
    [
        ([[0, 10], [20, 0]], [0, 0], "the score of GPUs 0 and 1 is 10, but 20 the other way round"),
        ([[0, 10], [10]], [0, 0], "row 1 has 1 scores for 2 GPUs"),
        ([[0, 10], [10, 0]], [0], "2 GPUs on 1 nodes"),
        ([[0, -1], [-1, 0]], [0, 0], "the score of GPUs 0 and 1, -1, is not from 0 to 32767"),
        ([[0, 32768], [32768, 0]], [0, 0], "the score of GPUs 0 and 1, 32768, is not from 0 to 32767"),
        ([[0, 2**80], [2**80, 0]], [0, 0], "is not from 0 to 32767"),
        ([[0] * 65] * 65, [0] * 65, "65 GPUs on 65 nodes: there may be 64 at most"),
    ],
)
def test_links_that_do_not_fit_together_are_refused_and_the_place_is_named(links: list[list[int]], numa: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology(links, numa)


@pytest.mark.parametrize("score", [1.5, "10", None])
def test_a_score_that_is_no_integer_is_a_type_error(score: object) -> None:
    with pytest.raises(TypeError):
        Topology([[0, score], [score, 0]], [0, 0])  # type: ignore[list-item]


@pytest.mark.parametrize(("nodes", "message"), [([0, 64], "node 64 of GPU 1 is not from 0 to 63"), ([-1, 0], "node -1 of GPU 0")])
def test_the_search_refuses_nodes_that_it_has_no_room_for(nodes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Links([[0, 1], [1, 0]], nodes)


@pytest.mark.parametrize(
    ("available", "required", "size", "message"),
    [
        (0b111, 0, 1, "there are 2 GPUs, but 0x7 are available"),
        (0b01, 0b10, 1, "0x2 are required, but not available"),
        (0b11, 0, 3, "3 GPUs cannot be chosen of 2"),
        (0b11, 0b11, 1, "1 GPUs cannot be chosen of 2 with 2 required"),
        (0b11, 0, -1, "-1 GPUs cannot be chosen"),
    ],
)
def test_the_search_refuses_questions_that_have_no_answer(available: int, required: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Links([[0, 1], [1, 0]], [0, 0]).choose(available, required, size)
