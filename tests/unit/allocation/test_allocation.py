# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin._native.allocation import ANY, PACK, Slots
from deviceplugin.allocation import POLICIES, Row, Table, natural
from tests.oracles import allocation as oracle

policies = st.sampled_from(sorted(POLICIES))


@st.composite
def lists(draw: st.DrawFn) -> list[Row]:
    """Units of several sizes on up to six NUMA nodes, now and then on two or on none that is known."""
    nodes = draw(st.integers(1, 6))
    names = draw(st.sampled_from([[f"gpu-{i}" for i in range(10)], [*"abc", "a1", "a01", "1", "1a", "a1a", "é", "a 1"]]))
    numa = st.lists(st.integers(0, nodes - 1), max_size=2).map(tuple) if draw(st.booleans()) else st.integers(0, nodes - 1).map(lambda n: (n,))
    rows = [
        (f"{names[unit]}::{slot}" if size > 1 else names[unit], f"gpu-{unit}", place)
        for unit, (size, place) in enumerate(draw(st.lists(st.tuples(st.integers(1, 5), numa), max_size=10)))
        for slot in range(size)
    ]
    return draw(st.permutations(rows))


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[Row], list[str], list[str], int]:
    rows = draw(lists())
    ids = [row[0] for row in rows] + ["stranger-1", "stranger-2"]
    available = [id_ for id_ in ids if draw(st.integers(0, 3))]
    required = [id_ for id_ in draw(st.permutations(available)) if not draw(st.integers(0, 5))]
    if draw(st.integers(0, 9)) == 0:
        required.append(draw(st.sampled_from([*ids, "never seen"])))
    return rows, available, required, draw(st.integers(-1, len(ids) + 2))


@settings(max_examples=500)
@given(questions(), policies)
def test_the_answer_is_the_oracles(question: tuple[list[Row], list[str], list[str], int], policy: str) -> None:
    rows, available, required, size = question
    assert Table(rows).choose(policy, available, required, size) == oracle.choose(rows, policy, available, required, size)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_answers_to_thousands_of_questions_are_the_oracles(policy: str) -> None:
    rng = random.Random(20)
    for _ in range(2000):
        nodes = rng.randint(1, 5)
        rows = [
            (f"gpu-{unit}::{slot}", f"gpu-{unit}", place)
            for unit in range(rng.randint(0, 8))
            for place in [tuple(rng.sample(range(nodes), rng.choice([0, 1, 1, 1, min(2, nodes)])))]
            for slot in range(rng.choice([1, 1, 2, 3, 6]))
        ]
        available = [id_ for id_ in ids(rows) if rng.random() < 0.7]
        required = [id_ for id_ in available if rng.random() < rng.choice([0, 0, 0.2])]
        size = rng.randint(0, len(rows))
        rng.shuffle(available)
        assert Table(rows).choose(policy, available, required, size) == oracle.choose(rows, policy, available, required, size)


@given(questions(), policies)
def test_the_answer_is_what_the_kubelet_needs(question: tuple[list[Row], list[str], list[str], int], policy: str) -> None:
    rows, available, required, size = question
    answer = Table(rows).choose(policy, available, required, size)
    assert len(set(answer)) == len(answer) == max(len(set(required)), min(size, len({*available, *required})))
    assert set(required) <= set(answer) <= {*available, *required}
    assert set(answer[: len(set(required))]) == set(required)


@given(questions(), policies, st.randoms(use_true_random=False))
def test_the_order_of_the_question_does_not_matter(question: tuple[list[Row], list[str], list[str], int], policy: str, rng: random.Random) -> None:
    rows, available, required, size = question
    answer = Table(rows).choose(policy, available, required, size)
    for column in (rows, available, required):
        rng.shuffle(column)
    assert Table(rows).choose(policy, available + available, required * 2, size) == answer


def units(answer: list[str]) -> list[str]:
    return [id_.split("::")[0] for id_ in answer]


def shared(*sizes_and_nodes: tuple[int, int]) -> list[Row]:
    return [(f"gpu-{u}::{s}", f"gpu-{u}", (node,)) for u, (size, node) in enumerate(sizes_and_nodes) for s in range(size)]


