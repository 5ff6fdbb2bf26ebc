# SPDX-License-Identifier: Apache-2.0
"""What is believed of something that is looked at again and again: one bad answer is no fault, one good one no recovery."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from deviceplugin import Health


class Belief(Struct, frozen=True):
    """What is published, and how many looks in a row have said otherwise."""

    health: Health
    cause: str = ""
    against: int = 0


class Debounce:
    """One belief for each thing by name. The first look is believed at once: what was never seen well is not given out."""

    def __init__(self) -> None:
        self._beliefs: dict[str, Belief] = {}

    def see(self, name: str, health: Health, cause: str, *, failures: int, successes: int) -> Belief:
        """Takes a look's word, and answers what to publish. A fault that becomes another fault is one."""
        old = self._beliefs.get(name)
        new = Belief(health, cause)
        if old is not None and (health is Health.HEALTHY) is not (old.health is Health.HEALTHY):
            enough = successes if health is Health.HEALTHY else failures
            if old.against + 1 < enough:
                new = Belief(old.health, old.cause, old.against + 1)
        self._beliefs[name] = new
        return new

    def keep(self, names: Collection[str]) -> None:
        """Forgets everything else."""
        self._beliefs = {name: belief for name, belief in self._beliefs.items() if name in names}

    @property
    def unsettled(self) -> bool:
        """Whether the next look may change a belief: it should come soon."""
        return any(belief.against for belief in self._beliefs.values())
