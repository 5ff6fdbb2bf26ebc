# SPDX-License-Identifier: Apache-2.0
"""A group goes when nobody needs it any more, and never before; and all goes when the plugin is uninstalled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deviceplugin import Health
from tests.helpers.llc import Node, allocation, look, masks, picked

Make = Callable[..., Node]


def rounds(n: Node, plugin: object, *held: object, count: int = 4, seconds: float = 61.0) -> None:
    for _ in range(count):
        n.now += seconds
        list(plugin.reconcile(list(held)))  # type: ignore[attr-defined]


def test_group_of_a_container_that_is_gone_is_removed(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    plugin.allocate(picked(devices, "l3.0.00"))
    plugin.prepare(picked(devices, "l3.0.00"))
    rounds(n, plugin, count=2)  # 122 s: seen unneeded once
    assert n.groups == ["kdp-llc.d0x1"]
    with caplog.at_level("INFO"):
        rounds(n, plugin, count=1)
    assert n.groups == []
    assert n.cdi() == {}
    assert "group kdp-llc.d0x1 is removed" in caplog.text


@pytest.mark.parametrize("why", ["held", "runs", "young", "seen once", "asked again", "starts again"])
def test_group_that_may_be_needed_stays(node: Make, why: str) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    mine = picked(devices, "l3.0.00")
    plugin.allocate(mine)
    plugin.prepare(mine)
    held = allocation(devices, "p", "c", "l3.0.00")
    if why == "held":
        rounds(n, plugin, held, count=10)
    elif why == "runs":  # an ordinary init container: the kubelet does not list it
        n.process("p", "init", group="kdp-llc.d0x1")
        rounds(n, plugin, count=10)
    elif why == "young":
        rounds(n, plugin, count=20, seconds=5.9)
    elif why == "seen once":
        for _ in range(5):
            rounds(n, plugin, count=1, seconds=200)
            rounds(n, plugin, held, count=1)
    elif why == "asked again":
        for _ in range(5):
            rounds(n, plugin, count=1, seconds=119)
            plugin.allocate(mine)
    else:
        for _ in range(5):
            rounds(n, plugin, count=1, seconds=119)
            plugin.prepare(mine)
    assert n.groups == ["kdp-llc.d0x1"]
    assert n.cdi()


def test_task_that_comes_at_the_last_moment_saves_its_group(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00"))
    rounds(n, plugin, count=2)
    tasks = n.files.contents
    real = plugin._control.idle

    def idle(*args: object) -> set[str]:
        found = real(*args)  # type: ignore[arg-type]
        tasks["kdp-llc.d0x1/tasks"] = b"4711\n"
        return found

    plugin._control.idle = idle  # type: ignore[method-assign, assignment]
    rounds(n, plugin, count=1)
    assert n.groups == ["kdp-llc.d0x1"]


def test_admission_that_came_to_nothing_gives_its_place_back(node: Make) -> None:
    n = node("haswell")
    plugin = n.plugin()
    devices = look(plugin)
    for number in range(3):
        plugin.allocate(picked(devices, f"l3.0.0{number}"))
    assert sum(one.health is Health.HEALTHY for one in look(plugin).values()) == 3
    rounds(n, plugin)
    assert sum(one.health is Health.HEALTHY for one in look(plugin).values()) == 16
    assert n.cdi() == {}


def test_age_counts_from_the_restart_of_the_plugin(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    plugin.prepare(picked(look(plugin), "l3.0.00"))
    plugin = n.plugin()
    look(plugin)
    rounds(n, plugin, count=2)
    assert n.groups == ["kdp-llc.d0x1"]
    rounds(n, plugin, count=2)
    assert n.groups == []


def test_group_that_cannot_be_looked_into_is_not_removed(node: Make) -> None:
    n = node()
    plugin = n.plugin()
    plugin.prepare(picked(look(plugin), "l3.0.00"))
    n.files.errors["read", "kdp-llc.d0x1/tasks"] = 5
    for _ in range(5):
        n.now += 100
        try:
            list(plugin.reconcile([]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the group must stay
            assert "tasks cannot be read" in str(error)  # noqa: PT017
    assert n.groups == ["kdp-llc.d0x1"]


def test_uninstall_tells_first_and_then_takes_everything_away(node: Make) -> None:
    n = node(mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    n.sim.mkdir("theirs")
    for number in range(2):
        plugin.allocate(picked(devices, f"l3.0.0{number}"))
        plugin.prepare(picked(devices, f"l3.0.0{number}"))
    pid = n.process("p", "c", group="kdp-llc.d0x1")
    lines = [
        "resctrl group /sys/fs/resctrl/kdp-llc.d0x1",
        "resctrl group /sys/fs/resctrl/kdp-llc.d0x2",
        "mask of the root group in /sys/fs/resctrl/schemata for caches 0, 1",
        "CDI spec of k8s.device-plugin.devices.local/llc",
    ]
    other = n.plugin()
    assert list(other.uninstall(False)) == lines
    assert n.groups == ["kdp-llc.d0x1", "kdp-llc.d0x2"]
    assert masks(n.sim) == {0: 0x780, 1: 0x780}
    assert list(other.uninstall(True)) == lines
    assert n.groups == []
    assert "theirs" in n.sim.list("")
    assert masks(n.sim) == {0: 0x7FF, 1: 0x7FF}
    assert n.cdi() == {}
    assert n.group_of(pid) == "/"
    assert list(other.uninstall(True)) == []


def test_uninstall_where_nothing_was_ever_installed(node: Make) -> None:
    n = node()
    assert list(n.plugin().uninstall(True)) == []
    n.sim.umount()
    assert list(n.plugin().uninstall(True)) == []


def test_uninstall_leaves_ways_to_those_who_hold_them_exclusively(node: Make) -> None:
    n = node("no_mba", mode="reserve")
    look(n.plugin())
    n.sim.mkdir("theirs")
    n.sim.write("theirs/schemata", b"L3:0=3;1=3\n")
    n.sim.write("theirs/mode", b"exclusive\n")
    other = n.plugin()
    list(other.uninstall(True))
    assert masks(n.sim)[0] & 3 == 0
