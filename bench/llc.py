# SPDX-License-Identifier: Apache-2.0
"""Cache slots: the search for slots and ways beside its oracle, the decision that an admission waits for, and the look at a machine with 16 caches.

The machine is a tree of plain files, which take about as long to open as sysfs's do; resctrl is simulated in this process. A cache says which CPUs it
has, so the look reads the files of one CPU for each; the last row shows what that spares.
"""

from __future__ import annotations

import heapq
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from bench.report import table
from deviceplugin import Host, sysfs
from deviceplugin._native import llc
from deviceplugin.plugins.llc import naming, topology
from deviceplugin.plugins.llc.layout import divide
from deviceplugin.plugins.llc.placing import Group, Places, Rules, admit
from deviceplugin.testing.resctrl.scenarios import L3, Scenario
from tests.helpers.llc import Node, look
from tests.oracles import llc as oracle

CACHES = 16
CPUS = 8
WAYS = 20
ROUNDS = 2000
ADMISSIONS = 20_000

MACHINE = Scenario(
    name="16 caches",
    caches=tuple(L3(id=i, cpus=tuple(range(CPUS * i, CPUS * (i + 1))), size=32768) for i in range(CACHES)),
    nodes={node: tuple(range(CPUS * 8 * node, CPUS * 8 * (node + 1))) for node in range(2)},
    ways=WAYS,
    closids=16,
    rmids=64,
)


def three(figures: list[float]) -> list[str]:
    figures = sorted(figures)
    return [f"{figures[len(figures) // 2]:.1f}", f"{figures[len(figures) * 99 // 100]:.1f}", f"{figures[-1]:.1f}"]


def microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def bits(mask: int) -> frozenset[int]:
    return frozenset(n for n in range(32) if mask >> n & 1)


def places() -> list[tuple[int, list[int], int]]:
    """Caches of 20 ways in use, and how many ways are wanted."""
    chance = random.Random(1)
    found: list[tuple[int, list[int], int]] = []
    while len(found) < ROUNDS:
        live, at = [], 0
        while at < WAYS:
            size = chance.randint(1, 5)
            if chance.random() < 0.6 and at + size <= WAYS:
                live.append((1 << size) - 1 << at)
            at += size
        free = WAYS - sum(mask.bit_count() for mask in live)
        if free:
            found.append(((1 << WAYS) - 1, live, chance.randint(1, free)))
    return found


