# SPDX-License-Identifier: Apache-2.0
"""The last-level caches of the machine, as sysfs tells of them, and the NUMA nodes of their CPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from deviceplugin import Host, Skipped, sysfs

_CPUS = "/sys/devices/system/cpu"
_NODES = "/sys/devices/system/node"
_FIELDS = ("id", "size", "ways_of_associativity", "shared_cpu_list")
_LEVEL = "3"
_MOST_CPUS = 1 << 16


class CpuCache(Struct, frozen=True):
    """One last-level cache. ``size`` is in bytes, 0 where sysfs does not say; ``ways`` likewise."""

    id: int
    size: int
    ways: int
    cpus: frozenset[int]
    numa_nodes: tuple[int, ...]


def probe(host: Host) -> Iterator[CpuCache | Skipped]:
    """Every unified cache of level 3, once, by id. What is there and makes no sense is Skipped, and so is a machine without one."""
    cpus = [int(name[3:]) for name in sysfs.entries(host, _CPUS) if re.fullmatch("cpu[0-9]{1,5}", name)]
    nodes = list(_nodes(host))
    found: dict[int, CpuCache] = {}
    seen: set[int] = set()
    skipped: list[Skipped] = []
    for cpu in cpus:  # a cache tells all its CPUs, so one of them is enough
        if cpu in seen:
            continue
        seen.add(cpu)
        for one in _of_cpu(host, cpu, nodes):
            if isinstance(one, Skipped):
                skipped.append(one)
                continue
            seen |= one.cpus
            found.setdefault(one.id, one)
    yield from (found[id_] for id_ in sorted(found))
    yield from skipped
    if not found and not skipped:
        yield Skipped(_CPUS, "has no cache of level 3: there is nothing to divide")


def cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list such as ``0-3,8``. Raises ValueError."""
    cpus: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) >= _MOST_CPUS:
            raise ValueError(f"{part[:40]!r} is not a CPU or a range of CPUs")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _of_cpu(host: Host, cpu: int, nodes: list[tuple[int, frozenset[int]]]) -> Iterator[CpuCache | Skipped]:
    above = f"{_CPUS}/cpu{cpu}/cache"
    places = [f"{above}/{name}" for name in sysfs.entries(host, above) if name.startswith("index")]
    read = sysfs.read_many(host, [f"{place}/{name}" for place in places for name in ("level", "type", *_FIELDS)])
    for number, place in enumerate(places):
        values = read[6 * number : 6 * number + 6]
        broken = next((value for value in values if isinstance(value, sysfs.SysfsError)), None)
        if broken is not None:
            yield Skipped(place, str(broken))
        elif values[:2] == [_LEVEL, "Unified"]:
            yield _cache(place, *(value if isinstance(value, str) else "" for value in values[2:]), nodes=nodes)


def _cache(place: str, id_: str, size: str, ways: str, cpus: str, *, nodes: list[tuple[int, frozenset[int]]]) -> CpuCache | Skipped:
    if not re.fullmatch("[0-9]{1,10}", id_):
        return Skipped(place, f"its id {id_[:40]!r} is not a number: without it resctrl's caches cannot be told apart")
    try:
        shared = cpu_list(cpus)
    except ValueError as error:
        return Skipped(place, f"shared_cpu_list: {error}")
    if not shared:
        return Skipped(place, "shared_cpu_list is empty")
    amount = re.fullmatch("([0-9]{1,9})([KM]?)", size)
    scale = {"": 1, "K": 1 << 10, "M": 1 << 20}
    return CpuCache(
        int(id_),
        int(amount[1]) * scale[amount[2]] if amount else 0,
        int(ways) if re.fullmatch("[0-9]{1,4}", ways) else 0,
        shared,
        tuple(node for node, its in nodes if its & shared),
    )


def _nodes(host: Host) -> Iterator[tuple[int, frozenset[int]]]:
    names = [name for name in sysfs.entries(host, _NODES) if re.fullmatch("node[0-9]{1,4}", name)]
    for name, text in zip(names, sysfs.read_many(host, [f"{_NODES}/{name}/cpulist" for name in names]), strict=True):
        try:
            yield int(name[4:]), cpu_list(text if isinstance(text, str) else "")
        except ValueError:  # locality is a hint: without it the slots are still there
            continue
