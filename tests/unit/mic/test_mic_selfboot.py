# SPDX-License-Identifier: Apache-2.0
"""A host that is a Xeon Phi: what Linux can tell of its modes, and that the rest is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import Enforcement, Host
from deviceplugin.plugins.mic import selfboot
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.mic import self_boot
from tests.unit.mic.conftest import Make

CLUSTERS = {1: "uma", 2: "snc-2", 4: "snc-4"}
MEMORY = {0.0: "cache", 16.0: "flat", 15.75: "flat", 12.0: "hybrid-25", 8.0: "hybrid-50", 7.8: "hybrid-50"}


def look(host: Host) -> selfboot.Processor:
    name = selfboot.model(host)
    assert name
    return selfboot.look(host, name)


@pytest.mark.parametrize("clusters", CLUSTERS)
@pytest.mark.parametrize("gib", MEMORY)
def test_every_mode(tmp_path: Path, clusters: int, gib: float) -> None:
    machine = SimulatedHost(tmp_path)
    self_boot(machine, clusters=clusters, mcdram_gib=gib)
    found = look(Host(machine.root))
    assert (found.model, found.memory_mode, found.cluster_mode, found.why) == ("knights-landing", MEMORY[gib], CLUSTERS[clusters], "")
    assert found.nodes == (tuple(range(clusters, 2 * clusters)) if gib else ())
    assert abs(found.mcdram - gib * (1 << 30)) < 1 << 20


def test_the_fixture(make: Make) -> None:
    found = look(make(fixture="knl-snc4-flat").host)
    assert found == selfboot.Processor("knights-landing", "flat", "snc-4", (3 * 4128768 + 4127744) << 10, (4, 5, 6, 7))


@pytest.mark.parametrize(
    "text",
    ["", "vendor_id : AuthenticAMD\ncpu family : 6\nmodel : 87\n", "vendor_id : GenuineIntel\ncpu family : 6\nmodel : 85\n",
     "vendor_id : GenuineIntel\ncpu family : 11\nmodel : 1\n", "model : 87\n", "\x00\xff", "processor : 0\n\nvendor_id : GenuineIntel\n"],
)  # fmt: skip
def test_other_hosts_are_none(tmp_path: Path, text: str) -> None:
    machine = SimulatedHost(tmp_path)
    machine.write("/proc/cpuinfo", text)
    assert selfboot.model(Host(machine.root)) == ""


def test_no_cpuinfo_is_asked_for_again(make: Make) -> None:
    rig = make("kernel")
    assert rig.skipped() == {}
    self_boot(rig.machine)
    assert "memory flat, mesh uma" in rig.skipped()["host"]


def test_knights_mill(make: Make) -> None:
    rig = make("kernel")
    self_boot(rig.machine, model=133)
    assert rig.skipped() == {"host": "is a Xeon Phi (knights-mill), memory flat, mesh uma"}
    assert rig.devices() == []


@pytest.mark.parametrize("word", ["numa=off", "numa=fake=4", "mem=64G", "memmap=4G!12G", "maxcpus=4", "nr_cpus=8"])
def test_a_kernel_that_was_told_otherwise_is_not_believed(tmp_path: Path, word: str) -> None:
    machine = SimulatedHost(tmp_path)
    self_boot(machine, cmdline=f"ro {word} quiet")
    found = look(Host(machine.root))
    assert (found.memory_mode, found.cluster_mode) == ("unknown", "unknown")
    assert word in found.why


def test_what_does_not_fit_is_unknown(tmp_path: Path) -> None:
    def why(**layout: object) -> str:
        machine = SimulatedHost(tmp_path / str(len(list(tmp_path.iterdir()))))
        self_boot(machine, **layout)  # type: ignore[arg-type]
        found = look(Host(machine.root))
        assert found.memory_mode == "unknown"
        return found.why

    assert why(mcdram_gib=10.0).startswith("10.0 GiB of MCDRAM are memory")
    assert why(mcdram_gib=16.5).startswith("16.5 GiB")
    assert why(clusters=3).startswith("3 NUMA nodes have processors")
    assert why(clusters=8, mcdram_gib=0.0).startswith("8 NUMA nodes")


def test_a_cluster_whose_processors_are_offline_is_not_taken_for_mcdram(tmp_path: Path) -> None:
    machine = SimulatedHost(tmp_path)
    self_boot(machine, clusters=2, mcdram_gib=0.0)
    machine.write("/sys/devices/system/node/node1/cpulist", "\n")
    found = look(Host(machine.root))
    assert (found.memory_mode, found.cluster_mode) == ("unknown", "unknown")
    assert "are processors offline?" in found.why


JUNK = [None, "", "\x00", "junk" * 500_000, "Node 9 MemTotal: 1 kB\n", "-1 -1\n"]


@pytest.mark.parametrize(("file", "text"), [("cpulist", None), ("cpulist", ""), *((file, text) for file in ("meminfo", "distance") for text in JUNK)])
def test_broken_nodes_are_unknown_and_nothing_worse(tmp_path: Path, file: str, text: str | None) -> None:
    machine = SimulatedHost(tmp_path)
    self_boot(machine, clusters=2)
    path = f"/sys/devices/system/node/node1/{file}"
    machine.remove(path)
    if text is not None:
        machine.write(path, text)
    found = look(Host(machine.root))
    assert (found.memory_mode, found.cluster_mode) == ("unknown", "unknown")
    assert found.why


def test_the_host_is_a_device_only_where_that_is_wanted(make: Make) -> None:
    rig = make("kernel", hostResource="intel.com/xeon-phi")
    assert rig.devices() == []
    self_boot(rig.machine, clusters=2, mcdram_gib=8)
    (host,) = rig.devices()
    assert host.resource == "intel.com/xeon-phi"
    assert host.enforcement is Enforcement.NONE
    assert host.attributes == {"model": "knights-landing", "memory_mode": "hybrid-50", "cluster_mode": "snc-2"}
    assert dict(rig.plugin.allocate([host]).envs) == {"XEON_PHI_MCDRAM_NODES": "2,3"}
    rig.plugin.prepare([host])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 40), st.lists(st.integers(0, 255), max_size=9).map(tuple)), max_size=9),
)
def test_no_set_of_nodes_is_too_strange(nodes: list[tuple[bool, int, tuple[int, ...]]]) -> None:
    found = selfboot.infer("knights-landing", [selfboot._Node(n, *node) for n, node in enumerate(nodes)])
    assert found.memory_mode in {"flat", "cache", "hybrid-25", "hybrid-50", "unknown"}
    assert bool(found.why) == ("unknown" in (found.memory_mode, found.cluster_mode))
