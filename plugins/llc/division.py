# SPDX-License-Identifier: Apache-2.0
"""How all caches are divided, and that this stays: slots are promised to pods."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from deviceplugin.plugins.llc.config import LlcConfig
from deviceplugin.plugins.llc.layout import Cache, LayoutError, divide
from deviceplugin.plugins.llc.placing import Places
from deviceplugin.plugins.llc.resctrl import Info, Survey, masks


class Division(Struct, frozen=True):
    """The caches. ``faults`` say why a cache cannot be trusted now, ``undivided`` why one has no slots."""

    places: Places
    signature: tuple[object, ...]
    faults: Mapping[int, str]
    undivided: Mapping[int, str]


def divide_all(survey: Survey, config: LlcConfig, before: Division | None) -> Division:
    """The division of ``before`` as long as the hardware and the options of the mount are the same, with caches that are new; else a new one."""
    info = survey.info
    signature = _signature(info)
    present = sorted(masks(survey.root, info.names))
    same = before if before is not None and before.signature == signature else None
    caches: dict[int, Cache] = dict(same.places.caches) if same else {}
    faults: dict[int, str] = {}
    undivided: dict[int, str] = {}
    for id_ in present:
        taken = info.exclusive.get(id_, 0)
        if id_ in caches:
            if taken & caches[id_].pool:
                faults[id_] = f"foreign: somebody else's group holds ways {taken & caches[id_].pool:#x} of the slots exclusively"
            continue
        try:
            caches[id_] = _divide(id_, info, config, taken)
        except LayoutError as error:
            undivided[id_] = str(error)
    for id_ in caches.keys() - set(present):
        faults[id_] = "offline: the kernel no longer lists the cache, as when all its CPUs are offline"
    if same and caches == same.places.caches:
        return Division(same.places, signature, faults, undivided)
    return Division(Places(caches[id_] for id_ in sorted(caches)), signature, faults, undivided)


def _divide(id_: int, info: Info, config: LlcConfig, taken: int) -> Cache:
    return divide(
        id_,
        info.cbm,
        shareable=info.shareable,
        taken=taken,
        min_bits=info.min_bits,
        ways_per_slot=config.ways_per_slot,
        shared_ways=config.shared_ways,
    )


def _signature(info: Info) -> tuple[object, ...]:
    return info.names, info.cbm, info.min_bits, info.shareable
