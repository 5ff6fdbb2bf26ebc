# SPDX-License-Identifier: Apache-2.0
"""What is advertised, on the machines that there are and on broken ones."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from deviceplugin import Enforcement, Health, Sharing
from deviceplugin.plugins.llc.resctrl import ResctrlError
from deviceplugin.testing.resctrl import schemata
from tests.helpers.llc import RESOURCE, Node, allocation, look, masks, picked, skipped

Make = Callable[..., Node]


@pytest.mark.parametrize(
    ("scenario", "slots", "ways", "shared"),
    [
        ("skylake", 14, 1, 0x780),
        ("spr20", 28, 1, 0xF8000),
        ("haswell", 16, 2, 0xF0000),
        ("amd", 224, 1, 0xC000),
        ("no_mba", 14, 1, 0x780),
        ("snc", 28, 1, 0xF8000),
    ],
)
@pytest.mark.parametrize("mode", ["reserve", "limit"])
def test_slots_and_the_root_group(node: Make, scenario: str, slots: int, ways: int, shared: int, mode: str) -> None:
    n = node(scenario, mode=mode)
    before = masks(n.sim)
    devices = look(n.plugin())
    assert len(devices) == slots
    assert all(one.health is Health.HEALTHY and one.enforcement is Enforcement.HARD for one in devices.values())
    assert {one.capacity["ways"] for one in devices.values()} == {ways}
    assert masks(n.sim) == (dict.fromkeys(before, shared) if mode == "reserve" else before)
    assert n.groups == []


def test_code_and_data_are_divided_alike(node: Make) -> None:
    n = node("cdp", mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00", "l3.0.01"))
    assert set(schemata(n.sim)) == {"L3CODE", "L3DATA", "MB"}
    assert masks(n.sim) == {0: 0x780, 1: 0x780}
    assert masks(n.sim, "kdp-llc.d0x3") == {0: 0x3, 1: 0x780}


def test_slots_know_their_numa_nodes_and_their_size(node: Make) -> None:
    snc = look(node("snc").plugin())
    assert snc["l3.0.00"].numa_nodes == (0, 1)
    assert snc["l3.1.00"].numa_nodes == (2, 3)
    assert snc["l3.1.00"].capacity == {"ways": 1, "bytes": (107520 << 10) // 20}
    assert snc["l3.1.00"].attributes == {"cache": 1, "mode": "limit"}
    assert {one.numa_nodes for one in look(node("amd").plugin()).values()} == {(0,), (1,)}


def test_cache_without_a_place_in_sysfs_has_slots_all_the_same(node: Make) -> None:
    n = node()
    for cpu in range(4, 8):
        n.host.write(f"/sys/devices/system/cpu/cpu{cpu}/cache/index3/id", "")
    plugin = n.plugin()
    devices = look(plugin)
    assert len(devices) == 14
    assert devices["l3.1.00"].numa_nodes == ()
    assert devices["l3.1.00"].capacity == {"ways": 1}
    assert "its id '' is not a number" in skipped(plugin)["/sys/devices/system/cpu/cpu4/cache/index3"]


def test_without_resctrl_there_is_nothing_and_a_hint(node: Make) -> None:
    n = node()
    n.sim.umount()
    plugin = n.plugin()
    assert look(plugin) == {}
    assert "mount -t resctrl resctrl /sys/fs/resctrl" in skipped(plugin)["/sys/fs/resctrl"]
    n.sim.mount()
    assert len(look(plugin)) == 14


def test_cpu_without_cache_allocation_says_so(node: Make) -> None:
    plugin = node("no_l3").plugin()
    assert look(plugin) == {}
    assert "has no L3, but MB: this CPU or kernel cannot divide" in skipped(plugin)["/sys/fs/resctrl"]


def test_resctrl_that_only_we_see_is_of_no_use(node: Make) -> None:
    n = node()
    n.host.write("/proc/self/mountinfo", "30 25 0:27 / /sys/fs/resctrl rw,relatime shared:9 - resctrl resctrl rw\n")
    n.host.write("/proc/1/mountinfo", "20 25 0:5 / /sys rw - sysfs sysfs rw\n")
    assert {one.cause.partition(":")[0] for one in look(n.plugin()).values()} == {"unmounted"}
    n.host.write("/proc/1/mountinfo", "30 25 0:27 / /sys/fs/resctrl rw,relatime shared:9 - resctrl resctrl rw\n")
    assert {one.health for one in look(n.plugin()).values()} == {Health.HEALTHY}


def test_unmounted_while_in_use(node: Make) -> None:
    n = node(mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00"))
    n.sim.umount()
    assert {(one.health, one.cause.partition(":")[0]) for one in look(plugin).values()} == {(Health.UNHEALTHY, "unmounted")}
    with pytest.raises(ResctrlError, match="cannot be made"):
        plugin.prepare(picked(devices, "l3.0.01"))
    n.sim.mount()
    assert {one.health for one in look(plugin).values()} == {Health.HEALTHY}
    assert n.groups == ["kdp-llc.d0x1"]
    assert masks(n.sim) == {0: 0x780, 1: 0x780}


def test_mounted_again_with_other_options(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    plugin.prepare(picked(look(plugin), "l3.0.00"))
    n.sim.umount()
    n.sim.mount("cdp")
    devices = look(plugin)
    assert {one.health for one in devices.values()} == {Health.HEALTHY}
    plugin.prepare(picked(devices, "l3.0.00"))
    assert masks(n.sim, "kdp-llc.d0x1") == {0: 1, 1: 0x780}


def test_read_only_mount_makes_all_unhealthy(node: Make) -> None:
    n = node(mode="reserve")
    n.files.read_only_mount = True
    plugin = n.plugin()
    assert {one.cause.partition(":")[0] for one in look(plugin).values()} == {"read-only"}
    n.files.read_only_mount = False
    assert {one.health for one in look(plugin).values()} == {Health.HEALTHY}


def test_cache_goes_offline_and_comes_back_with_all_ways(node: Make) -> None:
    n = node(mode="reserve")
    plugin = n.plugin()
    plugin.prepare(picked(look(plugin), "l3.1.00"))
    n.sim.offline(4, 5, 6, 7)
    gone = look(plugin)
    assert {id_: one.health for id_, one in gone.items()} == {id_: Health.UNHEALTHY if id_.startswith("l3.1.") else Health.HEALTHY for id_ in gone}
    assert gone["l3.1.00"].cause.startswith("offline:")
    n.sim.bring_online(4, 5, 6, 7)
    assert masks(n.sim)[1] == 0x7FF
    assert {one.health for one in look(plugin).values()} == {Health.HEALTHY}
    assert masks(n.sim) == {0: 0x780, 1: 0x780}
    assert masks(n.sim, "kdp-llc.d1x1") == {0: 0x780, 1: 0x1}


def test_when_all_groups_are_in_use_only_free_slots_are_unhealthy(node: Make) -> None:
    n = node("haswell")
    plugin = n.plugin()
    devices = look(plugin)
    for id_ in ("l3.0.00", "l3.0.01", "l3.1.05"):
        plugin.allocate(picked(devices, id_))  # admitted, not started: that counts
        plugin.prepare(picked(devices, id_))
    after = look(plugin)
    healthy = {id_ for id_, one in after.items() if one.health is Health.HEALTHY}
    assert healthy == {"l3.0.00", "l3.0.01", "l3.1.05"}
    assert after["l3.0.02"].cause == "exhausted: the CPU has no free group (CLOSID) for one more container"
    with pytest.raises(ResctrlError, match="has 3 groups besides the root, and all are in use"):
        plugin.allocate(picked(devices, "l3.0.02"))
    plugin.allocate(picked(devices, "l3.0.01", "l3.0.02"))  # slot 1 is free again, so its group is
    n.sim.rmdir("kdp-llc.d0x1")
    n.now += 1000
    list(plugin.reconcile([allocation(devices, "p", "c", "l3.1.05")]))


def test_somebody_holds_ways_exclusively_before_us(node: Make) -> None:
    n = node("no_mba")
    n.sim.write("schemata", b"L3:0=7f0;1=7f0\n")
    n.sim.mkdir("theirs")
    n.sim.write("theirs/schemata", b"L3:0=f;1=f\n")
    n.sim.write("theirs/mode", b"exclusive\n")
    devices = look(n.plugin())
    assert len(devices) == 6
    plugin = n.plugin()
    plugin.prepare(picked(look(plugin), "l3.0.00"))
    assert masks(n.sim, "kdp-llc.d0x1")[0] == 0x10


def test_somebody_takes_ways_exclusively_later(node: Make) -> None:
    n = node("no_mba", mode="reserve")
    plugin = n.plugin()
    look(plugin)
    n.sim.mkdir("theirs")
    n.sim.write("theirs/schemata", b"L3:0=3;1=3\n")
    n.sim.write("theirs/mode", b"exclusive\n")
    devices = look(plugin)
    assert {one.cause for one in devices.values()} == {"foreign: somebody else's group holds ways 0x3 of the slots exclusively"}


def test_slots_that_are_shared_out_are_not_advertised(node: Make) -> None:
    plugin = node().plugin()
    plugin.sharing = {RESOURCE: Sharing(replicas=2)}
    assert look(plugin) == {}
    assert "has replicas, and two containers cannot have one slot" in skipped(plugin)[RESOURCE]
    plugin.sharing = {RESOURCE: Sharing(rename="x.y/z")}
    assert len(look(plugin)) == 14


INFO = ("info/L3/cbm_mask", "info/L3/min_cbm_bits", "info/L3/num_closids", "info/L3/shareable_bits", "info/L3/sparse_masks", "info/L3/bit_usage")
OPTIONAL = {"info/L3/sparse_masks", "info/L3/shareable_bits", "info/L3/bit_usage"}
OTHERS = ("info/MB/min_bandwidth", "info/MB/bandwidth_gran", "info/MB/num_closids", "schemata")


@pytest.mark.parametrize("path", [*INFO, *OTHERS])
@pytest.mark.parametrize("content", [b"", b"\n", b"\0\0", b"garbage\n", b"\xff\xfe\xfd", b"-1\n", b"9" * (1 << 20), b"0=XX\n" * 200_000])
def test_file_that_makes_no_sense_is_an_error_or_harmless(node: Make, path: str, content: bytes) -> None:
    n = node(memoryBandwidth=10)
    n.files.contents[path] = content
    plugin = n.plugin()
    said = ""
    try:
        devices = look(plugin)
    except ResctrlError as error:
        said = str(error)
    assert (path in said and len(said) < 400) if said else (skipped(plugin) or len(devices) == 14)
    del n.files.contents[path]
    assert len(look(plugin)) == 14


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EBUSY, errno.EMFILE])
@pytest.mark.parametrize("path", [*INFO, *OTHERS])
def test_file_that_cannot_be_read_is_an_error_that_names_it(node: Make, path: str, number: int) -> None:
    n = node()
    n.files.errors["read", path] = number
    plugin = n.plugin()
    with pytest.raises(ResctrlError, match=path) as failed:
        look(plugin)
    assert failed.value.errno == number
    n.files.errors.clear()
    assert len(look(plugin)) == 14


@pytest.mark.parametrize("path", [*INFO, *OTHERS])
def test_file_that_is_missing(node: Make, path: str) -> None:
    n = node()
    n.files.contents[path] = None
    plugin = n.plugin()
    if path in OPTIONAL or path.endswith("num_closids"):
        assert look(plugin)
    elif path == "schemata":
        assert look(plugin) == {}
    else:
        with pytest.raises(ResctrlError, match=f"{path} is not there"):
            look(plugin)


@pytest.mark.parametrize("content", [b"", b"L3:0=zz\n", b"no line\n", b"x" * (1 << 20), None])
def test_group_that_cannot_be_read_hides_no_other(node: Make, content: bytes | None) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00"))
    plugin.prepare(picked(devices, "l3.0.01"))
    n.files.contents["kdp-llc.d0x1/schemata"] = content
    after = look(plugin)
    assert {id_ for id_, one in after.items() if one.health is not Health.HEALTHY} <= {"l3.0.00"}
    n.files.contents.clear()
    n.now += 601
    assert {one.health for one in look(plugin).values()} == {Health.HEALTHY}
    assert masks(n.sim, "kdp-llc.d0x1") == {0: 1, 1: 0x780}
