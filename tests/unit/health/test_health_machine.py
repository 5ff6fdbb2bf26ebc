# SPDX-License-Identifier: Apache-2.0
"""The health of one unit against an oracle that remembers all it was ever told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deviceplugin.health import Damping, HealthBook, Sighting
from deviceplugin.model import Health, Recovery, Rule

RULES = {
    "brief": Rule(Recovery.QUIET, 0.0),
    "quiet": Rule(Recovery.QUIET, 10.0),
    "long": Rule(Recovery.QUIET, 30.0),
    "reset": Rule(Recovery.RESET),
    "never": Rule(Recovery.NEVER),
}
DAMPING = Damping(flaps=3, window=100.0, hold=20.0)


@dataclass
class Oracle:
    """Every fault since the unit was last healthy. It is healthy again when each of them lets it go."""

    faults: set[str] = field(default_factory=set)
    sick_in: int = 0
    """The incarnation in which a fault that a reset clears was last seen."""
    falls: list[float] = field(default_factory=list)
    quiet_since: float | None = None
    health: Health | None = None

    def see(self, health: Health, cause: str, incarnation: int, now: float) -> Health:
        if "reset" in self.faults and "never" not in self.faults and incarnation != self.sick_in:
            self.faults.clear()
            if health is Health.HEALTHY:
                self.quiet_since = None
        if health is Health.UNHEALTHY:
            if self.health in (None, Health.HEALTHY):
                self.falls.append(now)
            self.faults.add(cause)
            if cause == "reset":
                self.sick_in = incarnation
        if health is not Health.HEALTHY:
            self.quiet_since = None
            self.health = Health.UNHEALTHY if self.faults else health
            return self.health
        if self.quiet_since is None:
            self.quiet_since = now
        if not self.faults or now - self.quiet_since >= self.hold(now):
            self.faults.clear()
            self.quiet_since = None
            self.health = Health.HEALTHY
        return self.health or Health.HEALTHY

    def hold(self, now: float) -> float:
        if self.faults & {"reset", "never"}:
            return float("inf")
        damped = sum(now - fall < DAMPING.window for fall in self.falls) >= DAMPING.flaps
        return max(DAMPING.hold if damped else 0.0, *(RULES[cause].seconds for cause in self.faults))


class HealthMachine(RuleBasedStateMachine):
    @initialize(knows=st.booleans())
    def begin(self, knows: bool) -> None:
        self.boot = 1
        self.now = 0.0
        self.incarnation = 1
        self.knows_incarnation = knows
        self.book = HealthBook(RULES, DAMPING, "boot-1")
        self.oracle = Oracle()

    def see(self, health: Health, cause: str) -> None:
        sighting = Sighting(health, cause, str(self.incarnation) if self.knows_incarnation else "")
        found = self.book.see("u", sighting, self.now)
        assert found.health is self.oracle.see(health, cause, self.incarnation if self.knows_incarnation else 0, self.now)
        assert (found.cause == "") == (found.health is Health.HEALTHY)
        if found.health is Health.UNHEALTHY:
            assert found.cause in self.oracle.faults
            graver = [self.book.gravity(Sighting(Health.UNHEALTHY, one)) for one in self.oracle.faults]
            assert self.book.gravity(Sighting(Health.UNHEALTHY, found.cause)) == max(graver)

    @rule(cause=st.sampled_from(sorted(RULES)))
    def fault(self, cause: str) -> None:
        self.see(Health.UNHEALTHY, cause)

    @rule()
    def well(self) -> None:
        self.see(Health.HEALTHY, "")

    @rule()
    def unsure(self) -> None:
        self.see(Health.UNKNOWN, "no answer")

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0, 20.0, 100.0]))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def reset(self) -> None:
        self.incarnation += 1

    @precondition(lambda self: self.book.due(self.now) is not None)
    @rule()
    def looks_again_when_due(self) -> None:
        wait = self.book.due(self.now)
        assert wait is not None
        begun = self.oracle.quiet_since is not None
        self.now += wait
        self.see(Health.HEALTHY, "")
        # Only a reset that nobody has seen yet could have made it sooner; and without a quiet, this look begins one.
        assert self.oracle.health is Health.HEALTHY or (not begun and self.oracle.quiet_since is not None)

    @rule(reboots=st.booleans())
    def restart(self, reboots: bool) -> None:
        state = json.loads(json.dumps(self.book.dump()))
        self.boot += reboots
        self.book = HealthBook(RULES, DAMPING, f"boot-{self.boot}")
        self.book.load(state)
        kept = self.oracle.health is Health.UNHEALTHY and (not reboots or "never" in self.oracle.faults)
        self.oracle.quiet_since = None
        if kept:
            # Graver faults stand for all: what they outlast need not be remembered.
            worst = max(self.oracle.faults, key=lambda one: self.book.gravity(Sighting(Health.UNHEALTHY, one)))
            self.oracle.faults = {worst}
        else:
            self.oracle = Oracle()

    @rule()
    def forgive(self) -> None:
        before = self.oracle.health
        assert (self.book.forgive("u") is not None) == (before is Health.UNHEALTHY)
        if before is Health.UNHEALTHY:
            present = self.book.get("u") is not None
            self.oracle = Oracle(health=Health.UNKNOWN if present else None)

    @invariant()
    def only_what_was_verified_is_healthy(self) -> None:
        found = self.book.get("u")
        assert (found.health if found else None) is self.oracle.health


TestHealthMachine = HealthMachine.TestCase
TestHealthMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
