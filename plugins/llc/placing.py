# SPDX-License-Identifier: Apache-2.0
"""Which slots a container should get, and which ways its slots become: values in, values out.

The kubelet sees to it that no slot is held twice, so the ways that groups need never are more than the pool has. As cache masks can be rewritten
under running programs, and only their width matters, there always is a place: at worst other groups move.

Slots for a container (:meth:`Places.prefer`), the best answer first: no group has to move; one cache; one run of slots; the longest free run of the
cache loses least; cut from the shortest run that has room; few fragments; the cache that has least left; the lowest. Where no one cache has enough,
those whose slots are required anyway, then the fewest caches.

Ways for slots (:func:`admit`): a free run, cut from the shortest that has room, leaving few pieces, nearest to an end of the pool so that its middle
stays free, and of equals the ways that have the slots' own numbers; else the run for which the fewest groups, and of these the fewest ways, have to
move; else all groups close up. If groups may not move, a mask with holes, where the CPU takes such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from deviceplugin._native import llc
from deviceplugin.plugins.llc.layout import Cache, is_run
from deviceplugin.plugins.llc.naming import Slots, device_id, key_of, overlap


class NoRoom(Exception):
    """There is no place for a container's slots. The text says where and what would help."""


class Group(Struct, frozen=True):
    """What one container holds: its slots, and for each cache the ways that they are now."""

    slots: Slots
    masks: Mapping[int, int]

    @property
    def key(self) -> str:
        return key_of(self.slots)


Groups = Mapping[str, Group]
"""By key. No two have a slot in common, and in no cache a way."""

NO_GROUPS: Groups = MappingProxyType({})


class Rules(Struct, frozen=True):
    """What may be done to find a place. ``fixed`` are keys of groups that must stay where they are."""

    move: bool = True
    sparse: bool = False
    fixed: frozenset[str] = frozenset()


class Places:
    """The slots of all caches, in a form that is quick to choose from. Never changes."""

    def __init__(self, caches: Iterable[Cache]) -> None:
        self.caches = {cache.id: cache for cache in caches}
        self._slots = llc.Slots([[device_id(cache.id, n) for n in range(cache.slots)] for cache in self.caches.values()])

    def prefer(self, groups: Groups, available: Sequence[str], required: Sequence[str], size: int) -> list[str] | None:
        """Which ``size`` of the ``available`` ids to take, the ``required`` ones among them; None for ids that are not known."""
        taken = dict.fromkeys(self.caches, 0)
        for group in groups.values():
            for cache, mask in group.masks.items():
                if cache in taken:
                    taken[cache] |= mask
        room = [llc.longest_run(cache.pool & ~taken[cache.id]) // cache.ways_per_slot for cache in self.caches.values()]
        return self._slots.choose(list(available), list(required), size, room)


def evict(groups: Groups, slots: Slots) -> dict[str, Group]:
    """The groups without those that hold one of ``slots``: the kubelet gave it away again, so their holders have ended."""
    return {key: group for key, group in groups.items() if not overlap(group.slots, slots)}


def admit(caches: Mapping[int, Cache], groups: Groups, slots: Slots, rules: Rules) -> dict[str, Group]:
    """All groups once a container holds ``slots``: the new one, the others, some of them moved; the same as before if they are there already.

    Raises NoRoom.
    """
    key = key_of(slots)
    if key in groups:
        return dict(groups)
    after = evict(groups, slots)
    masks: dict[int, int] = {}
    for id_, bits in slots.items():
        cache = caches.get(id_)
        if cache is None or bits >> cache.slots:
            raise NoRoom(f"cache {id_} has {cache.slots if cache else 'no'} slots, so {key} cannot be had: the cache or its division has changed")
        masks[id_], moved = _place(cache, after, bits, rules, key)
        for other, mask in moved.items():
            after[other] = replace(after[other], masks={**after[other].masks, id_: mask})
    after[key] = Group(dict(slots), masks)
    return after


def adopt(
    caches: Mapping[int, Cache], groups: Groups, found: Mapping[str, tuple[Slots, Mapping[int, int]]], rules: Rules
) -> tuple[dict[str, Group], dict[str, str]]:
    """All groups once those that were ``found`` are among them: with the masks they have where these are right, else with new ones.

    And, by key, why one cannot be among them: of two with a slot in common the first one counts.
    """
    after = dict(groups)
    wrong: dict[str, Slots] = {}
    lost: dict[str, str] = {}
    for key, (slots, masks) in found.items():
        if any(overlap(group.slots, slots) for group in after.values()) or any(overlap(other, slots) for other in wrong.values()):
            lost[key] = "another group has one of its slots"
        elif all(_right(caches.get(id_), bits, masks.get(id_, 0), after, rules) for id_, bits in slots.items()):
            after[key] = Group(dict(slots), {id_: masks[id_] for id_ in slots})
        else:
            wrong[key] = slots
    for key, slots in wrong.items():
        try:
            after = admit(caches, after, slots, rules)
        except NoRoom as error:
            lost[key] = str(error)
    return after, lost


def _right(cache: Cache | None, bits: int, mask: int, groups: Groups, rules: Rules) -> bool:
    if cache is None or bits >> cache.slots or mask & ~cache.pool or mask.bit_count() != cache.ways(bits):
        return False
    return (rules.sparse or is_run(mask)) and not any(mask & group.masks.get(cache.id, 0) for group in groups.values())


def _place(cache: Cache, groups: Groups, bits: int, rules: Rules, key: str) -> tuple[int, dict[str, int]]:
    """The mask, and the masks of the groups that have to move."""
    live = {other: group.masks[cache.id] for other, group in groups.items() if cache.id in group.masks}
    fixed = [other in rules.fixed for other in live]
    found = llc.place(cache.pool, live.values(), fixed, cache.ways(bits), cache.ideal(bits), rules.move, rules.sparse)
    if found is None:
        taken = 0
        for mask in live.values():
            taken |= mask
        free = (cache.pool & ~taken).bit_count()
        advice = "allow it to move others with relocate: true" if not rules.move else "end one of the containers that hold its ways"
        raise NoRoom(f"cache {cache.id} has {free} free ways but no place for the {cache.ways(bits)} of {key}: {advice}")
    mask, masks = found
    return mask, {other: after for (other, before), after in zip(live.items(), masks, strict=True) if after != before}
