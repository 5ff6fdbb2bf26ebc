# SPDX-License-Identifier: Apache-2.0
"""What a container gets, to the byte; private mounts; and what is said of it once it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deviceplugin import Mount
from deviceplugin.plugins.pfs import SlotDirectoryError
from deviceplugin.plugins.pfs.commands import CommandFailed
from deviceplugin.plugins.pfs.private import PrivateMountError
from tests.unit.pfs.rig import T0, T1, T2, T3, T4, Rig, config

Make = Callable[..., Rig]
SLOT = "/var/lib/deviceplugin/pfs/scratch/slot-"
NFS = {**T3, "type": "other", "privateMount": {"source": "server:/export", "fstype": "nfs4", "options": "nosharecache,nconnect={slots}"}}
BEEGFS = {**T3, "type": "beegfs", "privateMount": {"source": "beegfs_nodev", "inFlight": 3}}


@pytest.mark.parametrize(
    ("filesystem", "slots", "envs", "mounts"),
    [
        (T0, (2,), {"SLOTS": "pfs.scratch.02", "ENFORCEMENT": "T0"}, []),
        (
            {**T0, "containerPath": "/data", "readOnly": True},
            (0, 1),
            {"SLOTS": "pfs.scratch.00,pfs.scratch.01", "ENFORCEMENT": "T0", "PATH": "/data"},
            [Mount("/mnt/scratch", "/data", True)],
        ),
        (
            T1,
            (1, 3),
            {"SLOTS": "pfs.scratch.01,pfs.scratch.03", "ENFORCEMENT": "T1", "BANDWIDTH": "2000000000", "JOBID": "kdp2.node1.1"},
            [],
        ),
        (
            T2,
            (1, 3),
            {"SLOTS": "pfs.scratch.01,pfs.scratch.03", "ENFORCEMENT": "T2", "PATH": "/pfs/scratch/0:/pfs/scratch/1"},
            [Mount("/mnt/scratch/slots/01", "/pfs/scratch/0", False), Mount("/mnt/scratch/slots/03", "/pfs/scratch/1", False)],
        ),
        (
            T3,
            (2, 3),
            {"SLOTS": "pfs.scratch.02,pfs.scratch.03", "ENFORCEMENT": "T3", "PATH": "/pfs/scratch"},
            [Mount(f"{SLOT}02", "/pfs/scratch", False)],
        ),
        ({**T4, "bandwidthPerSlot": 5}, (0,), {"SLOTS": "pfs.scratch.00", "ENFORCEMENT": "T4", "BANDWIDTH": "5"}, []),
    ],
)
def test_contents(rig: Make, filesystem: dict[str, Any], slots: tuple[int, ...], envs: dict[str, str], mounts: list[Mount]) -> None:
    one = rig(filesystem, tree="gpfs" if filesystem is T2 else "lustre-2.15")
    devices = [device for device in one.look() if device.attributes["slot"] in slots]
    edits = one.plugin.allocate(devices)
    names = {key: "KDP_PFS_JOBID" if key == "JOBID" else f"KDP_PFS_SCRATCH_{key}" for key in envs}
    assert dict(edits.envs) == {names[key]: value for key, value in envs.items()}
    assert list(edits.mounts) == mounts
    assert (edits.nodes, edits.cdi, dict(edits.annotations)) == ((), (), {})
    assert one.plugin.allocate(devices[::-1]) == edits


def test_two_file_systems_in_one_container_do_not_clash(rig: Make) -> None:
    one = rig(T1, {**T3, "name": "own-data"}, tree="lustre-2.15")
    first, second = (one.plugin.allocate([device]) for device in one.look() if device.attributes["slot"] == 0)
    assert not set(first.envs) & set(second.envs)
    assert "KDP_PFS_OWN_DATA_SLOTS" in second.envs


def test_without_our_jobid_var_an_allocation_says_t0(rig: Make) -> None:
    one = rig(T1, tree="lustre-2.10")
    assert one.plugin.allocate(one.look()[:1]).envs["KDP_PFS_SCRATCH_ENFORCEMENT"] == "T0"


# T3: private mounts


def test_a_private_mount_is_made_once_and_has_the_limits_of_all_its_slots(rig: Make) -> None:
    one = rig({**T3, "privateMount": {"source": "10.0.0.1@tcp:/scratch", "inFlight": 2, "dirty": "8Mi", "options": "flock"}}, tree="lustre-2.15")
    devices, _ = one.take(1, 2)
    device = one.pfs.mounted(SLOT)[f"{SLOT}01"]
    assert one.pfs.commands == [
        ("mount", "-t", "lustre", "-o", "flock", "--", "10.0.0.1@tcp:/scratch", f"{SLOT}01"),
        ("lfs", "getname", f"{SLOT}01"),
        (
            "lctl",
            "set_param",
            f"osc.scratch-OST*-osc-{one.pfs.instance(device)}.max_dirty_mb=16",
            f"osc.scratch-OST*-osc-{one.pfs.instance(device)}.max_rpcs_in_flight=4",
        ),
    ]
    assert one.pfs.settings(device, "max_rpcs_in_flight") == {"4"}
    assert one.pfs.settings("0:52", "max_rpcs_in_flight") == {"8"}, "the node's own mount keeps its settings"
    one.pfs.commands.clear()
    one.plugin.prepare(devices)
    assert one.pfs.commands == [], "a second time there is nothing to do"
    assert one.pfs.mounted(SLOT) == {f"{SLOT}01": device}


def test_the_next_container_in_a_slot_gets_its_own_limit(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    one.take(0, 1, 2)
    one.take(0)
    (device,) = one.pfs.mounted(SLOT).values()
    assert one.pfs.settings(device, "max_rpcs_in_flight") == {"2"}


def test_beegfs_gets_a_configuration_of_its_own_and_is_mounted_anew_for_another_limit(rig: Make) -> None:
    one = rig(BEEGFS, tree="beegfs-7")
    one.take(0)
    assert one.pfs.commands == [("mount", "-t", "beegfs", "-o", f"cfgFile={SLOT}00.conf", "--", "beegfs_nodev", f"{SLOT}00")]
    text = one.host.read(f"{SLOT}00.conf")
    assert "sysMgmtdHost                  = mgmt01" in text
    assert text.count("connMaxInternodeNum") == 1
    assert "connMaxInternodeNum = 3\n" in text
    one.pfs.commands.clear()
    one.take(0)
    assert one.pfs.commands == []
    one.take(0, 1)
    assert [argv[0] for argv in one.pfs.commands] == ["umount", "mount"]
    assert "connMaxInternodeNum = 6\n" in one.host.read(f"{SLOT}00.conf")


def test_beegfs_before_8_gets_a_port_for_each_slot(rig: Make) -> None:
    one = rig({**BEEGFS, "privateMount": {"source": "beegfs_nodev", "clientPort": 8100}}, tree="beegfs-7")
    one.take(2)
    assert "connClientPortUDP = 8102\n" in one.host.read(f"{SLOT}02.conf")


def test_others_are_mounted_with_their_options(rig: Make) -> None:
    one = rig(NFS, tree="nfs")
    one.take(0, 1)
    one.take(0, 1)
    assert one.pfs.commands == [("mount", "-t", "nfs4", "-o", "nosharecache,nconnect=2", "--", "server:/export", f"{SLOT}00")]
    one.take(0)
    assert [argv[0] for argv in one.pfs.commands] == ["mount", "umount", "mount"]


def test_a_mount_of_something_else_in_the_place_is_replaced(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    one.pfs.mount("lustre", "10.0.0.1@tcp:/other", f"{SLOT}00")
    one.take(0)
    assert [argv[0] for argv in one.pfs.commands[:2]] == ["umount", "mount"]
    assert len(one.pfs.mounted(SLOT)) == 1


def test_a_mount_that_fails_keeps_the_container_from_starting(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    one.pfs.failing["mount"] = "mount.lustre: mount 10.0.0.1@tcp:/scratch failed: Input/output error"
    with pytest.raises(CommandFailed, match="Input/output error"):
        one.take(0)
    assert one.pfs.mounted(SLOT) == {}


def test_a_mount_that_does_not_arrive_where_the_node_looks_is_said(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig(T3, tree="lustre-2.15")
    monkeypatch.setattr(one.pfs, "_run_mount", lambda _argv: "")
    with pytest.raises(PrivateMountError, match="is not in /proc/1/mountinfo: is nodeProcess a process of the node's own"):
        one.take(0)


def test_a_limit_that_does_not_take_keeps_the_container_from_starting(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig(T3, tree="lustre-2.15")
    monkeypatch.setattr(one.pfs, "_run_lctl", lambda _argv: "")
    with pytest.raises(PrivateMountError, match="max_rpcs_in_flight is '8', not 2"):
        one.take(0)


def test_a_private_mount_that_hangs_keeps_the_next_container_from_starting(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    one.take(0)
    one.pfs.hung.add(f"{SLOT}00")
    with pytest.raises(PrivateMountError, match="there and useless: hang:"):
        one.take(0)


def test_mounts_go_when_nobody_holds_or_sees_them_and_never_before(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    first, edits = one.take(0)
    one.run(70, edits)
    one.restart()  # what was given out recently is forgotten; the mount table is not
    one.look()
    one.plugin._tidy(())
    assert f"{SLOT}00" in one.pfs.mounted(SLOT), "the kubelet has not said yet who holds what"
    one.later(first)
    assert f"{SLOT}00" in one.pfs.mounted(SLOT)
    one.later()
    assert f"{SLOT}00" in one.pfs.mounted(SLOT), "an init container, which the kubelet leaves out, still has it"
    one.pfs.end(70)
    one.pfs.failing["umount"] = "target is busy."
    one.verdicts()
    assert f"{SLOT}00" in one.pfs.mounted(SLOT)
    one.pfs.failing.clear()
    one.verdicts()
    assert one.pfs.mounted(SLOT) == {}


def test_a_container_that_is_just_starting_keeps_its_mount(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    one.take(0)
    one.verdicts()  # the kubelet's list does not have it yet
    assert f"{SLOT}00" in one.pfs.mounted(SLOT)
    one.later()
    assert one.pfs.mounted(SLOT) == {}


def test_a_mount_goes_whose_slot_is_held_by_a_container_with_another_mount(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    one.take(1)
    held, edits = one.take(0, 1)
    one.run(70, edits)
    one.later(held)
    assert set(one.pfs.mounted(SLOT)) == {f"{SLOT}00"}


def test_uninstall_says_and_removes_all_that_is_left(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    held, _ = one.take(0)
    one.verdicts(held)
    said = list(one.plugin.uninstall(False))
    assert said == [
        f"mount {SLOT}00",
        f"directory {SLOT}00",
        "file /var/lib/deviceplugin/pfs/scratch/slots.json",
        "directory /var/lib/deviceplugin/pfs/scratch",
    ]
    assert list(one.plugin.uninstall(True)) == said
    assert list(one.plugin.uninstall(True)) == []
    assert one.pfs.mounted(SLOT) == {}


# Verdicts


@pytest.mark.parametrize("tier", [T0, T4])
def test_of_what_is_only_counted_nothing_is_claimed(rig: Make, tier: dict[str, Any]) -> None:
    one = rig(tier, tree="lustre-2.15")
    held, edits = one.take(0)
    one.run(70, edits)
    enforced, detail = one.verdict(held)
    assert enforced is None
    assert "nothing limits" in detail


def test_a_tag_is_enforced_while_all_processes_carry_it_and_the_client_reads_it(rig: Make) -> None:
    one = rig(T1, tree="lustre-2.15")
    held, edits = one.take(0, 2)
    assert one.verdict(held) == (None, "no process of it is to be seen")
    one.run(70, edits)
    one.pfs.process(71, {}, group="/kubepods/other", mounts={})
    assert one.verdict(held) == (True, "all 1 processes carry kdp2.node1.0; whether the servers have its rule cannot be seen from here")
    one.run(72, edits, group="/kubepods/70", drop=["KDP_PFS_JOBID"])
    assert one.verdict(held) == (False, "process 72 runs without KDP_PFS_JOBID: something in the container has taken it away")
    one.pfs.end(72)
    one.pfs.process(73, {}, group="/kubepods/70/nested", mounts={})
    assert one.verdict(held)[0] is False, "a group below the container's is the container's"
    one.pfs.end(73)
    one.host.write("/sys/fs/lustre/jobid_var", "disable\n")
    assert one.verdict(held) == (
        False,
        "jobid_var is disable, not KDP_PFS_JOBID: type lctl set_param jobid_var=KDP_PFS_JOBID on the node",
    )
    one.host.write("/sys/fs/lustre/jobid_var", "KDP_PFS_JOBID\n")
    assert one.verdict(held)[0] is True


def test_a_pod_that_sets_the_tag_itself_is_found(rig: Make) -> None:
    one = rig(T1, tree="lustre-2.15")
    held, edits = one.take(1)
    one.pfs.process(70, {**edits.envs, "KDP_PFS_JOBID": "kdp4.node1.0"}, group="/kubepods/70", mounts={})
    assert one.verdict(held) == (False, "process 70 runs with KDP_PFS_JOBID='kdp4.node1.0', not kdp1.node1.1: its pod sets it")


def test_two_containers_that_claim_one_slot_are_found(rig: Make) -> None:
    one = rig(T1, tree="lustre-2.15")
    held, edits = one.take(1)
    one.run(70, edits)
    one.run(71, edits)
    assert one.verdict(held) == (False, "2 containers say that they hold pfs.scratch.01")


def test_a_private_mount_is_enforced_while_it_is_the_containers_only_way(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    held, edits = one.take(0, 1)
    one.run(70, edits)
    assert one.verdict(held) == (True, "")
    device = one.pfs.mounted(SLOT)[f"{SLOT}00"]
    one.pfs.run(["lctl", "set_param", "osc.*.max_rpcs_in_flight=256"], 1)
    assert one.verdict(held) == (True, "a limit was not as it should be and was set again")
    assert one.pfs.settings(device, "max_rpcs_in_flight") == {"4"}
    one.pfs.process(70, edits.envs, group="/kubepods/70", mounts={"/pfs/scratch": f"{SLOT}00", "/data": "/mnt/scratch"})
    assert one.verdict(held) == (False, "the container has another way to the file system, which is not limited: /data")
    one.pfs.process(70, edits.envs, group="/kubepods/70", mounts={})
    assert one.verdict(held) == (False, f"/pfs/scratch in the container is not the mount of its slots, {SLOT}00")
    one.pfs.unmount(f"{SLOT}00")
    assert one.verdict(held) == (False, f"{SLOT}00 is not mounted any more")


def test_what_is_heard_late_of_a_container_that_is_gone_does_not_touch_the_next(rig: Make) -> None:
    one = rig(T3, tree="lustre-2.15")
    gone, _ = one.take(0, 1, 2)
    _, edits = one.take(0)
    one.run(70, edits)
    assert one.verdict(gone) == (None, "another container is being started with its slots")
    (device,) = one.pfs.mounted(SLOT).values()
    assert one.pfs.settings(device, "max_rpcs_in_flight") == {"2"}


def test_a_limit_that_cannot_be_mended_is_not_enforced(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig(T3, tree="lustre-2.15")
    held, edits = one.take(0)
    one.run(70, edits)
    one.pfs.run(["lctl", "set_param", "osc.*.max_rpcs_in_flight=256"], 1)
    one.pfs.failing["lctl"] = "Permission denied"
    assert one.verdict(held) == (None, "cannot be verified: lctl failed: Permission denied")
    one.pfs.failing.clear()
    monkeypatch.setattr(one.pfs, "_run_lctl", lambda _argv: "")
    enforced, detail = one.verdict(held)
    assert enforced is False
    assert detail.endswith("max_rpcs_in_flight is '256', not 2")


def test_mounts_that_share_a_client_are_not_private(rig: Make) -> None:
    one = rig(NFS, tree="nfs")
    held, edits = one.take(0)
    one.run(70, edits)
    assert one.verdict(held) == (True, "")
    one.pfs.mount("nfs4", "server:/export", f"{SLOT}03", device=one.pfs.mounted(SLOT)[f"{SLOT}00"])
    enforced, detail = one.verdict(held)
    assert enforced is False
    assert f"is no client of its own: {SLOT}03 is the same one" in detail


def test_options_that_the_kernel_does_not_show_are_not_claimed(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig(NFS, tree="nfs")
    monkeypatch.setattr(one.pfs, "_run_mount", lambda argv: one.pfs.mount("nfs4", "server:/export", argv[-1], "nconnect=1"))
    held, edits = one.take(0)
    one.run(70, edits)
    assert one.verdict(held) == (None, "the mount is the container's own; the kernel does not show nosharecache")


def test_a_directory_is_enforced_while_the_container_sees_no_other(rig: Make) -> None:
    one = rig(T2, tree="gpfs")
    held, edits = one.take(1, 2)
    one.run(70, edits)
    assert one.verdict(held)[0] is True
    one.pfs.process(70, edits.envs, group="/kubepods/70", mounts={m.container_path: m.path for m in edits.mounts} | {"/all": "/mnt/scratch"})
    assert one.verdict(held) == (False, "the container has another way to the file system: /all")
    one.pfs.process(70, edits.envs, group="/kubepods/70", mounts={"/pfs/scratch/0": "/mnt/scratch/slots/01", "/pfs/scratch/1": "/mnt/scratch"})
    assert one.verdict(held) == (False, "/pfs/scratch/1 in the container is not /slots/02 of the file system")


def test_a_slots_directory_may_be_the_nodes_own(rig: Make) -> None:
    one = rig({**T2, "slotDirectory": "{node}/s{slot}"}, tree="gpfs")
    held, edits = one.take(1)
    assert [mount.path for mount in edits.mounts] == ["/mnt/scratch/node1/s01"]
    one.run(70, edits)
    assert one.verdict(held)[0] is True


def test_a_slots_directory_that_is_not_there_keeps_the_container_from_starting(rig: Make) -> None:
    one = rig(T2, tree="gpfs")
    one.pfs.absent.add("/mnt/scratch/slots/01")
    one.take(0)
    with pytest.raises(SlotDirectoryError, match="slots/01': No such file"):
        one.take(0, 1)


def test_without_the_nodes_processes_nothing_is_claimed(rig: Make) -> None:
    one = rig(T1, tree="lustre-2.15")
    held, _ = one.take(0)
    assert one.verdict(held)[0] is None


@pytest.mark.parametrize("text", ["", "\0\0\0", "=\0==\0", "x" * (1 << 20), "KDP_PFS_", "\xff"])
def test_odd_environments_belong_to_nobody(rig: Make, text: str) -> None:
    one = rig(T1, tree="lustre-2.15")
    held, edits = one.take(0)
    one.host.write("/proc/66/environ", text)
    one.host.write("/proc/66/cgroup", text)
    one.run(70, edits)
    assert one.verdict(held)[0] is True


# The number of slots


def test_the_file_that_holds_the_number_may_shrink_it_but_takes_no_slot_that_is_held(rig: Make) -> None:
    filesystem = {key: value for key, value in T0.items() if key != "slots"} | {"slotsFile": "/etc/pfs/slots"}
    one = rig(filesystem, tree="lustre-2.15")
    assert one.listed() == []
    assert "is not there, which is to hold the number of slots" in one.skipped()[0].reason
    one.host.write("/etc/pfs/slots", "6\n")
    assert one.listed() == [0, 1, 2, 3, 4, 5]
    held, _ = one.take(4)
    one.host.write("/etc/pfs/slots", "2\n")
    assert one.listed() == [0, 1, 2, 3, 4, 5], "nothing goes before the kubelet has said who holds what"
    one.verdicts(held)
    assert one.listed() == [0, 1, 2, 3, 4, 5], "nor while a pod may be there that its list does not have yet"
    assert one.later(held) == [0, 4]
    one.restart()
    one.host.write("/etc/pfs/slots", "1\n")
    assert one.listed() == [0, 4], "a new instance takes nothing away"
    one.verdicts()
    assert one.listed() == [0, 4], "nor when the kubelet, itself just started, has heard of no pod yet"
    assert one.later(held) == [4]
    one.clock.advance(3600)
    assert one.listed() == [4], "nor while the kubelet is down and says nothing"
    assert one.later() == [0]


def test_an_instance_that_hears_who_holds_what_before_its_first_look_forgets_no_slot(rig: Make) -> None:
    one = rig(T0, tree="lustre-2.15")
    held = one.look()
    one.verdicts(held[2:])
    one.config = config({**T0, "slots": 1})
    one.restart()
    one.verdicts(held[2:])
    assert one.listed() == [0, 1, 2, 3]
    assert one.later(held[2:]) == [2, 3]


@pytest.mark.parametrize("text", ["", "many", "-1", "1001", "5.0", "\u0665", "9" * 5000, "x" * (1 << 20)])
def test_nonsense_in_that_file_changes_nothing(rig: Make, text: str) -> None:
    filesystem = {key: value for key, value in T0.items() if key != "slots"} | {"slotsFile": "/etc/pfs/slots"}
    one = rig(filesystem, tree="lustre-2.15")
    one.host.write("/etc/pfs/slots", "2")
    assert one.listed() == [0, 1]
    one.host.write("/etc/pfs/slots", text)
    assert one.listed() == [0, 1]
    assert "must hold a number from 0 to 1000" in one.skipped()[0].reason


@pytest.mark.parametrize("text", ["", "{", "null", "[1, null, 2.5, true, -3, 99999]", "x" * 100_000])
def test_a_damaged_memory_loses_no_slot(rig: Make, text: str) -> None:
    one = rig(T0, tree="lustre-2.15")
    one.host.write("/var/lib/deviceplugin/pfs/scratch/slots.json", text)
    assert set(one.listed()) >= {0, 1, 2, 3} - {3}
    one.verdicts()
    assert len(one.listed()) == 4


def test_a_memory_that_cannot_be_written_is_said(rig: Make) -> None:
    one = rig(T0, tree="lustre-2.15")
    one.host.write("/var/lib/deviceplugin/pfs/scratch", "a file where the directory should be")
    one.look()
    one.verdicts()
    assert one.listed() == [0, 1, 2, 3]
    assert "slots.json cannot be written" in one.skipped()[0].reason
