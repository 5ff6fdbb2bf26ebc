# SPDX-License-Identifier: Apache-2.0
"""Which ways of a cache are for slots and which stay shared.

The pool is one run of ways, so that any set of groups can be packed into it, group beside group. Not in it are the ways that the hardware writes to
by itself (``shareable_bits``: DMA lands there), those that others hold exclusively, and some that everything else on the node shares. The shared ways
are one run as well, as Intel wants, beside the hardware's, and hold them where they touch.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct


class LayoutError(Exception):
    """A cache that cannot be divided into slots. The text says why."""


class Cache(Struct, frozen=True):
    """One cache, divided. Masks have bit n for way n, as resctrl writes them."""

    id: int
    """What the kernel calls it: the number in a schemata line."""
    pool: int
    shared: int
    ways_per_slot: int

    @property
    def slots(self) -> int:
        return self.pool.bit_count() // self.ways_per_slot

    def ideal(self, bits: int) -> int:
        """The ways of slots when each slot has the ways of its own number."""
        first = (self.pool & -self.pool).bit_length() - 1
        slot = (1 << self.ways_per_slot) - 1
        mask = 0
        for number in range(bits.bit_length()):
            if bits >> number & 1:
                mask |= slot << first + number * self.ways_per_slot
        return mask

    def ways(self, bits: int) -> int:
        """How many ways slots stand for."""
        return bits.bit_count() * self.ways_per_slot


def divide(
    cache: int, cbm: int, *, shareable: int = 0, taken: int = 0, min_bits: int = 1, ways_per_slot: int = 1, shared_ways: int | None = None
) -> Cache:
    """Divides a cache with the ways ``cbm``, one run from bit 0.

    ``shareable`` are ways that the hardware uses too, ``taken`` those that others hold exclusively, ``min_bits`` the fewest ways a group may have.
    ``shared_ways`` are left to everything that holds no slots, besides the hardware's; by default as many as the hardware shares, and at least 2.
    Raises LayoutError when nothing is left for slots.
    """
    shareable &= cbm & ~taken
    ways_per_slot = max(1, min_bits, ways_per_slot)
    shared_ways = max(2, shareable.bit_count()) if shared_ways is None else shared_ways
    candidates = cbm & ~shareable & ~taken
    run = max(runs(candidates), key=lambda run: (run.bit_count(), -run), default=0)
    low_end = _reach(shareable, run, up=False) > _reach(shareable, run, up=True)
    beside = max(_reach(shareable, run, up=True), _reach(shareable, run, up=False))
    least = max(1, min_bits)
    keep = max(shared_ways, least - beside)
    slots = (run.bit_count() - keep) // ways_per_slot
    if slots < 1:
        raise LayoutError(
            f"of {cbm.bit_count()} ways {candidates.bit_count()} are free of hardware and exclusive holders, {run.bit_count()} of them in one run; "
            f"with {keep} shared, none is left for a slot of {ways_per_slot}"
        )
    pool = (1 << slots * ways_per_slot) - 1 << (run & -run).bit_length() - 1
    if low_end:
        pool <<= run.bit_count() - slots * ways_per_slot
    left = cbm & ~pool & ~taken
    shared = max(runs(left), key=lambda run: ((run & shareable).bit_count(), run.bit_count()))
    if shared.bit_count() < least:
        raise LayoutError(f"the ways that stay shared, {shared:#x}, are fewer than the {least} that a group must have: raise sharedWays")
    return Cache(cache, pool, shared, ways_per_slot)


def runs(mask: int) -> Iterator[int]:
    """The runs of bits that a mask is made of, the lowest first."""
    while mask:
        first = mask & -mask
        run = mask & ~(mask + first)
        yield run
        mask &= ~run


def is_run(mask: int) -> bool:
    """Whether a mask is one run of bits."""
    return mask != 0 and mask & mask + (mask & -mask) == 0


def _reach(mask: int, run: int, *, up: bool) -> int:
    """How many bits of ``mask`` follow ``run`` without a gap, above or below it."""
    count = 0
    at = run.bit_length() if up else (run & -run).bit_length() - 2
    while at >= 0 and mask >> at & 1:
        count += 1
        at += 1 if up else -1
    return count
