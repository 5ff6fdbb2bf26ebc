# SPDX-License-Identifier: Apache-2.0
"""Somebody else writes to resctrl: what can be put right is, what cannot be is said."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import pytest

from deviceplugin import Health
from deviceplugin.plugins.llc.disputes import LIMIT, PAUSE, WINDOW, Disputes
from deviceplugin.testing.resctrl import schemata
from tests.helpers.llc import Node, allocation, look, masks, picked, verdict

Make = Callable[..., Node]


def widen(n: Node) -> None:
    n.sim.write("schemata", b"L3:0=7ff;1=7ff\n")


def test_repairs_are_few_and_far_between() -> None:
    now = 0.0
    disputes = Disputes(lambda: now)
    assert disputes.may_mend("a")
    assert not disputes.may_mend("a")
    assert disputes.may_mend("b")
    for _ in range(LIMIT - 1):
        now += PAUSE
        assert disputes.may_mend("a")
    now += PAUSE
    assert not disputes.may_mend("a")
    assert disputes.given_up("a")
    assert not disputes.given_up("b")
    now += WINDOW
    assert not disputes.given_up("a")
    assert disputes.may_mend("a")


def test_root_group_is_shrunk_again_three_times_and_then_all_is_unhealthy(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    n = node(mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00"))
    pid = n.process("p", "c", group="kdp-llc.d0x1")
    for _ in range(3):
        widen(n)
        n.now += 10
        assert {one.health for one in look(plugin).values()} == {Health.HEALTHY}
        assert masks(n.sim) == {0: 0x780, 1: 0x780}
    widen(n)
    n.now += 10
    after = look(plugin)
    assert {one.cause.partition(":")[0] for one in after.values()} == {"fought"}
    assert masks(n.sim) == {0: 0x7FF, 1: 0x7FF}
    said = verdict(plugin, allocation(devices, "p", "c", "l3.0.00"))
    assert said.enforced is False
    assert "somebody keeps changing the ways of the root group" in said.detail
    assert n.group_of(pid) == "kdp-llc.d0x1"
    for _ in range(3):
        n.now += 10
        look(plugin)
    assert [one.message.partition(":")[0] for one in caplog.records] == [
        *["somebody has changed the ways of the root group to 0=7ff, 1=7ff"] * 3,
        "somebody keeps changing the ways of the root group, now to 0=7ff, 1=7ff",  # once
    ]
    n.now += WINDOW
    assert {one.health for one in look(plugin).values()} == {Health.HEALTHY}


def test_in_limit_mode_the_root_group_is_nobodys_business(node: Make) -> None:
    n = node(mode="limit")
    plugin = n.plugin()
    look(plugin)
    n.sim.write("schemata", b"L3:0=f;1=f\n")
    look(plugin)
    assert masks(n.sim) == {0: 0xF, 1: 0xF}
    assert [path for path, _ in n.files.writes] == []


def test_mask_that_somebody_changed_is_put_right(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    n = node()
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00", "l3.0.01"))
    n.process("p", "c", group="kdp-llc.d0x3")
    held = allocation(devices, "p", "c", "l3.0.00", "l3.0.01")
    for _ in range(3):
        n.sim.write("kdp-llc.d0x3/schemata", b"L3:0=7ff\n")
        n.now += 10
        assert verdict(plugin, held).enforced is True
        assert masks(n.sim, "kdp-llc.d0x3")[0] == 3
    assert "somebody has changed group kdp-llc.d0x3 to 0=7ff, 1=780" in caplog.text
    n.sim.write("kdp-llc.d0x3/schemata", b"L3:0=7ff\n")
    n.now += 10
    said = verdict(plugin, held)
    assert (said.enforced, said.detail) == (False, "fought: somebody keeps changing or removing its group")
    after = look(plugin)
    assert {id_ for id_, one in after.items() if one.health is not Health.HEALTHY} == {"l3.0.00", "l3.0.01"}
    plugin.prepare(picked(devices, "l3.0.02"))  # nobody moves the one that is fought over, and nobody is hindered by it
    assert masks(n.sim, "kdp-llc.d0x4")[0] & 3 == 0


def test_bandwidth_that_somebody_changes_is_a_dispute_too(node: Make) -> None:
    n = node(memoryBandwidth=10)
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00"))
    for _ in range(3):
        n.sim.write("kdp-llc.d0x1/schemata", b"MB:0=70\n")
        n.now += 10
        assert look(plugin)["l3.0.00"].health is Health.HEALTHY
        assert schemata(n.sim, "kdp-llc.d0x1")["MB"][0] == 10
    n.sim.write("kdp-llc.d0x1/schemata", b"MB:0=70\n")
    n.now += 10
    assert look(plugin)["l3.0.00"].cause.startswith("group: fought")


def test_our_own_change_of_configuration_is_no_dispute(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    n = node()
    plugin = n.plugin()
    plugin.prepare(picked(look(plugin), "l3.0.00"))
    for bandwidth in (10, 20, 30, 40, 50):
        n.config = msgspec.structs.replace(n.config, memory_bandwidth=bandwidth)
        assert look(n.plugin())["l3.0.00"].health is Health.HEALTHY
        assert schemata(n.sim, "kdp-llc.d0x1")["MB"] == {0: bandwidth, 1: 100}
    assert not caplog.records


def test_runtime_that_wipes_all_groups(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    """containerd and CRI-O do, with rdt_config_file set, each time they start or reload."""
    n = node(mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    held = []
    pids = []
    for number in range(3):
        edits = plugin.allocate(picked(devices, f"l3.0.0{number}"))
        plugin.prepare(picked(devices, f"l3.0.0{number}"))
        n.hold(f"p{number}", "c", [f"l3.0.0{number}"])
        pids.append(n.process(f"p{number}", "c", edits.envs, group=f"kdp-llc.d0x{1 << number:x}"))
        held.append(allocation(devices, f"p{number}", "c", f"l3.0.0{number}"))
    assert {one.enforced for one in plugin.reconcile(held)} == {True}
    for name in n.groups:
        n.sim.rmdir(name)
    assert {n.group_of(pid) for pid in pids} == {"/"}
    assert {one.enforced for one in plugin.reconcile(held)} == {None}  # made again, and empty
    assert "somebody has removed group kdp-llc.d0x1" in caplog.text
    n.now += 6
    with caplog.at_level(logging.WARNING):
        said = list(plugin.reconcile(held))
    assert {one.enforced for one in said} == {False}
    assert "were moved" in said[0].detail
    assert [n.group_of(pid) for pid in pids] == ["kdp-llc.d0x1", "kdp-llc.d0x2", "kdp-llc.d0x4"]
    assert {one.enforced for one in plugin.reconcile(held)} == {True}


def test_group_of_somebody_else_that_may_use_the_same_ways(node: Make) -> None:
    n = node(mode="reserve")
    plugin = n.plugin()
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00"))
    n.process("p", "c", group="kdp-llc.d0x1")
    held = allocation(devices, "p", "c", "l3.0.00")
    n.sim.mkdir("theirs")
    n.sim.write("theirs/schemata", b"L3:0=600;1=7f\n")
    assert verdict(plugin, held).enforced is True
    n.sim.write("theirs/schemata", b"L3:0=7ff\n")
    said = verdict(plugin, held)
    assert (said.enforced, said.detail) == (False, "group theirs, which is not ours, may use the same ways: 0=1")
    assert masks(n.sim, "theirs") == {0: 0x7FF, 1: 0x7F}
    limit = node(mode="limit").plugin()
    look(limit)  # a limit holds whatever others may use
    n.config = limit.config
    plugin = n.plugin()
    assert verdict(plugin, held).enforced is True


def test_group_with_our_prefix_that_is_none_of_ours_is_left_alone(node: Make) -> None:
    n = node()
    for name in ("kdp-llc.x", "kdp-llc.", "guaranteed"):
        n.sim.mkdir(name)
    plugin = n.plugin()
    look(plugin)
    for _ in range(4):
        n.now += 500
        list(plugin.reconcile([]))
    assert set(n.groups) == {"kdp-llc.x", "kdp-llc."}


def test_two_groups_with_one_slot_cannot_both_be_right(node: Make) -> None:
    n = node()
    for name in ("kdp-llc.d0x3", "kdp-llc.d0x6"):
        n.sim.mkdir(name)
    n.process("p", "c", group="kdp-llc.d0x6")
    plugin = n.plugin()
    devices = look(plugin)
    assert verdict(plugin, allocation(devices, "p", "c", "l3.0.01", "l3.0.02")).detail == "another group has one of its slots"
    plugin.prepare(picked(devices, "l3.0.01", "l3.0.02"))
    assert n.groups == ["kdp-llc.d0x6"]
    assert verdict(plugin, allocation(devices, "p", "c", "l3.0.01", "l3.0.02")).enforced is True
