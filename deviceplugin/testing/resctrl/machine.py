# SPDX-License-Identifier: Apache-2.0
"""What else a machine with resctrl shows of itself: CPUs, caches and NUMA nodes in sysfs, flags in /proc/cpuinfo, and the mount."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

from deviceplugin.testing.host import SimulatedHost
from deviceplugin.testing.resctrl.parsing import show_cpu_list, show_cpu_mask
from deviceplugin.testing.resctrl.scenarios import Scenario
from deviceplugin.testing.resctrl.simulator import SimResctrl
from deviceplugin.testing.resctrl.tree import Tree

MOUNT_POINT = "/sys/fs/resctrl"
_CPU = "/sys/devices/system/cpu"
_NODE = "/sys/devices/system/node"
_PRIVATE = (("1", "Data", "48K", 12), ("1", "Instruction", "32K", 8), ("2", "Unified", "2048K", 16))
"""A core's own caches: level, type, size, associativity."""


def furnish(
    host: SimulatedHost,
    scenario: Scenario,
    *,
    mounted: bool = True,
    clock: Callable[[], float] = time.monotonic,
    real: bool = False,
) -> SimResctrl:
    """Makes the host a machine of this kind and returns its resctrl, with the options of :class:`SimResctrl`.

    What sysfs and /proc say follows each hotplug and mount. The mount point is an empty directory: serve the simulator there, or talk to it directly.
    """
    sim = SimResctrl(scenario, mounted=mounted, clock=clock, real=real)
    os.makedirs(host.path(MOUNT_POINT), exist_ok=True)
    _write_once(host, scenario)
    _write(host, sim)
    sim.on_change(lambda: _write(host, sim))
    return sim


def snapshot(tree: Tree, path: str = "") -> dict[str, str]:
    """Every file of a tree and its text, by its path below :data:`MOUNT_POINT`: for :meth:`SimulatedHost.populate`, or to compare."""
    found: dict[str, str] = {}
    for name in sorted(tree.list(path)):
        below = f"{path}/{name}".lstrip("/")
        try:
            found[f"{MOUNT_POINT}/{below}"] = tree.read(below).decode()
        except IsADirectoryError:
            found |= snapshot(tree, below)
    return found


def _write_once(host: SimulatedHost, scenario: Scenario) -> None:
    every = show_cpu_list(scenario.cpus) + "\n"
    nodes = show_cpu_list(scenario.nodes) + "\n"
    for name in ("possible", "present"):
        host.write(f"{_CPU}/{name}", every)
    for name in ("possible", "online", "has_cpu", "has_memory"):
        host.write(f"{_NODE}/{name}", nodes)
    host.write("/proc/filesystems", "nodev\tsysfs\nnodev\tproc\nnodev\tresctrl\n\text4\n")


def _write(host: SimulatedHost, sim: SimResctrl) -> None:
    scenario, online = sim.scenario, sim.online
    host.write(f"{_CPU}/online", show_cpu_list(online) + "\n")
    host.write(f"{_CPU}/offline", show_cpu_list(set(scenario.cpus) - online) + "\n")
    for node, cpus in scenario.nodes.items():
        left = online.intersection(cpus)
        host.write(f"{_NODE}/node{node}/cpulist", show_cpu_list(left) + "\n")
        host.write(f"{_NODE}/node{node}/cpumap", show_cpu_mask(left, len(scenario.cpus)) + "\n")
    for package, cache in enumerate(scenario.caches):
        for cpu in cache.cpus:
            if cpu != 0:  # the boot CPU has no such file
                host.write(f"{_CPU}/cpu{cpu}/online", f"{int(cpu in online)}\n")
            if cpu in online:
                host.link(f"{_CPU}/cpu{cpu}/node{scenario.node_of(cpu)}", f"{_NODE}/node{scenario.node_of(cpu)}")
                host.write(f"{_CPU}/cpu{cpu}/topology/physical_package_id", f"{package}\n")
                _write_caches(host, scenario, cpu, sorted(online.intersection(cache.cpus)), cache.id, f"{cache.size}K")
            else:
                for gone in ("cache", "topology"):
                    shutil.rmtree(host.path(f"{_CPU}/cpu{cpu}/{gone}"), ignore_errors=True)
    host.write("/proc/cpuinfo", "\n".join(_cpuinfo(scenario, cpu) for cpu in sorted(online)))
    mounts = _mountinfo(sim)
    for process in ("1", "self"):
        host.write(f"/proc/{process}/mountinfo", mounts)


def _write_caches(host: SimulatedHost, scenario: Scenario, cpu: int, sharing: list[int], id_: int, size: str) -> None:
    last = ("3", "Unified", size, scenario.ways or 11)
    for index, (level, kind, amount, ways) in enumerate((*_PRIVATE, last)):
        shared = sharing if level == "3" else [cpu]
        attributes = {
            "level": level,
            "type": kind,
            "id": str(id_ if level == "3" else cpu),
            "size": amount,
            "ways_of_associativity": str(ways),
            "coherency_line_size": "64",
            "shared_cpu_list": show_cpu_list(shared),
            "shared_cpu_map": show_cpu_mask(shared, len(scenario.cpus)),
        }
        for name, value in attributes.items():
            host.write(f"{_CPU}/cpu{cpu}/cache/index{index}/{name}", value + "\n")


def _cpuinfo(scenario: Scenario, cpu: int) -> str:
    return f"processor\t: {cpu}\nvendor_id\t: {scenario.vendor}\nmodel name\t: {scenario.model_name}\nflags\t\t: {' '.join(_flags(scenario))}\n"


def _flags(scenario: Scenario) -> list[str]:
    """arch/x86/include/asm/cpufeatures.h. Haswell's allocation has no flag: the kernel tries it out (cache_alloc_hsw_probe())."""
    events = {"llc_occupancy": "cqm_occup_llc", "mbm_total_bytes": "cqm_mbm_total", "mbm_local_bytes": "cqm_mbm_local"}
    flags = ["fpu", "vme", "sse2"]
    if scenario.rmids or scenario.switched_off:
        flags += ["cqm", "cqm_llc", *(events[event] for event in scenario.events)]
    if scenario.cdp or scenario.bandwidth:
        there = {
            "rdt_a": True,
            "cat_l3": scenario.ways or scenario.switched_off,
            "cat_l2": scenario.l2,
            "cdp_l3": scenario.cdp or scenario.switched_off,
            "mba": scenario.bandwidth,
        }
        flags += [flag for flag, is_there in there.items() if is_there]
    return flags


def _mountinfo(sim: SimResctrl) -> str:
    lines = [
        "22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw",
        "23 28 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw",
    ]
    if sim.mounted:
        lines.append(f"41 23 0:38 / {MOUNT_POINT} rw,relatime shared:21 - resctrl resctrl rw{sim.options}")
    return "\n".join(lines) + "\n"
