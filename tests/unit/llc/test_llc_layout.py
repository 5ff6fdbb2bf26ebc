# SPDX-License-Identifier: Apache-2.0
"""How a cache is divided on the CPUs that there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deviceplugin.plugins.llc.layout import Cache, LayoutError, divide, is_run, runs


@pytest.mark.parametrize(
    ("what", "cache", "pool", "shared", "slots"),
    [
        ("Skylake: DMA in the two highest ways", divide(0, 0x7FF, shareable=0x600), 0x7F, 0x780, 7),
        ("Haswell: masks of two bits at least", divide(0, 0xFFFFF, shareable=0xC0000, min_bits=2), 0xFFFF, 0xF0000, 8),
        ("DMA at both ends", divide(0, 0xFFFFF, shareable=0xC0001), 0x7FFE, 0xF8000, 14),
        ("DMA at the low end alone", divide(0, 0x7FF, shareable=0x3), 0x7F0, 0xF, 7),
        ("AMD: nothing is the hardware's, a mask may be empty", divide(0, 0xFFFF, min_bits=0), 0x3FFF, 0xC000, 14),
        ("two ways a slot; one left over stays shared", divide(0, 0x7FF, shareable=0x600, ways_per_slot=2), 0x3F, 0x7C0, 3),
        ("no more shared than the hardware's", divide(0, 0x7FF, shareable=0x600, shared_ways=0), 0x1FF, 0x600, 9),
        ("something must stay", divide(0, 0xFFFF, shared_ways=0), 0x7FFF, 0x8000, 15),
        ("somebody holds ways 4 and 5 exclusively", divide(0, 0xFFFF, taken=0x30), 0x3FC0, 0xF, 8),
    ],
)
def test_division(what: str, cache: Cache, pool: int, shared: int, slots: int) -> None:
    assert (hex(cache.pool), hex(cache.shared), cache.slots) == (hex(pool), hex(shared), slots), what


def test_each_slot_has_ways_of_its_own_number() -> None:
    cache = divide(0, 0xFFFFF, shareable=0xC0001, ways_per_slot=2)
    assert cache.pool == 0x7FFE
    assert cache.ideal(0b101) == 0b1100110
    assert cache.ways(0b101) == 4


@pytest.mark.parametrize("options", [{"shared_ways": 9}, {"ways_per_slot": 10}, {"taken": 0x7FF}, {"taken": 0x155}, {"shareable": 0x7FF}])
def test_cache_without_room_for_a_slot_says_so(options: dict[str, int]) -> None:
    with pytest.raises(LayoutError, match="none is left for a slot"):
        divide(0, 0x7FF, **{"shareable": 0x600, **options})


@given(
    st.integers(1, 32),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 3),
    st.integers(1, 6),
    st.none() | st.integers(0, 8),
)
def test_every_division_keeps_the_rules(width: int, shareable: int, taken: int, least: int, per_slot: int, shared: int | None) -> None:
    cbm = (1 << width) - 1
    try:
        cache = divide(0, cbm, shareable=shareable, taken=taken, min_bits=least, ways_per_slot=per_slot, shared_ways=shared)
    except LayoutError:
        assume(False)
        raise
    assert is_run(cache.pool)
    assert is_run(cache.shared)
    assert not cache.pool & cache.shared
    assert not (cache.pool | cache.shared) & ~cbm
    assert not cache.pool & shareable
    assert not (cache.pool | cache.shared) & taken
    assert cache.shared.bit_count() >= max(1, least)
    assert cache.slots * cache.ways_per_slot == cache.pool.bit_count()
    assert cache.ideal((1 << cache.slots) - 1) == cache.pool


@given(st.integers(0, (1 << 32) - 1))
def test_runs(mask: int) -> None:
    found = list(runs(mask))
    assert sum(found) == mask
    assert all(is_run(run) for run in found)
    assert found == sorted(found)
    assert all(low << 1 & ~low & high == 0 for low, high in itertools.pairwise(found))