def exclusive(*nodes: int) -> list[Row]:
    return [(f"gpu-{i}", f"gpu-{i}", (node,)) for i, node in enumerate(nodes)]


def ids(rows: list[Row]) -> list[str]:
    return [row[0] for row in rows]


def test_any_takes_the_lowest_as_people_count() -> None:
    rows = exclusive(*[0] * 12)
    assert Table(rows).choose("any", sorted(ids(rows)[2:]), [], 3) == ["gpu-2", "gpu-3", "gpu-4"]


def test_spread_takes_one_of_each_before_a_second_of_any() -> None:
    rows = shared((3, 0), (3, 0), (3, 1))
    assert units(Table(rows).choose("spread", ids(rows), [], 3)) == ["gpu-0", "gpu-1", "gpu-2"]
    assert sorted(units(Table(rows).choose("spread", ids(rows), [], 5))) == ["gpu-0", "gpu-0", "gpu-1", "gpu-1", "gpu-2"]


def test_spread_begins_with_the_least_used() -> None:
    rows = shared((4, 0), (4, 0), (4, 0))
    available = [id_ for id_ in ids(rows) if id_ not in ("gpu-0::0", "gpu-0::1", "gpu-1::3")]
    assert Table(rows).choose("spread", available, [], 2) == ["gpu-2::0", "gpu-1::0"]


def test_spread_counts_what_is_required() -> None:
    rows = shared((4, 0), (4, 0))
    assert units(Table(rows).choose("spread", ids(rows), ["gpu-0::1"], 2)) == ["gpu-0", "gpu-1"]


def test_spread_stays_on_one_numa_node_where_that_costs_nothing() -> None:
    rows = exclusive(0, 1, 0, 1, 1)
    assert Table(rows).choose("spread", ids(rows), [], 3) == ["gpu-1", "gpu-3", "gpu-4"]
    assert Table(rows).choose("spread", ids(rows), ["gpu-0"], 2) == ["gpu-0", "gpu-2"]


def test_spread_stays_near_what_it_took_first() -> None:
    rows = shared((1, 1), (2, 0), (2, 1), (2, 2))
    available = [id_ for id_ in ids(rows) if not id_.endswith("::1")]
    assert Table(rows).choose("spread", available, [], 2) == ["gpu-0::0", "gpu-2::0"]


def test_pack_fills_units_in_use_before_it_opens_one() -> None:
    rows = shared((4, 0), (4, 0), (4, 0))
    available = [id_ for id_ in ids(rows) if id_ not in ("gpu-1::0", "gpu-2::0", "gpu-2::1")]
    table = Table(rows)
    assert table.choose("pack", available, [], 2) == ["gpu-2::2", "gpu-2::3"], "the one that is filled by it"
    assert table.choose("pack", available, [], 3) == ["gpu-1::1", "gpu-1::2", "gpu-1::3"], "one rather than two"
    assert units(table.choose("pack", available, [], 5)) == ["gpu-1"] * 3 + ["gpu-2"] * 2
    assert units(table.choose("pack", available, [], 6)) == ["gpu-2"] * 2 + ["gpu-0"] * 4, "two rather than three, and both are filled"


def test_pack_empties_a_unit_in_use_before_it_takes_from_one_it_opens() -> None:
    rows = shared((4, 0), (4, 0))
    available = [id_ for id_ in ids(rows) if id_ != "gpu-1::0"]
    assert units(Table(rows).choose("pack", available, [], 5)) == ["gpu-1"] * 3 + ["gpu-0"] * 2


def test_pack_leaves_the_larger_numa_node_whole() -> None:
    rows = exclusive(0, 0, 0, 0, 1, 1, 1, 1)
    assert Table(rows).choose("pack", ids(rows)[:-1], [], 3) == ["gpu-4", "gpu-5", "gpu-6"]
    assert Table(rows).choose("pack", ids(rows)[:-1], [], 4) == ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]


