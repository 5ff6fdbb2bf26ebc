# SPDX-License-Identifier: Apache-2.0
"""Machines with resctrl, as data: their caches, what those can divide, and how their kernel writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

PER_THREAD, MAX = "per-thread", "max"

ALL_EVENTS = ("llc_occupancy", "mbm_total_bytes", "mbm_local_bytes")


@dataclass(frozen=True, slots=True)
class L3:
    """One last-level cache. ``id`` is the kernel's, and the domain's in resctrl; ``size`` is in KiB."""

    id: int
    cpus: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class L2:
    """Second-level caches that can be divided, one for each CPU and with its number; ``size`` is in KiB."""

    ways: int
    closids: int
    size: int


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Memory bandwidth allocation: per cent on Intel, units of 1/8 GB/s on AMD. ``throttle`` is empty where the kernel has no such file."""

    closids: int
    minimum: int
    granularity: int
    maximum: int
    linear: bool
    throttle: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """A machine. Without ``ways`` its L3 cannot be allocated, without ``rmids`` nothing be monitored."""

    name: str
    caches: tuple[L3, ...]
    nodes: Mapping[int, tuple[int, ...]]
    """CPUs by NUMA node."""
    ways: int = 0
    closids: int = 0
    shareable: int = 0
    """Ways that the hardware writes to by itself."""
    min_ways: int = 1
    sparse: bool = False
    cdp: bool = True
    """L3 can divide code from data."""
    l2: L2 | None = None
    bandwidth: Bandwidth | None = None
    rmids: int = 0
    events: tuple[str, ...] = ALL_EVENTS
    vendor: str = "GenuineIntel"
    model_name: str = ""
    switched_off: bool = False
    """The CPU has L3 allocation and monitoring, and the kernel does not use them: /proc/cpuinfo shows their flags all the same."""
    options: str = ""
    """Those of the mount, ``cdp,debug``."""
    paired: int = 0
    """Ways that the CPU always uses together: one bit in a mask makes it use all of them. resctrl does not show that."""
    kernel: tuple[int, int] = (6, 18)
    """The version of Linux: what it writes and takes has changed in places."""

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for cache in self.caches for cpu in cache.cpus))

    @property
    def columns(self) -> bool:
        """Values in schemata are padded, masks with zeros (``L3:0=0000f``) and numbers with blanks."""
        return self.kernel < (6, 15)

    @property
    def caches_first(self) -> bool:
        """L3 stands before MB in schemata."""
        return self.kernel < (5, 15)

    @property
    def tells_sparse(self) -> bool:
        """``info/L3/sparse_masks`` is there."""
        return self.kernel >= (6, 7)

    @property
    def task_lists(self) -> bool:
        """``tasks`` takes several numbers with commas between, and says what was wrong with one."""
        return self.kernel >= (6, 7)

    @property
    def renames(self) -> bool:
        """Groups that monitor can be moved."""
        return self.kernel >= (6, 5)

    @property
    def clusters(self) -> bool:
        """Sub-NUMA clusters: an L3 spans several nodes, and monitoring goes by node."""
        return any(set(cpus) < set(cache.cpus) for cpus in self.nodes.values() for cache in self.caches)

    def node_of(self, cpu: int) -> int:
        return next(node for node, cpus in self.nodes.items() if cpu in cpus)


def _cpus(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def _sockets(size: int, cpus: int = 4) -> tuple[tuple[L3, ...], Mapping[int, tuple[int, ...]]]:
    caches = tuple(L3(id=socket, cpus=_cpus(socket * cpus, cpus), size=size) for socket in range(2))
    return caches, {cache.id: cache.cpus for cache in caches}


_MBA = Bandwidth(closids=8, minimum=10, granularity=10, maximum=100, linear=True, throttle=MAX)

_SKYLAKE_CACHES, _SKYLAKE_NODES = _sockets(28160)
SKYLAKE = Scenario(
    name="skylake",
    caches=_SKYLAKE_CACHES,
    nodes=_SKYLAKE_NODES,
    ways=11,
    closids=16,
    shareable=0x600,
    paired=0x600,
    bandwidth=_MBA,
    rmids=144,
    model_name="Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz",
)

_SPR_CACHES, _SPR_NODES = _sockets(107520)
SPR20 = Scenario(
    name="spr20",
    caches=_SPR_CACHES,
    nodes=_SPR_NODES,
    ways=20,
    closids=15,
    shareable=0xC0001,
    bandwidth=replace(_MBA, closids=15, throttle=PER_THREAD),
    rmids=512,
    model_name="Intel(R) Xeon(R) Platinum 8480+",
)

_HASWELL_CACHES, _HASWELL_NODES = _sockets(30720)
HASWELL = Scenario(
    name="haswell",
    caches=_HASWELL_CACHES,
    nodes=_HASWELL_NODES,
    ways=20,
    closids=4,
    shareable=0xC0000,
    min_ways=2,
    cdp=False,
    rmids=48,
    events=("llc_occupancy",),
    model_name="Intel(R) Xeon(R) CPU E5-2658 v3 @ 2.20GHz",
)
"""cache_alloc_hsw_probe(), arch/x86/kernel/cpu/resctrl/core.c, has these numbers."""

_CCX = tuple(L3(id=(8 + index) if index > 7 else index, cpus=_cpus(index * 2, 2), size=16384) for index in range(16))
AMD = Scenario(
    name="amd",
    caches=_CCX,
    nodes={0: _cpus(0, 16), 1: _cpus(16, 16)},
    ways=16,
    closids=16,
    min_ways=0,
    sparse=True,
    bandwidth=Bandwidth(closids=16, minimum=0, granularity=1, maximum=2048, linear=False, throttle=""),
    rmids=256,
    vendor="AuthenticAMD",
    model_name="AMD EPYC 7452 32-Core Processor",
)
"""Sixteen caches, the second socket's numbered from 16 on, as after a gap in the APIC ids."""

WITH_L2 = replace(SPR20, name="l2", l2=L2(ways=16, closids=8, size=2048))
"""Here L2 has the fewest classes of service."""

CDP = replace(SKYLAKE, name="cdp", options="cdp")
NO_MBA = replace(SKYLAKE, name="no_mba", bandwidth=None)

SNC = replace(
    SPR20,
    name="snc",
    caches=tuple(L3(id=socket, cpus=_cpus(socket * 8, 8), size=107520) for socket in range(2)),
    nodes={node: _cpus(node * 4, 4) for node in range(4)},
    rmids=256,
)
"""Two NUMA nodes behind each L3."""

NO_L3 = replace(SKYLAKE, name="no_l3", ways=0, closids=0, shareable=0, paired=0, cdp=False, rmids=0, switched_off=True)
"""Skylake as it boots: unless told ``rdt=l3cat,cmt`` its kernel has neither L3 allocation nor monitoring (__check_quirks_intel())."""

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {scenario.name: scenario for scenario in (SKYLAKE, SPR20, HASWELL, AMD, WITH_L2, CDP, NO_MBA, SNC, NO_L3)},
)
