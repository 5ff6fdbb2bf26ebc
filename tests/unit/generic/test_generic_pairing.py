# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.plugins.generic.pairing import Column, pair

columns = st.lists(st.builds(Column, st.integers(0, 6), st.integers(1, 5), st.booleans()), max_size=4)


def oracle(group: list[Column]) -> list[tuple[int | None, ...]]:
    """Repeat each list, walk down all of them, and stop where one that is needed has run out or the longest of them ends."""
    repeated = [list(range(c.matches)) * c.limit for c in group]
    rows: list[tuple[int | None, ...]] = []
    while any(len(rows) < c.matches for c in group):
        n = len(rows)
        if any(n >= len(values) and not c.optional for c, values in zip(group, repeated, strict=True)):
            break
        rows.append(tuple(values[n] if n < len(values) else None for values in repeated))
    return rows


@given(columns)
def test_agrees_with_the_oracle(group: list[Column]) -> None:
    assert pair(group) == oracle(group)


@given(columns)
def test_no_match_is_used_more_often_than_its_limit_and_no_device_is_there_twice(group: list[Column]) -> None:
    rows = pair(group)
    assert len(set(rows)) == len(rows)
    for i, column in enumerate(group):
        used = [row[i] for row in rows if row[i] is not None]
        assert all(used.count(one) <= column.limit for one in used)
        assert column.optional or len(used) == len(rows)


def test_one_with_a_limit_of_ten_beside_five_makes_five() -> None:
    assert pair([Column(5), Column(1, limit=10)]) == [(n, 0) for n in range(5)]


def test_without_columns_there_is_nothing() -> None:
    assert pair([]) == []
