# SPDX-License-Identifier: Apache-2.0
"""Which slots are listed, how they are, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deviceplugin import Enforcement, Health
from deviceplugin.sysfs import SysfsError
from tests.unit.pfs.rig import T0, T1, T2, T3, T4, Rig

Make = Callable[..., Rig]
WELL = {(Health.HEALTHY, "")}
OTHER = {**T0, "type": "other"}


@pytest.mark.parametrize(
    ("tree", "filesystem", "strength", "tier"),
    [
        ("lustre-2.15", T0, Enforcement.NONE, "T0"),
        ("lustre-2.15", T1, Enforcement.TAGGED, "T1"),
        ("lustre-2.10", T1, Enforcement.NONE, "T0"),  # jobid_var is not ours there
        ("lustre-2.15", T3, Enforcement.HARD, "T3"),
        ("lustre-2.15", T4, Enforcement.ADVISORY, "T4"),
        ("beegfs-7", {**T0, "type": "beegfs"}, Enforcement.NONE, "T0"),
        ("beegfs-7", {**T3, "type": "beegfs", "privateMount": {"source": "beegfs_nodev"}}, Enforcement.HARD, "T3"),
        ("gpfs", T2, Enforcement.TAGGED, "T2"),
        ("nfs", OTHER, Enforcement.NONE, "T0"),
        ("nfs", {**T3, "type": "other", "privateMount": {"source": "s:/x", "fstype": "nfs"}}, Enforcement.ADVISORY, "T3"),
        ("nfs", {**T3, "type": "other", "privateMount": {"source": "s:/x", "fstype": "nfs", "options": "nconnect=1"}}, Enforcement.HARD, "T3"),
    ],
)
def test_every_layout_has_its_slots_and_says_what_they_are_worth(
    rig: Make, tree: str, filesystem: dict[str, object], strength: Enforcement, tier: str
) -> None:
    devices = rig(filesystem, tree=tree).look()
    assert [one.id for one in devices] == [f"pfs.scratch.{n:02}" for n in range(4)]
    assert {(one.resource, one.health, one.cause) for one in devices} == {("example.com/pfs-scratch", Health.HEALTHY, "")}
    assert {(one.enforcement, one.attributes["tier"]) for one in devices} == {(strength, tier)}
    assert {one.numa_nodes for one in devices} == {()}


def test_a_file_system_is_found_by_its_source_and_below_a_name_with_spaces(rig: Make) -> None:
    by_source = {key: value for key, value in OTHER.items() if key != "mountPoint"} | {"source": "server:/export", "containerPath": "/data"}
    one = rig(by_source, tree="nfs")
    (mount,) = one.look()[0].mounts
    assert (mount.path, mount.container_path, mount.read_only) == ("/mnt/my data", "/data", False)
    one.pfs.unmount("/mnt/my data")
    assert one.health() == WELL, "one look that fails is no fault"


def test_one_slot_for_each_share_of_the_bandwidth(rig: Make) -> None:
    shares = {key: value for key, value in T1.items() if key != "slots"} | {"bandwidth": "2.5Gi", "bandwidthPerSlot": "1G"}
    assert rig(shares, tree="lustre-2.15").listed() == [0, 1]


def test_the_units_are_the_file_system_or_with_private_mounts_the_slots(rig: Make) -> None:
    one = rig(T0, {**T3, "name": "own"}, tree="lustre-2.15")
    assert {device.unit for device in one.look()} == {"pfs.scratch", *(f"pfs.own.{n:02}" for n in range(4))}


def test_replicas_are_refused_since_two_containers_would_hold_one_slot(rig: Make) -> None:
    from deviceplugin import Sharing

    one = rig(T0, tree="lustre-2.15")
    one.plugin.sharing = {"example.com/pfs-scratch": Sharing(replicas=3)}
    assert one.look() == []
    assert "3 containers would share a slot" in one.skipped()[0].reason


# Health, in both directions


def ill(one: Rig) -> None:
    """Looks until a fault is believed."""
    assert one.health() == WELL
    assert one.health() == WELL


def test_a_mount_that_vanishes_and_returns(rig: Make) -> None:
    one = rig(T0, tree="lustre-2.15")
    assert one.health() == WELL
    one.pfs.unmount("/mnt/scratch")
    ill(one)
    assert one.health() == {(Health.UNHEALTHY, "mount: /mnt/scratch is not mounted")}
    one.pfs.mount("lustre", "10.0.0.1@tcp:/scratch", "/mnt/scratch")
    assert {health for health, _ in one.health()} == {Health.UNHEALTHY}, "one good look is no recovery"
    assert one.health() == WELL


def test_what_was_never_seen_well_is_not_given_out(rig: Make) -> None:
    one = rig(T0)
    assert one.health() == {(Health.UNHEALTHY, "mount: /mnt/scratch is not mounted")}
    assert not one.plugin._debounce.unsettled


def test_another_file_system_at_the_mount_point(rig: Make) -> None:
    assert rig(T0, tree="nfs").health() == {(Health.UNHEALTHY, "mount: /mnt/scratch is nfs4, not lustre")}


def test_a_lustre_client_that_says_it_is_not_healthy(rig: Make) -> None:
    one = rig(T0, tree="lustre-2.15")
    assert one.health() == WELL
    one.host.write("/sys/fs/lustre/health_check", "NOT HEALTHY\n")
    ill(one)
    assert one.health() == {(Health.UNHEALTHY, "client: health_check is 'NOT HEALTHY'")}
    one.host.write("/sys/fs/lustre/health_check", "healthy\n")
    one.health()
    assert one.health() == WELL


@pytest.mark.parametrize(("tree", "target"), [("lustre-2.15", "OST0000"), ("lustre-2.15", "MDT0000"), ("lustre-2.10", "OST0000")])
def test_a_lustre_target_that_is_lost(rig: Make, tree: str, target: str) -> None:
    one = rig(T0, tree=tree)
    assert one.health() == WELL, "idle targets and those out of use are no fault"
    one.pfs.set_import(target, "DISCONN")
    ill(one)
    assert one.health() == {(Health.UNHEALTHY, f"import: {target} is DISCONN")}
    one.pfs.set_import(target, "FULL")
    one.health()
    assert one.health() == WELL


def test_a_fault_that_comes_and_goes_is_none(rig: Make) -> None:
    one = rig(T0, tree="lustre-2.15")
    for state in ("FULL", "DISCONN", "DISCONN", "FULL", "DISCONN", "DISCONN", "FULL"):
        one.pfs.set_import("OST0000", state)
        assert one.health() == WELL


def test_a_beegfs_target_that_is_lost(rig: Make) -> None:
    one = rig({**T0, "type": "beegfs", "health": {"failures": 1}}, tree="beegfs-7")
    assert one.health() == WELL
    path = "/proc/fs/beegfs/3A-64B1-node1/storage_target_state"
    one.host.write(path, one.host.read(path).replace("Online / Good \n[", "Offline / Good \n["))
    assert one.health() == {(Health.UNHEALTHY, "target: target 101 of storage01 [ID: 1] is Offline")}


def test_gpfs_that_is_down_or_cannot_be_asked(rig: Make) -> None:
    one = rig({**T2, "health": {"failures": 1, "successes": 1}}, tree="gpfs")
    assert one.health() == WELL
    one.pfs.mmgetstate = "arbitrating"
    assert one.health() == {(Health.UNHEALTHY, "mmgetstate: GPFS is arbitrating on this node")}
    one.pfs.failing["mmgetstate"] = "status 1"
    assert one.health() == {(Health.UNKNOWN, "mmgetstate: mmgetstate failed: status 1")}
    one.pfs.failing.clear()
    one.pfs.mmgetstate = "active"
    assert one.health() == WELL


def test_a_file_system_that_hangs(rig: Make) -> None:
    one = rig({**T0, "health": {"statfsSeconds": 2, "failures": 1}}, tree="lustre-2.15")
    one.pfs.hung.add("/mnt/scratch")
    assert one.health() == {(Health.UNHEALTHY, "hang: /mnt/scratch does not answer within 2 s (process 4711 was killed)")}


def test_a_private_mount_that_hangs_is_one_slot_only(rig: Make) -> None:
    one = rig({**T3, "health": {"failures": 1}}, tree="lustre-2.15")
    one.take(1)
    one.pfs.hung.add("/var/lib/deviceplugin/pfs/scratch/slot-01")
    assert [device.health for device in one.look()] == [Health.HEALTHY, Health.UNHEALTHY, Health.HEALTHY, Health.HEALTHY]


# Files that are not as they should be

FILES = {
    "/sys/fs/lustre/health_check": {(Health.UNHEALTHY, "client: /sys/fs/lustre/health_check is not there: the module lustre is not loaded")},
    "/sys/fs/lustre/jobid_var": WELL,
    "/sys/fs/lustre/osc/scratch-OST0000-osc-ffff888100000034/active": WELL,
    "/sys/kernel/debug/lustre/osc/scratch-OST0000-osc-ffff888100000034/import": WELL,
}


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_is_missing(rig: Make, path: str) -> None:
    one = rig(T1, tree="lustre-2.15")
    one.host.remove(path)
    assert one.health() == FILES[path]


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("text", ["", "\0\1\2\ufffd", "x" * (1 << 20), "state:", "\n\n\n"], ids=["empty", "garbage", "1 MB", "half", "blank"])
def test_a_file_with_nonsense_loses_no_device(rig: Make, path: str, text: str) -> None:
    one = rig(T1, tree="lustre-2.15")
    one.host.write(path, text)
    devices = one.look()
    assert len(devices) == 4
    well = path.endswith(("jobid_var", "active"))
    assert {device.health for device in devices} <= ({Health.HEALTHY} if well else {Health.UNHEALTHY, Health.UNKNOWN})
    assert all(len(device.cause) < 200 for device in devices)
    if path.endswith("jobid_var"):
        assert {device.enforcement for device in devices} == {Enforcement.NONE}


@pytest.mark.parametrize("reason", ["Device or resource busy", "Input/output error"])
@pytest.mark.parametrize("path", FILES)
def test_a_file_that_cannot_be_read_makes_nothing_healthy(rig: Make, monkeypatch: pytest.MonkeyPatch, path: str, reason: str) -> None:
    from deviceplugin import sysfs

    real = sysfs.read_many
    monkeypatch.setattr(
        sysfs, "read_many", lambda host, paths: [SysfsError(p, reason) if p == path else f for p, f in zip(paths, real(host, paths), strict=True)]
    )
    one = rig(T1, tree="lustre-2.15")
    (verdict,) = one.health()
    if path.endswith(("jobid_var", "active")):
        assert verdict == (Health.HEALTHY, "")
    else:
        assert verdict == (Health.UNKNOWN, f"read: {path} cannot be read: {reason}")


def test_imports_that_are_not_ours_to_see_are_no_fault(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As debugfs is under the kernel's lockdown."""
    from deviceplugin import sysfs

    real = sysfs.read_many
    monkeypatch.setattr(
        sysfs,
        "read_many",
        lambda host, paths: [
            SysfsError(p, "Operation not permitted") if p.endswith("import") else f for p, f in zip(paths, real(host, paths), strict=True)
        ],
    )
    assert rig(T0, tree="lustre-2.15").health() == WELL


def test_without_a_mount_table_discovery_fails_as_a_whole(rig: Make) -> None:
    """The framework then keeps what it knew, and after two minutes trusts none of it."""
    one = rig(T0, tree="lustre-2.15")
    one.host.remove("/proc/1/mountinfo")
    with pytest.raises(SysfsError, match="/proc/1/mountinfo cannot be read: No such file"):
        one.look()


@pytest.mark.parametrize("text", ["", "garbage\n" * 1000, "\xff\xfe\n", "80 25 0:52 / /mnt/scratch rw - lustre\n", "x" * (1 << 20)])
def test_a_mount_table_of_nonsense_has_no_mounts(rig: Make, text: str) -> None:
    one = rig(T0, tree="lustre-2.15")
    one.host.write("/proc/1/mountinfo", text)
    assert one.health() == {(Health.UNHEALTHY, "mount: /mnt/scratch is not mounted")}
