# SPDX-License-Identifier: Apache-2.0
"""The search for cache slots and ways: the same answers as the oracle, and what must hold of every answer."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deviceplugin._native import llc
from tests.oracles import llc as oracle

MASK = st.integers(0, (1 << 32) - 1)


def bits(mask: int) -> frozenset[int]:
    return frozenset(n for n in range(32) if mask >> n & 1)


def mask(members: frozenset[int]) -> int:
    return sum(1 << n for n in members)


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], int]:
    """Caches as available slots, required ones, and room; and a size that can be had."""
    count = draw(st.integers(0, 5))
    width = draw(st.sampled_from([1, 4, 9, 20, 32]))
    slots = st.integers(0, (1 << width) - 1)
    caches = []
    for _ in range(count):
        available = draw(slots)
        required = available & draw(slots) & draw(slots) if draw(st.booleans()) else 0
        caches.append((available, required, draw(st.integers(0, width))))
    least = sum(required.bit_count() for _, required, _ in caches)
    return caches, draw(st.integers(least, sum(available.bit_count() for available, _, _ in caches)))


def ids(cache: int) -> list[str]:
    return [f"{cache}.{slot}" for slot in range(32)]


def chosen_ids(cache: int, members: frozenset[int]) -> list[str]:
    return [f"{cache}.{slot}" for slot in sorted(members)]


@given(machines())
def test_slots_are_chosen_as_the_oracle_does(question: tuple[list[tuple[int, int, int]], int]) -> None:
    caches, size = question
    slots = llc.Slots([ids(i) for i in range(len(caches))])
    available = [one for i, cache in enumerate(caches) for one in chosen_ids(i, bits(cache[0]))]
    required = [one for i, cache in enumerate(caches) for one in chosen_ids(i, bits(cache[1]))]
    answer = slots.choose(available, required, size, [cache[2] for cache in caches])
    assert answer is not None
    assert len(set(answer)) == len(answer) == size
    assert set(required) <= set(answer) <= set(available)
    wanted = oracle.prefer([(bits(a), bits(r), room) for a, r, room in caches], size)
    assert answer == [one for i, members in enumerate(wanted) for one in chosen_ids(i, members)]


def test_question_without_an_answer_is_none() -> None:
    slots = llc.Slots([["a", "b"], ["c"]])
    assert slots.choose(["a", "x"], [], 1, [2, 1]) is None
    assert slots.choose(["a"], ["x"], 1, [2, 1]) is None
    assert slots.choose(["a"], [], 2, [2, 1]) is None
    assert slots.choose(["a", "b"], ["a", "b"], 1, [2, 1]) is None
    assert slots.choose([], [], 0, [2, 1]) == []
    assert slots.choose(["a"], ["b"], 2, [2, 1]) == ["a", "b"]  # what is required is available


def test_tables_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="there twice"):
        llc.Slots([["a"], ["a"]])
    with pytest.raises(ValueError, match="33 slots"):
        llc.Slots([[str(n) for n in range(33)]])
    with pytest.raises(ValueError, match="room of 1 caches"):
        llc.Slots([["a"], ["b"]]).choose(["a"], [], 1, [1])
    with pytest.raises(OverflowError):
        llc.Slots([["a"]]).choose(["a"], [], 1, [-1])


@st.composite
def caches_in_use(draw: st.DrawFn) -> tuple[int, list[int], list[bool]]:
    """A pool, the groups in it, and which must stay. Mostly one run with groups that are runs, sometimes anything."""
    if draw(st.booleans()):
        low, width = draw(st.integers(0, 4)), draw(st.integers(1, 28))
        pool = ((1 << width) - 1) << low
        live, at = [], low
        while at < low + width:
            size = draw(st.integers(1, 5))
            if draw(st.booleans()) and at + size <= low + width:
                live.append(((1 << size) - 1) << at)
            at += size
        live = list(draw(st.permutations(live)))
    else:
        pool, live, left = draw(MASK), [], (1 << 32) - 1
        for _ in range(draw(st.integers(0, 6))):
            if one := draw(MASK) & draw(MASK) & left:
                live.append(one)
                left &= ~one
    return pool, live, [draw(st.integers(0, 9)) == 0 for _ in live]


@given(caches_in_use(), st.integers(1, 32), MASK, st.booleans(), st.booleans())
@example((0xFFFFFFFF, [0xFFFFFFFF], [False]), 32, 0, True, True)
@example((0xFFFFFFFF, [], []), 32, 0xFFFFFFFF, True, False)
def test_ways_are_chosen_as_the_oracle_does(use: tuple[int, list[int], list[bool]], want: int, ideal: int, move: bool, sparse: bool) -> None:
    pool, live, fixed = use
    answer = llc.place(pool, live, fixed, want, ideal, move, sparse)
    wanted = oracle.place(bits(pool), [bits(one) for one in live], fixed, want, bits(ideal), move, sparse)
    if answer is None:
        assert wanted is None
        return
    new, moved = answer
    assert (bits(new), [bits(one) for one in moved]) == wanted
    assert new.bit_count() == want
    assert not new & ~pool
    taken = new
    for before, after, stays in zip(live, moved, fixed, strict=True):
        assert after.bit_count() == before.bit_count()
        assert not after & taken
        assert before == after or (move and not stays)
        taken |= after


@given(caches_in_use(), st.integers(1, 32), MASK)
def test_groups_that_may_move_always_make_room(use: tuple[int, list[int], list[bool]], want: int, ideal: int) -> None:
    pool, live, _ = use
    run = pool & ~(pool + (pool & -pool))  # a pool as the plugin has it: one run
    live = [mask for mask in live if not mask & ~run]
    free = run.bit_count() - sum(mask.bit_count() for mask in live)
    assert (llc.place(run, live, [False] * len(live), want, ideal, True, False) is not None) == (want <= free)


def test_masks_that_make_no_sense_are_refused() -> None:
    for live, fixed, want in (([3, 1], [0, 0], 1), ([0], [0], 1), ([1], [], 1), ([1], [0], 0), ([1], [0], 33), ([1] * 33, [0] * 33, 1)):
        with pytest.raises(ValueError, match=r"mask|groups|ways"):
            llc.place(0xFF, live, [bool(one) for one in fixed], want, 0, True, True)
    for mask_ in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            llc.place(mask_, [], [], 1, 0, True, True)


def test_longest_run() -> None:
    assert [llc.longest_run(mask) for mask in (0, 1, 0b1011, 0b1101110, 0xFFFFFFFF)] == [0, 1, 2, 3, 32]