def test_pack_finds_the_fewest_numa_nodes_not_merely_few() -> None:
    # Node 0 has the most and 1 comes next, but then a third is needed; 2 and 3 are enough.
    places = {"a": (0, 2), "b": (0, 2), "c": (0, 3), "d": (0, 3), "e": (2,), "f": (3,), "trap": (1,)}
    rows = [(id_, id_, nodes) for id_, nodes in places.items()]
    assert sorted(Table(rows).choose("pack", ids(rows), [], 6)) == ["a", "b", "c", "d", "e", "f"]


def test_pack_stays_near_what_is_required() -> None:
    rows = exclusive(0, 0, 0, 1, 1)
    assert Table(rows).choose("pack", ids(rows), ["gpu-1"], 3) == ["gpu-1", "gpu-0", "gpu-2"]


def test_a_unit_of_no_known_node_comes_last() -> None:
    rows: list[Row] = [("a", "a", ()), ("b", "b", ()), ("c", "c", (1,)), ("d", "d", (1,)), ("e", "e", (1,))]
    for policy in ("spread", "pack"):
        assert Table(rows).choose(policy, ids(rows), [], 2) == ["c", "d"]


def test_strangers_are_taken_only_when_nothing_else_is_left() -> None:
    table = Table(exclusive(0, 0))
    for policy in POLICIES:
        assert table.choose(policy, ["x-10", "gpu-1", "x-9", "gpu-0"], [], 3) == ["gpu-0", "gpu-1", "x-9"]


def test_an_empty_list_answers_what_was_offered() -> None:
    for policy in POLICIES:
        assert Table([]).choose(policy, ["b", "a"], ["c"], 2) == ["c", "a"]
        assert Table([]).choose(policy, [], [], 4) == []


@pytest.mark.parametrize("nodes", [16, 20, 70])
def test_many_numa_nodes_are_searched_as_the_oracle_does(nodes: int) -> None:
    rows = exclusive(*[n for n in range(min(nodes, 63)) for _ in range(2)])
    free = ids(rows)
    for policy in ("spread", "pack"):
        for size in (2, 9) if nodes > 16 else (2, 5):
            assert Table(rows).choose(policy, free, [], size) == oracle.choose(rows, policy, free, [], size)


def test_a_node_beyond_what_a_mask_holds_counts_as_unknown() -> None:
    rows = exclusive(*range(70))
    assert len(Table(rows).choose("pack", ids(rows), [], 70)) == 70


def test_two_rows_with_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' is listed twice"):
        Table([("a", "x", ()), ("b", "x", ()), ("a", "y", ())])


def test_an_unknown_policy_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Table([]).choose("best", [], [], 1)


def test_numbers_of_any_length_are_ordered() -> None:
    names = ["a", "a0", "a01", "a1", "a2", "a10", "a" + "9" * 5000, "a1" + "0" * 5000, "b"]
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=natural) == names


def test_one_table_serves_many_threads() -> None:
    rows = shared(*[(20, u % 4) for u in range(50)])
    table, free = Table(rows), ids(rows)
    expected = table.choose("pack", free, [], 333)
    answers: list[list[str]] = []
    threads = [threading.Thread(target=lambda: answers.extend(table.choose("pack", free, [], 333) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 80


@pytest.mark.parametrize(
    ("ids", "units", "nodes"),
    [(["a", "a"], [0, 0], [1]), (["a"], [], [1]), (["a"], [1], [1]), (["a"], [0], [0]), (["a"], [0], [])],
)
def test_slots_that_do_not_fit_together_are_refused(ids: list[str], units: list[int], nodes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"slot|unit"):
        Slots(ids, units, nodes, 2)


def test_a_question_that_is_no_list_of_strings_is_a_type_error() -> None:
    slots = Slots(["a"], [0], [1], 2)
    with pytest.raises(TypeError):
        slots.choose(ANY, None, [], 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        slots.choose(PACK, [[]], [], 1)  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        slots.choose(PACK, ["a"], [], 2**70)
    assert slots.choose(PACK, ["a"], [], 2**62) == ["a"]
