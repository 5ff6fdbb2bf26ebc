# SPDX-License-Identifier: Apache-2.0
"""What somebody who knows the machine would pick."""

from __future__ import annotations

import pytest

from deviceplugin.plugins.gpu.topology import Topology
from tests.unit.gpu_topology.machines import BRIDGED, DGX1, DGX2, HALVES4, HALVES8, HALVES16, HGX_H100, L40S, PCIE16, machine

dgx1 = Topology(DGX1, HALVES8)
hgx_h100 = Topology(HGX_H100, HALVES8)
dgx2 = Topology(DGX2, HALVES16)
l40s = Topology(L40S, HALVES4)
bridged = Topology(BRIDGED, HALVES8)
pcie16 = Topology(PCIE16, HALVES16)


def pick(topology: Topology, size: int, taken: set[int] | None = None, required: tuple[int, ...] = ()) -> list[int]:
    return topology.choose("topology", set(range(len(topology.numa))) - (taken or set()), required, size)


def in_turn(topology: Topology, *sizes: int) -> list[list[int]]:
    """What containers get that come one after the other and stay."""
    taken: set[int] = set()
    answers = []
    for size in sizes:
        answers.append(pick(topology, size, taken))
        taken.update(answers[-1])
    return answers


def test_dgx1_pairs_have_two_nvlinks_and_the_ones_with_a_common_switch_go_first() -> None:
    assert in_turn(dgx1, 2, 2, 2, 2) == [[2, 3], [6, 7], [0, 4], [1, 5]]


def test_dgx1_quads_are_the_two_that_are_fully_linked() -> None:
    assert in_turn(dgx1, 4, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_dgx1_triples_have_five_nvlinks_inside() -> None:
    assert in_turn(dgx1, 3, 3) == [[0, 2, 3], [4, 6, 7]]


def test_dgx1_a_pair_comes_from_the_quad_that_is_broken() -> None:
    assert pick(dgx1, 2, taken={0}) == [2, 3]
    assert pick(dgx1, 2, taken={5}) == [6, 7]


def test_dgx1_a_quad_is_the_whole_one() -> None:
    assert pick(dgx1, 4, taken={0}) == [4, 5, 6, 7]
    assert pick(dgx1, 4, taken={6}) == [0, 1, 2, 3]


def test_dgx1_singles_use_up_one_quad_before_they_break_the_other() -> None:
    singles = in_turn(dgx1, 1, 1, 1, 1)
    assert {gpu for single in singles for gpu in single} == {0, 1, 2, 3}


def test_dgx1_a_pair_with_one_required_is_the_required_ones_best_partner() -> None:
    assert [pick(dgx1, 2, required=(gpu,))[1] for gpu in range(8)] == [3, 2, 3, 2, 7, 6, 7, 6]


def test_dgx1_two_nvlinks_across_the_cpus_are_better_than_one_below_a_switch() -> None:
    assert pick(dgx1, 2, taken={2, 3, 6, 7}) == [0, 4]


def test_hgx_h100_is_filled_socket_by_socket() -> None:
    assert in_turn(hgx_h100, 4, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert in_turn(hgx_h100, 2, 2, 2, 2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert pick(hgx_h100, 4, taken={0}) == [4, 5, 6, 7]
    assert pick(hgx_h100, 4, taken={7}) == [0, 1, 2, 3]


@pytest.mark.parametrize(("taken", "expected"), [({0}, [1]), ({4}, [5]), ({4, 5, 6}, [7]), ({0, 4, 5}, [6]), ({0, 1, 4}, [2])])
def test_hgx_h100_a_single_comes_from_the_socket_that_has_lost_most(taken: set[int], expected: list[int]) -> None:
    assert pick(hgx_h100, 1, taken) == expected


def test_hgx_h100_all_but_one_leaves_any_and_all_is_all() -> None:
    assert pick(hgx_h100, 7) == [0, 1, 2, 3, 4, 5, 6]
    assert pick(hgx_h100, 8) == list(range(8))


def test_16_v100_are_filled_switch_by_switch_and_board_by_board() -> None:
    for topology in (dgx2, pcie16):
        assert in_turn(topology, 8, 8) == [list(range(8)), list(range(8, 16))]
        assert in_turn(topology, 4, 4, 4, 4) == [list(range(first, first + 4)) for first in (0, 4, 8, 12)]
        assert in_turn(topology, 2, 2, 2) == [[0, 1], [2, 3], [4, 5]]


def test_16_v100_what_is_asked_for_comes_from_what_is_broken_if_that_is_as_good() -> None:
    for topology in (dgx2, pcie16):
        assert pick(topology, 1, taken={13}) == [12]
        assert pick(topology, 2, taken={13}) == [14, 15]
        assert pick(topology, 4, taken={13}) == [8, 9, 10, 11]
        assert pick(topology, 8, taken={13}) == list(range(8))


def test_four_l40s_on_two_sockets_are_given_out_socket_by_socket() -> None:
    assert in_turn(l40s, 1, 1, 1, 1) == [[0], [1], [2], [3]]
    assert in_turn(l40s, 2, 2) == [[0, 1], [2, 3]]
    assert in_turn(l40s, 1, 2, 1) == [[0], [2, 3], [1]]
    assert pick(l40s, 1, taken={3}) == [2]
    assert pick(l40s, 2, required=(2,)) == [2, 3]
    assert pick(l40s, 3, required=(2,)) == [2, 0, 1]


def test_a_single_leaves_bridged_pairs_whole() -> None:
    assert in_turn(bridged, 1, 1) == [[0], [1]]
    assert pick(bridged, 1, taken={6}) == [7]
    assert in_turn(bridged, 1, 2, 2, 2, 1) == [[0], [2, 3], [4, 5], [6, 7], [1]]


def test_a_single_breaks_the_pair_with_the_fewest_links() -> None:
    topology = Topology(machine(6, {}, lambda a, b: [4, 2, 3][a // 2] if a // 2 == b // 2 else 0), [0] * 6)
    assert in_turn(topology, 1, 1, 1) == [[2], [3], [4]]


def test_without_links_the_numa_nodes_decide() -> None:
    pairs = Topology([[10] * 4] * 4, [0, 1, 0, 1])
    assert pick(pairs, 2) == [0, 2]
    assert pick(pairs, 2, taken={0}) == [1, 3]
    assert pick(pairs, 3) == [0, 1, 2]


def test_gpus_of_no_known_node_count_as_on_one_more_node() -> None:
    topology = Topology([[10] * 5] * 5, [0, None, 1, None, 2])
    assert pick(topology, 2) == [1, 3]
    assert pick(topology, 3) == [0, 1, 3]


def test_the_score_inside_comes_before_what_remains() -> None:
    # A chain whose middle link is the best: two pairs could have one link each, but the first container gets the best there is.
    chain = Topology(machine(4, {}, lambda a, b: {1: 1, 3: 2, 5: 1}[a + b] if b - a == 1 else 0), [0] * 4)
    assert in_turn(chain, 2, 2) == [[1, 2], [0, 3]]


def test_of_equal_triples_the_one_goes_that_cuts_the_least() -> None:
    # Two triangles; the first has a link to a seventh GPU, the second has none.
    links = machine(7, {}, lambda a, b: int(a // 3 == b // 3 or (a, b) == (0, 6)))
    assert pick(Topology(links, [0] * 7), 3) == [3, 4, 5]
