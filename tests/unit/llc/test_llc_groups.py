# SPDX-License-Identifier: Apache-2.0
"""Admission decides in memory, the start of a container makes it so, and both may be repeated."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest

from deviceplugin.cdi import CdiError
from deviceplugin.plugins.llc.placing import NoRoom
from deviceplugin.plugins.llc.resctrl import ResctrlError
from deviceplugin.testing.resctrl import schemata
from tests.helpers.llc import Node, look, masks, picked

Make = Callable[..., Node]
KIND = "k8s.device-plugin.devices.local/llc"


def ids(*numbers: int, cache: int = 0) -> list[str]:
    return [f"l3.{cache}.{number:02}" for number in numbers]


def test_admission_writes_nothing_to_the_hardware(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    edits = plugin.allocate(picked(devices, *ids(1, 2), *ids(6, cache=1)))
    assert n.files.writes == []
    assert n.groups == []
    assert edits.cdi == (f"{KIND}=d0x6.d1x40",)
    assert n.cdi() == {f"{KIND}=d0x6.d1x40": "kdp-llc.d0x6.d1x40"}
    way = (28160 << 10) // 11
    assert edits.envs == {
        "KDP_LLC_GROUP": "kdp-llc.d0x6.d1x40",
        "KDP_LLC_DOMAINS": "0,1",
        "KDP_LLC_WAYS": "2,1",
        "KDP_LLC_BYTES": f"{2 * way},{way}",
    }
    assert plugin.allocate(picked(devices, *ids(1, 2), *ids(6, cache=1))) == edits


def test_start_makes_the_group_and_again_changes_nothing(node: Make) -> None:
    n = node(mode="reserve")
    plugin = n.plugin()
    devices = picked(look(plugin), *ids(1, 2), *ids(6, cache=1))
    plugin.allocate(devices)
    plugin.prepare(devices)
    assert masks(n.sim, "kdp-llc.d0x6.d1x40") == {0: 0b11, 1: 0b1000000}
    written = len(n.files.writes)
    plugin.prepare(devices)
    assert len(n.files.writes) == written


def test_scattered_slots_get_one_run_of_ways_and_the_shared_ones_elsewhere(node: Make) -> None:
    n = node("spr20")
    plugin = n.plugin()
    plugin.prepare(picked(look(plugin), *ids(0, 3, 7, 13)))
    assert masks(n.sim, "kdp-llc.d0x2089") == {0: 0b11110, 1: 0xF8000}


def test_room_is_made_by_moving_others_when_the_container_starts(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    for pair in ((0, 1), (2,), (3, 4), (5, 6)):
        plugin.prepare(picked(devices, *ids(*pair)))
    n.sim.rmdir("kdp-llc.d0x3")
    n.sim.rmdir("kdp-llc.d0x18")
    n.now += 500
    for _ in range(3):  # their containers are gone: slots 0, 1, 3 and 4 are free
        list(plugin.reconcile([]))
        n.now += 500
    plugin = n.plugin()  # what remains is in resctrl
    devices = look(plugin)
    assert n.groups == []
    for pair in ((2,), (5, 6)):
        plugin.prepare(picked(devices, *ids(*pair)))
    n.sim.write("kdp-llc.d0x4/schemata", b"L3:0=4\n")
    n.sim.write("kdp-llc.d0x60/schemata", b"L3:0=60\n")
    plugin = n.plugin()
    devices = look(plugin)
    plugin.allocate(picked(devices, *ids(0, 1, 3, 4)))
    assert masks(n.sim, "kdp-llc.d0x4")[0] == 0x4
    plugin.prepare(picked(devices, *ids(0, 1, 3, 4)))
    taken = [masks(n.sim, group)[0] for group in n.groups]
    assert sorted(mask.bit_count() for mask in taken) == [1, 2, 4]
    assert sum(taken) == 0x7F


def fragmented(n: Node) -> None:
    """Ways 2, 5 and 6 of cache 0 are in use."""
    for group, mask in (("kdp-llc.d0x4", b"4"), ("kdp-llc.d0x60", b"60")):
        n.sim.mkdir(group)
        n.sim.write(f"{group}/schemata", b"L3:0=" + mask + b";1=780\n")


def test_without_relocation_the_admission_fails_and_says_why(node: Make) -> None:
    n = node(relocate=False)
    fragmented(n)
    plugin = n.plugin()
    devices = look(plugin)
    with pytest.raises(NoRoom, match="cache 0 has 4 free ways but no place for the 4 of d0x1b: allow it to move others with relocate: true"):
        plugin.allocate(picked(devices, *ids(0, 1, 3, 4)))
    plugin.allocate(picked(devices, *ids(0, 4)))


def test_without_relocation_a_mask_has_holes_where_the_cpu_takes_them(node: Make) -> None:
    n = node("amd", relocate=False, sharedWays=9)
    fragmented(n)
    n.sim.write("kdp-llc.d0x4/schemata", b"L3:1=ff80\n")
    plugin = n.plugin()
    devices = look(plugin)
    assert len([id_ for id_ in devices if id_.startswith("l3.0.")]) == 7
    plugin.prepare(picked(devices, *ids(0, 1, 3, 4)))
    assert masks(n.sim, "kdp-llc.d0x1b")[0] == 0b11011


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("group", ["kdp-llc.d0x1b", "kdp-llc.d0x4", "kdp-llc.d0x60"])
def test_failed_start_leaves_everybody_where_they_were(node: Make, group: str, number: int) -> None:
    n = node()
    fragmented(n)
    plugin = n.plugin()
    devices = look(plugin)
    plugin.allocate(picked(devices, *ids(0, 1, 3, 4)))
    n.files.errors["write", f"{group}/schemata"] = number
    try:
        plugin.prepare(picked(devices, *ids(0, 1, 3, 4)))
    except ResctrlError as error:
        failed = error
        assert failed.errno == number
        assert n.groups == ["kdp-llc.d0x4", "kdp-llc.d0x60"]
        assert {name: masks(n.sim, name)[0] for name in n.groups} == {"kdp-llc.d0x4": 0x4, "kdp-llc.d0x60": 0x60}
    n.files.errors.clear()
    plugin.prepare(picked(devices, *ids(0, 1, 3, 4)))
    taken = [masks(n.sim, name)[0] for name in n.groups]
    assert sum(taken) == 0x7F
    assert sum(mask.bit_count() for mask in taken) == 7


def test_kernel_says_why_in_last_cmd_status(node: Make) -> None:
    n = node("haswell")
    plugin = n.plugin()
    devices = look(plugin)
    for name in ("a", "b", "c"):
        n.sim.mkdir(name)
    with pytest.raises(ResctrlError, match=r"kdp-llc.d0x1 cannot be made: No space left on device \(Out of CLOSIDs\)"):
        plugin.prepare(picked(devices, *ids(0)))
    assert n.groups == []
    n.sim.rmdir("a")
    plugin.prepare(picked(devices, *ids(0)))


def test_group_ids_in_limbo_are_an_error_that_passes(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    n.files.errors["mkdir", "kdp-llc.d0x1"] = errno.EBUSY
    with pytest.raises(ResctrlError, match="busy"):
        plugin.prepare(picked(devices, *ids(0)))
    n.files.errors.clear()
    plugin.prepare(picked(devices, *ids(0)))


def test_hardware_that_changes_a_mask_is_noticed(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    n.files.contents["kdp-llc.d0x1/schemata"] = b"    L3:0=600;1=780\n"
    with pytest.raises(ResctrlError, match="took L3:0=1 and does not hold L3:0=1: the hardware or someone else changed it"):
        plugin.prepare(picked(devices, *ids(0)))


def test_init_container_and_the_one_after_it_take_turns(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    init, app = picked(devices, *ids(0, 1, 2, 3)), picked(devices, *ids(1, 3))
    names = {plugin.allocate(init).cdi[0], plugin.allocate(app).cdi[0]}  # both at admission
    assert set(n.cdi()) == names
    plugin.prepare(init)
    assert n.groups == ["kdp-llc.d0xf"]
    plugin.prepare(app)
    assert n.groups == ["kdp-llc.d0xa"]
    assert masks(n.sim, "kdp-llc.d0xa")[0].bit_count() == 2
    plugin.prepare(init)  # the pod's sandbox was made anew
    assert n.groups == ["kdp-llc.d0xf"]
    assert set(n.cdi()) == names


def test_slots_that_come_again_take_the_group_of_their_last_holder(node: Make) -> None:
    n = node("haswell")
    plugin = n.plugin()
    devices = look(plugin)
    for number in range(3):
        plugin.prepare(picked(devices, *ids(number)))
    plugin.allocate(picked(devices, *ids(0, 1)))  # all three groups are in use, but two of them are these slots'
    plugin.prepare(picked(devices, *ids(0, 1)))
    assert n.groups == ["kdp-llc.d0x3", "kdp-llc.d0x4"]


def test_restart_of_the_plugin_changes_nothing(node: Make) -> None:
    n = node("spr20", mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    for numbers in ((0, 2), (1,), (5, 6, 7)):
        plugin.allocate(picked(devices, *ids(*numbers)))
        plugin.prepare(picked(devices, *ids(*numbers)))
    before = {name: schemata(n.sim, name) for name in n.groups}
    names = n.cdi()
    written = len(n.files.writes)
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, *ids(1)))
    plugin.allocate(picked(devices, *ids(9)))
    assert {name: schemata(n.sim, name) for name in n.groups} == before
    assert len(n.files.writes) == written
    assert set(names) < set(n.cdi())


def test_reboot_starts_from_the_ids_alone(node: Make) -> None:
    n = node(mode="reserve")
    plugin = n.plugin()
    held = picked(look(plugin), *ids(2, 5))
    plugin.allocate(held)
    plugin.prepare(held)
    names = n.cdi()
    n.reboot()
    assert n.cdi() == {}
    plugin = n.plugin()
    plugin.prepare(held)  # even before the first look
    assert n.groups == ["kdp-llc.d0x24"]
    assert masks(n.sim, "kdp-llc.d0x24")[0].bit_count() == 2
    assert n.cdi() == names
    look(plugin)
    assert masks(n.sim) == {0: 0x780, 1: 0x780}


def test_bandwidth_comes_with_slots(node: Make) -> None:
    n = node(memoryBandwidth=15)
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, *ids(0, 1, 2)))
    assert schemata(n.sim, "kdp-llc.d0x7")["MB"] == {0: 50, 1: 100}  # 45, in steps of 10
    plugin.prepare(picked(devices, *ids(0, 1, 2, 3, 4, 5, 6, cache=1)))
    assert schemata(n.sim, "kdp-llc.d1x7f")["MB"] == {0: 100, 1: 100}
    n.sim.umount()
    n.sim.mount("mba_MBps")  # in MB/s, and the root group has no limit
    devices = look(plugin)
    plugin.prepare(picked(devices, *ids(0, 1, 2)))
    assert schemata(n.sim, "kdp-llc.d0x7")["MB"] == {0: 50, 1: 0xFFFFFFFF}
    none = node("no_mba", memoryBandwidth=15)
    plugin = none.plugin()
    plugin.prepare(picked(look(plugin), *ids(0)))
    assert none.groups == ["kdp-llc.d0x1"]


def test_spec_that_cannot_be_written_costs_no_admission_but_a_start(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    held = picked(look(plugin), *ids(0))
    n.host.write("/var/run", "a file where the directory should be")
    plugin.allocate(held)
    with pytest.raises(CdiError, match="cannot be written"):
        plugin.prepare(held)


def test_mistakes_are_errors_that_name_them(node: Make) -> None:
    n = node("amd")
    plugin = n.plugin()
    devices = look(plugin)
    other = type(devices["l3.0.00"])("gpu-0")
    with pytest.raises(ValueError, match="'gpu-0' is not the id of a cache slot"):
        plugin.allocate([other])
    with pytest.raises(NoRoom, match="cache 0 has 14 slots, so d0x8000 cannot be had"):
        plugin.prepare([type(other)("l3.0.15")])


def test_threads_may_come_all_at_once(node: Make) -> None:
    n = node("amd", mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    errors: list[BaseException] = []

    def start(number: int) -> None:
        try:
            mine = picked(devices, *ids(2 * number % 14, 2 * number % 14 + 1, cache=number // 7))
            plugin.allocate(mine)
            plugin.prepare(mine)
            look(plugin)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(n.groups) == 14
    for cache in (0, 1):
        taken = sorted(masks(n.sim, name)[cache] for name in n.groups if name.startswith(f"kdp-llc.d{cache}x"))
        assert all(low & high == 0 for low, high in pairwise(taken))
