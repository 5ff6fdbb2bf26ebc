# SPDX-License-Identifier: Apache-2.0
"""Names: of a slot to the kubelet, of the slots that one container holds, and of the resctrl group that carries them.

A slot is a token: it counts ways of one cache and says nothing about which. ``l3.0.03`` is slot 3 of the cache that the kernel calls 0; both numbers
stay over reboots. A set of slots is a mapping from cache to bits, bit n for slot n, and its key says it in a form that is a file name, a CDI device
name and part of an environment variable: ``d0x3c.d1x1``. A group's name holds its key, so that resctrl itself remembers who holds what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

PREFIX = "kdp-llc."
"""What the names of our groups begin with. Everything else in resctrl is somebody else's."""

MAX_KEY = 200
"""Of 255 bytes that the name of a directory may have."""

_ID = re.compile(r"l3\.(0|[1-9][0-9]{0,9})\.([0-9]{2})")
_PART = re.compile(r"d(0|[1-9][0-9]{0,9})x([1-9a-f][0-9a-f]{0,7})")

Slots = Mapping[int, int]
"""Bits by cache: which slots of it. No cache has none."""


def device_id(cache: int, slot: int) -> str:
    """``l3.0.03``."""
    return f"l3.{cache}.{slot:02}"


def slots_of(ids: Iterable[str]) -> dict[int, int]:
    """The slots that device ids name. Raises ValueError for what is no id of ours."""
    slots: dict[int, int] = {}
    for one in ids:
        found = _ID.fullmatch(one)
        if found is None or int(found[2]) >= 32:
            raise ValueError(f"{one!r} is not the id of a cache slot, such as {device_id(0, 3)}")
        cache = int(found[1])
        slots[cache] = slots.get(cache, 0) | 1 << int(found[2])
    return slots


def ids_of(slots: Slots) -> list[str]:
    """The device ids, in order."""
    return [device_id(cache, slot) for cache in sorted(slots) for slot in range(32) if slots[cache] >> slot & 1]


def key_of(slots: Slots) -> str:
    """``d0x3c.d1x1``."""
    return ".".join(f"d{cache}x{slots[cache]:x}" for cache in sorted(slots))


def slots_of_key(key: str) -> dict[int, int] | None:
    """The slots of a key; None for what is no key as :func:`key_of` writes it."""
    parts = [_PART.fullmatch(part) for part in key.split(".")]
    slots = {int(part[1]): int(part[2], 16) for part in parts if part}
    return slots if slots and key_of(slots) == key else None


def group_of(key: str) -> str:
    """``kdp-llc.d0x3c``: the directory in resctrl."""
    return PREFIX + key


def key_of_group(name: str) -> str | None:
    """The key in the name of a group; None if the group is not one of ours."""
    key = name.removeprefix(PREFIX)
    return key if key != name and slots_of_key(key) is not None else None


def overlap(a: Slots, b: Slots) -> bool:
    """Whether two sets have a slot in common."""
    return any(bits & b.get(cache, 0) for cache, bits in a.items())
