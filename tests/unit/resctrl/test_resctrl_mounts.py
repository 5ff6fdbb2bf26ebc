# SPDX-License-Identifier: Apache-2.0
"""Mounting, hotplug, and what else the machine shows: sysfs, /proc, and the formats of different kernels."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deviceplugin.testing import SimulatedHost, fuse
from deviceplugin.testing.inotify import Watch
from deviceplugin.testing.resctrl import (
    MOUNT_POINT,
    SCENARIOS,
    MountedTree,
    SimResctrl,
    furnish,
    last_status,
    schemata,
    set_values,
    snapshot,
    take,
    wipe,
)

SKYLAKE = SCENARIOS["skylake"]
FIXTURES = Path(__file__).parents[2] / "fixtures" / "resctrl"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fresh_machine_shows_what_is_written_down(name: str) -> None:
    written = yaml.safe_load((FIXTURES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert snapshot(SimResctrl(SCENARIOS[name])) == written


def test_old_kernels_write_columns() -> None:
    old = SimResctrl(replace(SCENARIOS["spr20"], kernel=(5, 14)))
    assert old.read("schemata") == b"    L3:0=fffff;1=fffff\n    MB:0=  100;1=  100\n"
    old.write("schemata", b"L3:0=f\n")
    assert old.read("schemata").startswith(b"    L3:0=0000f;")
    assert "sparse_masks" not in old.list("info/L3")
    code_and_data = SimResctrl(replace(SCENARIOS["cdp"], kernel=(5, 14)))
    assert code_and_data.read("schemata") == b"L3DATA:0=7ff;1=7ff\nL3CODE:0=7ff;1=7ff\n    MB:0=100;1=100\n"
    later = SimResctrl(replace(SCENARIOS["amd"], kernel=(6, 14)))
    assert later.read("schemata").startswith(b"    MB:0=2048;")
    assert b"    L3:0=ffff;" in later.read("schemata")


def test_umount_loses_everything_and_limits_nothing() -> None:
    sim = SimResctrl(SKYLAKE)
    set_values(sim, "", "L3", {0: 0x600})
    sim.mkdir("a")
    pid = sim.spawn()
    sim.write("a/tasks", f"{pid}\n".encode())
    sim.write("a/cpus_list", b"3\n")
    sim.umount()
    assert (sim.list(""), sim.mounted) == ([], False)
    for action, number in (
        (lambda: sim.read("schemata"), errno.ENOENT),
        (lambda: sim.mkdir("a"), errno.EPERM),
        (lambda: sim.umount(), errno.EINVAL),
    ):
        with pytest.raises(OSError, match=r"Errno") as raised:
            action()
        assert raised.value.errno == number
    sim.mount()
    assert schemata(sim)["L3"] == {0: 0x7FF, 1: 0x7FF}
    assert (sim.read("cpus_list"), str(pid).encode() in sim.read("tasks").split()) == (b"0-7\n", True)
    assert "a" not in sim.list("")


def test_it_is_mounted_once_and_only_as_the_machine_can() -> None:
    sim = SimResctrl(SKYLAKE)
    with pytest.raises(OSError, match="busy"):
        sim.mount()
    for name, options in (("haswell", "cdp"), ("amd", "mba_MBps"), ("no_mba", "mba_MBps"), ("skylake", "cdpl2"), ("skylake", "ro,cdp")):
        sim = SimResctrl(SCENARIOS[name], mounted=False)
        with pytest.raises(OSError, match="Invalid"):
            sim.mount(options)
        sim.mount()


def test_names_stay_aligned_whether_code_and_data_are_apart_or_not() -> None:
    sim = SimResctrl(SKYLAKE)
    plain = sim.read("schemata")
    sim.umount()
    sim.mount("cdp")
    assert (sim.options, sim.read("info/L3DATA/num_closids"), sim.read("info/MB/num_closids")) == (",cdp", b"8\n", b"8\n")
    assert {line.index(":") for line in (plain + sim.read("schemata")).decode().splitlines()} == {6}


def test_bandwidth_in_mbps_has_no_steps_and_is_not_all_or_nothing() -> None:
    sim = SimResctrl(SKYLAKE, mounted=False)
    sim.mount("mba_MBps,debug")
    sim.mkdir("a")
    assert schemata(sim, "a")["MB"] == {0: 4294967295, 1: 4294967295}
    with pytest.raises(OSError, match="Invalid"):
        sim.write("a/schemata", b"MB:0=1234\nL3:0=0\n")
    assert (schemata(sim, "a")["MB"][0], last_status(sim)) == (1234, "Mask out of range")
    sim.write("a/mba_MBps_event", b"mbm_total_bytes\n")
    assert sim.read("a/mba_MBps_event") == b"mbm_total_bytes\n"
    with pytest.raises(OSError, match="Invalid"):
        sim.write("a/mba_MBps_event", b"llc_occupancy\n")
    assert last_status(sim) == "Unsupported event id 'llc_occupancy'"
    assert (sim.read("a/ctrl_hw_id"), sim.read("a/mon_hw_id")) == (b"1\n", b"1\n")


def test_a_domain_goes_with_its_last_cpu_and_comes_back_without_limits() -> None:
    sim = SimResctrl(SKYLAKE)
    set_values(sim, "", "L3", {0: 0x600, 1: 0x600})
    sim.mkdir("a")
    set_values(sim, "a", "L3", {0: 0x0F, 1: 0x0F})
    set_values(sim, "a", "MB", {0: 50, 1: 50})
    sim.write("a/cpus_list", b"0,4\n")
    sim.offline(0, 1, 2)
    assert (schemata(sim, "a")["L3"][0], sim.read("a/cpus_list")) == (0x0F, b"4\n")
    sim.offline(3)
    assert schemata(sim, "a") == {"MB": {1: 50}, "L3": {1: 0x0F}}
    assert sim.list("a/mon_data") == ["mon_L3_01"]
    with pytest.raises(OSError, match="Invalid"):
        sim.write("a/schemata", b"L3:0=f\n")
    assert last_status(sim) == "ok"
    with pytest.raises(OSError, match="Invalid"):
        sim.write("a/cpus_list", b"0\n")
    assert last_status(sim) == "Can only assign online CPUs"
    sim.bring_online(0, 1, 2, 3)
    for group in ("", "a"):
        assert schemata(sim, group)["L3"] == {0: 0x7FF, 1: 0x600 if not group else 0x0F}
    assert list(schemata(sim, "a")["MB"].items()) == [(0, 100), (1, 50)]
    assert sim.read("cpus_list") == b"0-3,5-7\n"


def test_second_level_caches_go_with_their_cpu() -> None:
    sim = SimResctrl(SCENARIOS["l2"])
    sim.mkdir("a")
    set_values(sim, "a", "L2", {5: 0x3})
    sim.offline(5)
    assert list(schemata(sim, "a")["L2"]) == [0, 1, 2, 3, 4, 6, 7]
    sim.bring_online(5)
    assert (schemata(sim, "a")["L2"][5], sim.effective("a", 1)) == (0xFFFF, 0xFFFFF)
    sim.umount()
    with pytest.raises(OSError, match="Invalid"):
        sim.mount("cdpl2")


def test_the_machine_around_it_follows(tmp_path: Path) -> None:
    host = SimulatedHost(tmp_path)
    sim = furnish(host, SCENARIOS["snc"])
    l3 = "/sys/devices/system/cpu/cpu9/cache/index3"
    facts = [host.read(f"{l3}/{name}").strip() for name in ("level", "type", "id", "size", "ways_of_associativity", "shared_cpu_list")]
    assert facts == ["3", "Unified", "1", "107520K", "20", "8-15"]
    assert [host.read(f"/sys/devices/system/node/node{node}/cpulist") for node in range(4)] == ["0-3\n", "4-7\n", "8-11\n", "12-15\n"]
    assert "- resctrl resctrl rw\n" in host.read("/proc/1/mountinfo")
    assert "cat_l3 cdp_l3 mba" in host.read("/proc/cpuinfo")
    sim.offline(*range(9, 16))
    assert host.read("/sys/devices/system/cpu/online") == "0-8\n"
    assert host.read("/sys/devices/system/cpu/cpu8/cache/index3/shared_cpu_list") == "8\n"
    assert not Path(host.path(l3)).exists()
    assert [host.read(f"/sys/devices/system/node/node{node}/cpulist") for node in (2, 3)] == ["8\n", "\n"]
    sim.umount()
    assert "resctrl" not in host.read("/proc/self/mountinfo")
    sim.mount("cdp")
    assert host.read("/proc/self/mountinfo").endswith(f"/ {MOUNT_POINT} rw,relatime shared:21 - resctrl resctrl rw,cdp\n")


def test_haswell_has_no_flag_for_what_it_can(tmp_path: Path) -> None:
    host = SimulatedHost(tmp_path)
    sim = furnish(host, SCENARIOS["haswell"], mounted=False)
    assert "rdt_a" not in host.read("/proc/cpuinfo")
    assert not sim.mounted


def test_what_the_kernel_does_not_use_has_its_flag(tmp_path: Path) -> None:
    host = SimulatedHost(tmp_path)
    sim = furnish(host, SCENARIOS["no_l3"])
    assert {"cat_l3", "cqm_occup_llc", "mba"} <= set(host.read("/proc/cpuinfo").split())
    assert "L3" not in sim.list("info")


def test_a_snapshot_makes_a_tree_of_plain_files(tmp_path: Path) -> None:
    host = SimulatedHost(tmp_path)
    for path, text in snapshot(SimResctrl(SCENARIOS["cdp"])).items():
        host.write(path, text)
    assert host.read(f"{MOUNT_POINT}/info/L3DATA/cbm_mask") == "7ff\n"


def test_what_others_do_on_a_mount_raises_the_kernel_s_events() -> None:
    if lack := fuse.missing():
        pytest.skip(lack)
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("mine")
    watch = Watch()
    try:
        with fuse.serve(sim) as directory:
            watch.add(directory)
            take(MountedTree(directory), "theirs", {0: 0x3})
            assert wipe(MountedTree(directory), keep=["theirs"]) == ["mine"]
            assert [(Path(change.path).name, change.created) for change in watch.read()] == [("theirs", True), ("mine", False)]
        assert sim.list("theirs")
    finally:
        watch.close()
