# SPDX-License-Identifier: Apache-2.0
"""Monitoring: RMIDs, which are few and rest in limbo after use, and what the hardware counts for each (fs/resctrl/monitor.c)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deviceplugin.testing.resctrl.groups import Group
from deviceplugin.testing.resctrl.scenarios import Scenario

OCCUPANCY = "llc_occupancy"

LIMBO = 1.0
"""CQM_LIMBOCHECK_INTERVAL in seconds: how often the kernel looks whether an RMID that was given back has left the cache."""

_SCALE = 65536
"""Bytes that the hardware counts in, as on most of the CPUs in question (CPUID 0xf.1)."""


@dataclass(frozen=True, slots=True)
class MonitorDomain:
    """What is counted together: an L3, or with sub-NUMA clusters the part of it that belongs to one node."""

    id: int
    cache: int
    cpus: tuple[int, ...]


def monitor_domains(scenario: Scenario) -> tuple[MonitorDomain, ...]:
    """All that a machine has, online or not (domain_add_cpu_mon())."""
    if not scenario.rmids:
        return ()
    if not scenario.clusters:
        return tuple(MonitorDomain(cache.id, cache.id, cache.cpus) for cache in scenario.caches)
    cache_of = {cpu: cache.id for cache in scenario.caches for cpu in cache.cpus}
    return tuple(MonitorDomain(node, cache_of[cpus[0]], cpus) for node, cpus in sorted(scenario.nodes.items()))


class Monitor:
    """The RMIDs of a machine. ``clock`` says what time it is, in seconds."""

    def __init__(self, scenario: Scenario, clock: Callable[[], float]) -> None:
        self.limit = sum(cache.size for cache in scenario.caches[:1]) * 1024
        self.threshold = self.round(self.limit // scenario.rmids) if scenario.rmids else 0
        self._clock = clock
        self._occupancy_known = OCCUPANCY in scenario.events
        self._free = list(range(1, scenario.rmids))
        self._limbo: dict[int, tuple[float, set[int]]] = {}
        self._counts: dict[tuple[int, int, str], int] = {}

    @staticmethod
    def round(size: int) -> int:
        """resctrl_arch_round_mon_val()."""
        return size // _SCALE * _SCALE

    def take(self) -> int | None:
        """alloc_rmid(): the one that has been free for longest."""
        self._settle()
        return self._free.pop(0) if self._free else None

    @property
    def waiting(self) -> bool:
        """Whether some are in limbo."""
        return bool(self._limbo)

    def give_back(self, rmid: int, domains: Iterable[int]) -> None:
        """free_rmid()."""
        if rmid == 0:  # the root group's
            return
        if self._occupancy_known:
            self._limbo[rmid] = self._clock() + LIMBO, set(domains)
        else:
            self._free.append(rmid)

    def _settle(self) -> None:
        """__check_limbo(), for those whose time has come: what is left of them in the caches must be below the threshold."""
        for rmid, (due, domains) in list(self._limbo.items()):
            if due > self._clock():
                continue
            domains -= {domain for domain in domains if self._counts.get((rmid, domain, OCCUPANCY), 0) < self.threshold}
            self._release(rmid, domains)

    def forget(self, domain: int) -> None:
        """A domain went offline: nothing in limbo waits for it (resctrl_offline_mon_domain())."""
        for rmid, (_, domains) in list(self._limbo.items()):
            domains.discard(domain)
            self._release(rmid, domains)

    def _release(self, rmid: int, domains: set[int]) -> None:
        if not domains:
            del self._limbo[rmid]
            self._free.append(rmid)

    def count(self, group: Group, domain: int, event: str, value: int) -> None:
        """Sets a counter of the hardware."""
        self._counts[group.rmid, domain, event] = value

    def read(self, group: Group, domains: Iterable[int], event: str) -> int:
        """mon_event_count(): a group's own, and those of the groups that monitor parts of it."""
        rmids = [group.rmid, *(child.rmid for child in group.monitors.values())]
        return sum(self._counts.get((rmid, domain, event), 0) for domain in domains for rmid in rmids)
