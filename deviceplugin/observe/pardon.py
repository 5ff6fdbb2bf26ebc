# SPDX-License-Identifier: Apache-2.0
"""``deviceplugin forgive``: an administrator's word that a unit is well again, where no rule would ever believe it."""

from __future__ import annotations

import concurrent.futures

import msgspec

from deviceplugin.daemon import Daemon
from deviceplugin.inventory import GONE, Inventory, Row
from deviceplugin.model import Health
from deviceplugin.scanner import Scanner

PATIENCE = 2.0
"""Seconds that the look after a pardon may take before it is answered without."""

_LATER = "a look takes long; it is forgiven once that ends"


class Pardon(msgspec.Struct, frozen=True, rename="camel"):
    """What became of a unit whose fault was forgiven. A part of ``-o json``: the rules of status.py hold."""

    plugin: str
    unit: str
    cause: str
    """What was forgiven."""
    health: str
    """What the unit is now: ``healthy``, ``unhealthy`` or ``unknown``; ``gone`` if it is not there, empty if it could not be looked at yet."""
    why: str
    """Why it is not healthy, or why it could not be looked at."""


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """What one daemon says."""

    forgiven: tuple[Pardon, ...]
    """One for each plugin that had a fault of the unit on record."""
    faults: tuple[str, ...]
    """What the units that are unhealthy now could be forgiven, for people."""


def forgive(daemon: Daemon, name: str) -> Answer:
    """Forgives the unit, or the unit of the device, of that name. Waits for the looks that follow, but not for long."""
    scanners = tuple(daemon.scanners.values())
    asked = [(scanner, unit, scanner.forgive(unit)) for scanner in scanners for unit in [_unit(scanner.inventory, name)]]
    concurrent.futures.wait([future for _, _, future in asked], PATIENCE)
    found = []
    for scanner, unit, future in asked:
        if not future.done():
            found += [Pardon(scanner.name, unit, row.cause, "", _LATER) for row in _rows(scanner, unit)[:1] if _sick(row)]
        elif (cause := future.result()) is not None:
            found.append(Pardon(scanner.name, unit, cause, *_now(scanner, unit)))
    rows = ((scanner, row) for scanner in scanners for snapshot in scanner.inventory.snapshots.values() for row in snapshot.rows)
    return Answer(tuple(found), tuple(dict.fromkeys(f"{row.device.unit} ({scanner.name}: {row.cause})" for scanner, row in rows if _sick(row))))


def _unit(inventory: Inventory, name: str) -> str:
    """Who names a device, or a share of one, means the unit behind it."""
    for snapshot in inventory.snapshots.values():
        for row in snapshot.rows:
            if name in (row.id, row.device.id):
                return row.device.unit
    return name


def _sick(row: Row) -> bool:
    return row.health is Health.UNHEALTHY and row.cause != GONE


def _rows(scanner: Scanner, unit: str) -> list[Row]:
    """Without what is listed only because a container may still hold it."""
    return [row for snapshot in scanner.inventory.snapshots.values() for row in snapshot.rows if row.device.unit == unit and row.cause != GONE]


def _now(scanner: Scanner, unit: str) -> tuple[str, str]:
    if scanner.report.error:
        return "", scanner.report.error
    rows = _rows(scanner, unit)
    return (rows[0].health.value, rows[0].cause) if rows else ("gone", "")
