# SPDX-License-Identifier: Apache-2.0
"""The health of each physical unit: what the probe sees, held back by rules until a recovery can be believed.

A probe says what it sees at one moment. A unit that was unhealthy stays so until the rule of its cause lets it go, and a unit that flaps is held
longer each time. Pure: time comes in, a verdict comes out; the caller keeps :meth:`HealthBook.dump` on disk, so that a fault survives a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from deviceplugin.model import Health, Recovery, Rule

_SEVERITY = (Health.HEALTHY, Health.UNKNOWN, Health.UNHEALTHY)
_HOLD = (Recovery.QUIET, Recovery.RESET, Recovery.NEVER)


class Damping(Struct, frozen=True):
    """A unit that became unhealthy ``flaps`` times within ``window`` seconds stays unhealthy until it was quiet for ``hold`` seconds."""

    flaps: int = 5
    window: float = 300.0
    hold: float = 60.0


class Sighting(Struct, frozen=True):
    """What the probe said of one unit: the worst of its devices. ``incarnation`` changes with each reset of the unit, where the plugin can tell."""

    health: Health
    cause: str = ""
    incarnation: str = ""


class UnitHealth(Struct, frozen=True):
    """What is advertised of one unit, since when (on the caller's clock), and why."""

    health: Health
    cause: str = ""
    since: float = 0.0
    incarnation: str = ""
    quiet_since: float | None = None
    falls: tuple[float, ...] = ()


LOOK_AGAIN = 1.0
"""Seconds from a look that found a new passing fault to the next. The longer it lasts the less often it is looked for: after a tenth of its age."""
SELDOM = 60.0
"""Seconds between two such looks at the most."""


class HealthBook:
    """The state machine of every unit of one plugin. Not thread-safe: the inventory that owns it calls."""

    def __init__(self, rules: Mapping[str, Rule] | None = None, damping: Damping | None = None, boot_id: str = "") -> None:
        self._rules = dict(rules or {})
        self._damping = damping or Damping()
        self._boot_id = boot_id
        self._units: dict[str, UnitHealth] = {}
        self._present: set[str] = set()

    def rule(self, cause: str) -> Rule:
        """The rule for a cause: its own, else that of the part before the first colon, else of ``default``, else none: the probe's word counts."""
        for key in (cause, cause.partition(":")[0], "default"):
            if key in self._rules:
                return self._rules[key]
        return Rule()

    def see(self, unit: str, seen: Sighting, now: float) -> UnitHealth:
        """Takes the probe's word about a unit and answers what to advertise."""
        old = self._units.get(unit)
        new = self._first(seen, now) if old is None else self._next(old, seen, now)
        self._units[unit] = new
        self._present.add(unit)
        return new

    def due(self, now: float) -> float | None:
        """Seconds until some unit may recover by itself, if any: when to look again. A quiet can only begin once a look finds none of the fault."""
        seen = [unit for name, unit in self._units.items() if name in self._present]
        sick = [unit for unit in seen if unit.health is Health.UNHEALTHY and self._hold(unit) < float("inf")]
        return max(0.0, min(self._wait(unit, now) for unit in sick)) if sick else None

    def _wait(self, unit: UnitHealth, now: float) -> float:
        if unit.quiet_since is None:
            return min(max(LOOK_AGAIN, (now - unit.since) / 10), SELDOM)
        return self._hold(unit) - (now - unit.quiet_since)

    def absent(self, present: Collection[str]) -> None:
        """Ends the quiet of the units that the probe no longer sees: nothing is known of them, and :meth:`due` does not wait for them."""
        self._present.intersection_update(present)
        for name, unit in self._units.items():
            if unit.quiet_since is not None and name not in present:
                self._units[name] = replace(unit, quiet_since=None)

    def gravity(self, seen: Sighting) -> tuple[int, int, float]:
        """Orders what a probe says from harmless to grave; of two faults, the one that holds a unit longer is the graver."""
        if seen.health is not Health.UNHEALTHY:
            return _SEVERITY.index(seen.health), 0, 0.0
        rule = self.rule(seen.cause)
        return _SEVERITY.index(seen.health), _HOLD.index(rule.recovery), rule.seconds

    def forgive(self, unit: str) -> str | None:
        """An administrator's pardon: what the probe says next of the unit counts as if nothing had been.

        Returns the cause that was forgiven, None if there was none.
        """
        old = self._units.get(unit)
        if old is None or old.health is not Health.UNHEALTHY:
            return None
        if unit in self._present:
            self._units[unit] = UnitHealth(Health.UNKNOWN, old.cause, old.since, old.incarnation)
        else:
            del self._units[unit]
        return old.cause

    def get(self, unit: str) -> UnitHealth | None:
        return self._units.get(unit)

    def _first(self, seen: Sighting, now: float) -> UnitHealth:
        falls = (now,) if seen.health is Health.UNHEALTHY else ()
        return UnitHealth(seen.health, seen.cause, now, seen.incarnation, falls=falls)

    def _next(self, old: UnitHealth, seen: Sighting, now: float) -> UnitHealth:
        falls = tuple(t for t in old.falls if now - t < self._damping.window)
        old = replace(old, falls=falls)
        if seen.health is not Health.HEALTHY:
            if old.health is seen.health and old.cause == seen.cause:
                return replace(old, quiet_since=None, incarnation=seen.incarnation or old.incarnation)
            if old.health is Health.UNHEALTHY and not self._reset(old, seen) and self.gravity(Sighting(old.health, old.cause)) > self.gravity(seen):
                # A fault is not overwritten by a lesser one, or by ignorance: that one's recovery would pardon both.
                return replace(old, quiet_since=None)
            if old.health is Health.HEALTHY and seen.health is Health.UNHEALTHY:
                falls = (*falls, now)
            return UnitHealth(seen.health, seen.cause, now, seen.incarnation or old.incarnation, falls=falls)
        if old.health is Health.HEALTHY:
            return replace(old, incarnation=seen.incarnation or old.incarnation)
        if old.health is Health.UNKNOWN:
            return UnitHealth(Health.HEALTHY, "", now, seen.incarnation or old.incarnation, falls=falls)
        if self._reset(old, seen):
            return UnitHealth(Health.HEALTHY, "", now, seen.incarnation, falls=falls)
        quiet = now if old.quiet_since is None else min(old.quiet_since, now)
        held = replace(old, quiet_since=quiet)
        if now - quiet >= self._hold(held):
            return UnitHealth(Health.HEALTHY, "", now, seen.incarnation or old.incarnation, falls=falls)
        return held

    def _reset(self, old: UnitHealth, seen: Sighting) -> bool:
        """Whether the unit's fault was one that a reset clears, and the unit was reset since."""
        known = seen.incarnation != "" and old.incarnation != ""
        return known and seen.incarnation != old.incarnation and self.rule(old.cause).recovery is Recovery.RESET

    def _hold(self, unit: UnitHealth) -> float:
        """Seconds of quiet that the unit needs before it is healthy again."""
        if unit.health is Health.UNKNOWN:
            return 0.0
        rule = self.rule(unit.cause)
        if rule.recovery is not Recovery.QUIET:
            return float("inf")
        return max(rule.seconds, self._damping.hold if len(unit.falls) >= self._damping.flaps else 0.0)

    def dump(self) -> dict[str, Any]:
        """The faults that must outlive this process, as JSON types. Healthy units are left out: the next probe says so again."""
        faults = {
            name: {"cause": u.cause, "since": u.since, "incarnation": u.incarnation, "falls": list(u.falls)}
            for name, u in sorted(self._units.items())
            if u.health is Health.UNHEALTHY
        }
        return {"boot_id": self._boot_id, "units": faults}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`dump` gave. After a reboot, faults that a reset clears are gone; those for good are not."""
        rebooted = state.get("boot_id") != self._boot_id
        units: dict[str, UnitHealth] = {}
        for name, fault in state.get("units", {}).items():
            cause = str(fault["cause"])
            if rebooted and self.rule(cause).recovery is not Recovery.NEVER:
                continue
            units[name] = UnitHealth(
                Health.UNHEALTHY, cause, float(fault["since"]), str(fault["incarnation"]), falls=tuple(float(t) for t in fault["falls"])
            )
        self._units.update(units)  # all of it or, where something cannot be read, nothing
