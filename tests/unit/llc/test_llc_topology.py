# SPDX-License-Identifier: Apache-2.0
"""Caches are found as sysfs has them, whatever their index, and what makes no sense is named."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import Host, Skipped, sysfs
from deviceplugin.plugins.llc.topology import CpuCache, cpu_list, probe
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.resctrl import SCENARIOS, furnish

INDEX = "/sys/devices/system/cpu/cpu0/cache/index3"


@pytest.fixture
def machine(tmp_path: Path) -> SimulatedHost:
    host = SimulatedHost(tmp_path)
    furnish(host, SCENARIOS["skylake"])
    return host


def caches(host: SimulatedHost) -> list[CpuCache | Skipped]:
    return list(probe(Host(host.root)))


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_machines(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    host = SimulatedHost(tmp_path)
    furnish(host, scenario)
    assert caches(host) == [
        CpuCache(
            cache.id,
            cache.size << 10,
            scenario.ways or 11,
            frozenset(cache.cpus),
            tuple(node for node, cpus in scenario.nodes.items() if set(cpus) & set(cache.cpus)),
        )
        for cache in sorted(scenario.caches, key=lambda cache: cache.id)
    ]


def test_cpus_of_two_kinds_have_their_cache_at_different_places(machine: SimulatedHost) -> None:
    for name, value in {"level": "3", "type": "Unified", "id": "9", "size": "1M", "ways_of_associativity": "8", "shared_cpu_list": "0-3"}.items():
        machine.write(f"/sys/devices/system/cpu/cpu0/cache/index2/{name}", value)
        machine.write(f"{INDEX}/level", "4")
    first, *_ = caches(machine)
    assert [one.id for one in caches(machine) if isinstance(one, CpuCache)] == [1, 9]
    assert isinstance(first, CpuCache)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("id", "", "its id '' is not a number"),
        ("id", "-1", "its id '-1' is not a number"),
        ("id", "7" * (1 << 20), "is not a number"),
        ("shared_cpu_list", "", "shared_cpu_list is empty"),
        ("shared_cpu_list", "0-", "shared_cpu_list: '0-' is not a CPU or a range of CPUs"),
        ("shared_cpu_list", "0-99999999", "is not a CPU or a range"),
        ("shared_cpu_list", "\0\0\0x", "is not a CPU or a range"),
    ],
)
def test_cache_that_makes_no_sense_is_skipped_and_its_siblings_stay(machine: SimulatedHost, name: str, content: str, reason: str) -> None:
    for cpu in range(4):
        machine.write(f"{INDEX.replace('cpu0', f'cpu{cpu}')}/{name}", content)
    found = caches(machine)
    assert [one.id for one in found if isinstance(one, CpuCache)] == [1]
    assert any(isinstance(one, Skipped) and reason in one.reason for one in found)


@pytest.mark.parametrize("name", ["size", "ways_of_associativity"])
@pytest.mark.parametrize("content", ["", "garbage", "-1", "9" * (1 << 20), "1G"])
def test_size_that_is_not_told_is_zero(machine: SimulatedHost, name: str, content: str) -> None:
    machine.write(f"{INDEX}/{name}", content)
    first, _ = caches(machine)
    assert isinstance(first, CpuCache)
    assert 0 in (first.size, first.ways)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EBUSY])
def test_files_that_cannot_be_read(machine: SimulatedHost, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sysfs.read_many

    def failing(host: Host, paths: list[str]) -> list[str | sysfs.SysfsError | None]:
        bad = f"{INDEX}/type"
        return [sysfs.SysfsError(path, "Input/output error") if path == bad else text for path, text in zip(paths, real(host, paths), strict=True)]

    monkeypatch.setattr(sysfs, "read_many", failing)
    found = caches(machine)
    assert sorted(one.id for one in found if isinstance(one, CpuCache)) == [0, 1]  # another CPU of it told
    assert any(isinstance(one, Skipped) and f"{INDEX}/type cannot be read" in one.reason for one in found)


def test_machine_without_caches(tmp_path: Path) -> None:
    (only,) = caches(SimulatedHost(tmp_path))
    assert only == Skipped("/sys/devices/system/cpu", "has no cache of level 3: there is nothing to divide")


@pytest.mark.parametrize("content", ["", "garbage", "9" * (1 << 20)])
def test_nodes_that_make_no_sense_cost_only_locality(machine: SimulatedHost, content: str) -> None:
    machine.write("/sys/devices/system/node/node0/cpulist", content)
    first, second = caches(machine)
    assert isinstance(first, CpuCache)
    assert isinstance(second, CpuCache)
    assert (first.numa_nodes, second.numa_nodes) == ((), (1,))


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cpus(cpus: set[int]) -> None:
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and spans[-1][1] == cpu - 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    assert cpu_list(",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans)) == cpus


@pytest.mark.parametrize("text", ["-", ",", "1,", "a", "1-b", "-1", "65536", "1--2", "²"])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a CPU or a range of CPUs"):
        cpu_list(text)