def search() -> Iterator[list[object]]:
    fast, slow = [], []
    for pool, live, want in places():
        fixed = [False] * len(live)
        fast.append(microseconds(lambda: llc.place(pool, live, fixed, want, 0, True, False)))  # noqa: B023
        sets = [bits(mask) for mask in live]
        slow.append(microseconds(lambda: oracle.place(bits(pool), sets, fixed, want, frozenset(), True, False)))  # noqa: B023
        native, twin = llc.place(pool, live, fixed, want, 0, True, False), oracle.place(bits(pool), sets, fixed, want, frozenset(), True, False)
        if native is None or twin is None or (bits(native[0]), [bits(mask) for mask in native[1]]) != twin:
            raise SystemExit("place: the two do not agree")
    yield ["a place among 20 ways, others may move", *three(fast), *three(slow), f"{statistics.median(slow) / statistics.median(fast):.0f}"]
    chance = random.Random(2)
    ids = [[naming.device_id(cache, n) for n in range(WAYS)] for cache in range(CACHES)]
    slots = llc.Slots(ids)
    fast, slow = [], []
    for _ in range(ROUNDS // 4):
        free = [[n for n in range(WAYS) if chance.random() < 0.4] for _ in range(CACHES)]
        available = [ids[cache][n] for cache in range(CACHES) for n in free[cache]]
        size = chance.randint(1, 6)
        room = [chance.randint(0, 8) for _ in range(CACHES)]
        fast.append(microseconds(lambda: slots.choose(available, [], size, room)))  # noqa: B023
        question = [(frozenset(free[cache]), frozenset[int](), room[cache]) for cache in range(CACHES)]
        slow.append(microseconds(lambda: oracle.prefer(question, size)))  # noqa: B023
        wanted = [ids[cache][n] for cache, members in enumerate(oracle.prefer(question, size)) for n in sorted(members)]
        if slots.choose(available, [], size, room) != wanted:
            raise SystemExit("prefer: the two do not agree")
    yield ["slots of 16 caches of 20", *three(fast), *three(slow), f"{statistics.median(slow) / statistics.median(fast):.0f}"]


def decisions() -> Iterator[list[object]]:
    """prefer() and the decision of allocate() as the framework calls them, without the CDI file."""
    with tempfile.TemporaryDirectory() as root:
        node = Node(root, MACHINE)
        plugin = node.plugin()
        devices = look(plugin)
        chance = random.Random(3)
        running: list[list[str]] = []
        prefer, reserve, both = [], [], []
        for _ in range(ROUNDS):
            while len(running) > 12:
                plugin._control._groups = {  # the container has ended, and its group was collected
                    key: group for key, group in plugin._control._groups.items() if key != naming.key_of(naming.slots_of(running[0]))
                }
                running.pop(0)
            taken = {id_ for ids in running for id_ in ids}
            free = [device for id_, device in devices.items() if id_ not in taken]
            start = time.perf_counter_ns()
            chosen = plugin.prefer(free, [], chance.randint(1, 6)) or []
            between = time.perf_counter_ns()
            plugin._control.reserve(naming.slots_of(device.id for device in chosen))
            end = time.perf_counter_ns()
            prefer.append((between - start) / 1e3)
            reserve.append((end - between) / 1e3)
            both.append((end - start) / 1e3)
            running.append([device.id for device in chosen])
        for what, figures in (("which slots", prefer), ("which ways", reserve), ("both", both)):
            yield [what, len(devices), *three(figures)]


def naive(host: Host) -> dict[str, list[str]]:
    """The look in plain Python: every attribute of every cache of every CPU."""
    found = {}
    top = Path(host.path("/sys/devices/system/cpu"))
    for cpu in sorted(top.glob("cpu[0-9]*")):
        for index in sorted(cpu.glob("cache/index*")):
            values = [
                (index / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "id", "size", "ways_of_associativity", "shared_cpu_list")
            ]
            if values[:2] == ["3", "Unified"]:
                found[values[2]] = values[3:]
    return found


def plain_read(host: Host, paths: Sequence[str]) -> list[str | sysfs.SysfsError | None]:
    """sysfs.read_many() in plain Python, one after the other."""
    found: list[str | sysfs.SysfsError | None] = []
    for path in paths:
        try:
            with open(host.path(path), encoding="utf-8", errors="replace") as file:
                found.append(file.read(sysfs.MAX_BYTES).rstrip())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            found.append(None)
        except OSError as error:
            found.append(sysfs.SysfsError(path, error.strerror or str(error)))
    return found


def plain_entries(host: Host, path: str) -> list[str]:
    return sorted(os.listdir(host.path(path)))


def plainly(host: Host) -> list[object]:
    with mock.patch.multiple(sysfs, read_many=plain_read, entries=plain_entries):
        return list(topology.probe(host))


def looks() -> Iterator[list[object]]:
    with tempfile.TemporaryDirectory() as root:
        node = Node(root, MACHINE)
        host = Host(root)
        if len(naive(host)) != CACHES or len(list(topology.probe(host))) != CACHES or len(plainly(host)) != CACHES:
            raise SystemExit("the look does not find the 16 caches")
        plugin = node.plugin()
        for what, call in (
            ("the caches and their NUMA nodes", lambda: list(topology.probe(host))),
            ("the same in plain Python", lambda: plainly(host)),
            ("every CPU's files in plain Python", lambda: naive(host)),
            ("discover(): caches, resctrl, 288 devices", lambda: list(plugin.discover())),
        ):
            figures = [microseconds(call) / 1e3 for _ in range(51)]
            yield [what, *(f"{one:.2f}" for one in (statistics.median(figures), max(figures)))]


def relocations() -> Iterator[list[object]]:
    """Poisson arrivals, exponential lives, 1 to m slots each. An arrival for which no slots are free does not count: the kubelet would refuse it."""
    for ways, largest, load in (
        (7, 3, 0.6),
        (9, 4, 0.6),
        (9, 4, 0.9),
        (14, 4, 0.6),
        (14, 4, 0.9),
        (18, 4, 0.6),
        (18, 4, 0.9),
        (18, 4, 1.1),
        (18, 6, 0.9),
    ):
        chance = random.Random(ways + largest)
        of = Places([divide(0, (1 << ways + 2) - 1, shared_ways=2)])
        groups: dict[str, Group] = {}
        free = {naming.device_id(0, n) for n in range(ways)}
        ends: list[tuple[float, list[str]]] = []
        now = before = held = 0.0
        admitted = admissions = moved = 0
        while admitted < ADMISSIONS:
            now += chance.expovariate(load * ways / ((1 + largest) / 2))
            while ends and ends[0][0] <= now:
                at, ids = heapq.heappop(ends)
                held, before = held + (at - before) * (ways - len(free)), at
                free |= set(ids)
                del groups[naming.key_of(naming.slots_of(ids))]
            held, before = held + (now - before) * (ways - len(free)), now
            size = chance.randint(1, largest)
            if size > len(free):
                continue
            ids = of.prefer(groups, sorted(free), [], size) or []
            after = admit(of.caches, groups, naming.slots_of(ids), Rules())
            changed = sum(after[key].masks != group.masks for key, group in groups.items())
            admissions += changed > 0
            moved += changed
            groups = after
            free -= set(ids)
            heapq.heappush(ends, (now + chance.expovariate(1), ids))
            admitted += 1
        yield [ways, f"1-{largest}", f"{held / now / ways:.0%}", 0, f"{admissions / admitted:.1%}", f"{moved / max(1, admissions):.2f}"]


def report() -> str:
    return "\n".join(
        [
            table("The search, us", ["what", "p50", "p99", "max", "oracle p50", "p99", "max", "oracle / native"], list(search())),
            table(f"An admission on {CACHES} caches of {WAYS} ways, us", ["decision", "slots", "p50", "p99", "max"], list(decisions())),
            table(f"A look at {CACHES} caches, {CACHES * CPUS} CPUs, ms", ["what", "median", "max"], list(looks())),
            table(
                f"{ADMISSIONS:,} admissions: an admission that fails would end the benchmark",
                ["ways", "slots each", "held", "failed", "moved somebody", "groups moved then"],
                list(relocations()),
            ),
        ]
    )


if __name__ == "__main__":
    print(report())
