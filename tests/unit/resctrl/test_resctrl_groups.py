# SPDX-License-Identifier: Apache-2.0
"""What the rules cannot try on every machine: particular masks, numbers of tasks in other namespaces, counters, and RMIDs in limbo."""

from __future__ import annotations

import errno
import itertools
from dataclasses import replace

import pytest

from deviceplugin.testing.resctrl import SCENARIOS, Caller, SimResctrl, last_status, schemata, set_values, take, widen, wipe

SKYLAKE = SCENARIOS["skylake"]


def sim_of(name: str, **changes: object) -> SimResctrl:
    return SimResctrl(replace(SCENARIOS[name], **changes))  # type: ignore[arg-type]


def refused(sim: SimResctrl, path: str, text: str) -> str:
    """The status after a write that is refused."""
    with pytest.raises(OSError, match=r"Errno"):
        sim.write(path, text.encode())
    return last_status(sim)


def pids(sim: SimResctrl, group: str, caller: Caller | None = None) -> list[int]:
    return list(map(int, sim.read(f"{group}/tasks".lstrip("/"), *([caller] if caller else [])).split()))


def test_a_group_without_room_for_its_first_mask_is_not_made() -> None:
    times = itertools.count(0.0, 10.0)
    sim = SimResctrl(replace(SCENARIOS["haswell"], closids=3, rmids=4), clock=lambda: next(times))
    for domain in (0, 1):
        set_values(sim, "", "L3", {domain: 0xC0000})
    take(sim, "other", {0: 0x3FFFE, 1: 0x3FFFE}, mode="exclusive")
    for _ in range(5):  # the class of service and the RMID are given back
        with pytest.raises(OSError, match="No space left") as raised:
            sim.mkdir("new")  # bit 0 alone comes first, and two are needed
        assert (raised.value.errno, last_status(sim)) == (errno.ENOSPC, "No space on L3:0")
    sim.write("other/mode", b"shareable\n")
    sim.mkdir("new")
    assert schemata(sim, "new") == {"L3": {0: 0xFFFFF, 1: 0xFFFFF}}


def test_the_default_is_the_lowest_run_where_the_hardware_s_ways_are_apart() -> None:
    sim = SimResctrl(SCENARIOS["spr20"])
    for domain in (0, 1):
        set_values(sim, "", "L3", {domain: 0xC0000})
    take(sim, "other", {0: 0x3FFFE, 1: 0x3FFFE}, mode="exclusive")
    sim.mkdir("new")
    assert schemata(sim, "new")["L3"] == {0: 1, 1: 1}


def test_the_first_run_must_be_long_enough_where_masks_may_have_gaps() -> None:
    sim = sim_of("haswell", sparse=True)
    assert refused(sim, "schemata", "L3:0=1e\n L3:1=19\n".replace(" ", "")) == "Need at least 2 bits in the mask"
    sim.write("schemata", b"L3:0=19800\n")


def test_a_zero_mask_is_one_where_none_is_needed() -> None:
    sim = SimResctrl(SCENARIOS["amd"])
    sim.mkdir("a")
    sim.write("a/schemata", b"L3:23=0\n")
    assert schemata(sim, "a")["L3"][23] == 0
    assert sim.read("a/size").decode().rstrip().endswith(";23=0")


def test_code_and_data_of_different_groups_clash_when_one_is_exclusive() -> None:
    sim = sim_of("cdp", shareable=0)
    for schema in ("L3CODE", "L3DATA"):
        set_values(sim, "", schema, {0: 0x7F0, 1: 0x7F0})
    sim.mkdir("a")
    for schema, mask in (("L3CODE", 1), ("L3DATA", 2)):
        set_values(sim, "a", schema, {0: mask, 1: mask})
    sim.write("a/mode", b"exclusive\n")
    sim.mkdir("b")
    assert schemata(sim, "b") == {"MB": {0: 100, 1: 100}, "L3DATA": {0: 0x7FC, 1: 0x7FC}, "L3CODE": {0: 0x7FC, 1: 0x7FC}}
    for schema in ("L3CODE", "L3DATA"):
        assert refused(sim, "b/schemata", f"{schema}:0=1\n") == "Overlaps with exclusive group"
    assert refused(sim, "a/schemata", "L3DATA:0=4\n") == "Overlaps with other group"
    assert refused(sim, "a/mode", "pseudo-locksetup\n") == "CDP enabled"


def test_a_group_s_own_code_and_data_do_not_clash() -> None:
    sim = sim_of("cdp", shareable=0)
    for schema in ("L3CODE", "L3DATA"):
        set_values(sim, "", schema, {0: 0x7F0, 1: 0x7F0})
        sim.mkdir("a") if schema == "L3CODE" else None
        set_values(sim, "a", schema, {0: 0xF, 1: 0xF})
    sim.write("a/mode", b"exclusive\n")
    assert sim.read("info/L3CODE/bit_usage") == b"0=SSSSSSSEEEE;1=SSSSSSSEEEE\n"


def test_a_group_with_the_hardware_s_ways_is_never_exclusive() -> None:
    sim = SimResctrl(SKYLAKE)
    set_values(sim, "", "L3", {0: 0x0F, 1: 0x0F})
    sim.mkdir("a")
    set_values(sim, "a", "L3", {0: 0x1F0, 1: 0x3F0})
    assert refused(sim, "a/mode", "exclusive\n") == "Schemata overlaps"
    set_values(sim, "a", "L3", {1: 0x1F0})
    sim.write("a/mode", b"exclusive\n")
    assert refused(sim, "a/schemata", "L3:1=3f0\n") == "Overlaps with other group"
    assert sim.read("info/L3/bit_usage") == b"0=HHEEEEESSSS;1=HHEEEEESSSS\n"


def test_bandwidth_has_32_bits() -> None:
    sim = SimResctrl(SKYLAKE, mounted=False)
    sim.mount("mba_MBps")
    assert refused(sim, "schemata", f"MB:0={1 << 32}\n") == f"Invalid MB value {1 << 32}"
    sim.write("schemata", b"MB:0=4294967294\n")


def test_pseudo_locking_is_refused() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    assert refused(sim, "a/mode", "pseudo-locksetup\n") == "Pseudo-locking not supported"


def test_without_l3_allocation_there_is_memory_bandwidth_alone() -> None:
    sim = SimResctrl(SCENARIOS["no_l3"])
    assert sorted(sim.list("info")) == ["MB", "last_cmd_status"]
    sim.mkdir("a")
    assert refused(sim, "a/schemata", "L3:0=1\n") == "Unknown or unsupported resource name 'L3'"
    assert refused(sim, "a/mode", "exclusive\n") == "Cannot be exclusive without CAT/CDP"
    with pytest.raises(PermissionError):
        sim.mkdir("info/x")


def test_the_cpu_pairs_the_ways_of_ddio_and_the_file_does_not_show_it() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    set_values(sim, "a", "L3", {0: 0x400, 1: 0x0F0})
    assert schemata(sim, "a")["L3"] == {0: 0x400, 1: 0x0F0}
    assert [sim.effective("a", domain) for domain in (0, 1)] == [0x600, 0x0F0]


def test_a_status_is_cut_at_its_buffer() -> None:
    sim = SimResctrl(SKYLAKE)
    refused(sim, "schemata", f"L3:0={'z' * 600}\n")
    assert len(sim.read("info/last_cmd_status")) == 511


def test_tasks_have_other_numbers_in_a_container_and_the_host_s_are_not_seen() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    outside, inside = sim.spawn(), sim.spawn(namespace="pod")
    child = sim.spawn(inside)
    for pid in (outside, inside, child):
        sim.write("a/tasks", f"{pid}\n".encode())
    pod = sim.seen_by(Caller("pod", inside))
    assert pids(sim, "a") == [outside, inside, child]
    assert pod.read("a/tasks") == b"1\n2\n"
    assert sim.seen_by(Caller("another", outside)).read("a/tasks") == b""
    assert sim.pid_in("pod", child) == 2
    with pytest.raises(ProcessLookupError):
        pod.write("tasks", f"{outside}\n".encode())
    assert last_status(sim) == f"No task {outside}\nError while processing task {outside}"
    pod.write("tasks", b"2\n")
    assert pids(sim, "a") == [outside, inside]


def test_zero_is_whoever_writes() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    me = sim.spawn(pid=4321)
    sim.seen_by(Caller(pid=me)).write("a/tasks", b"0\n")
    assert pids(sim, "a") == [4321]


def test_a_thread_is_moved_alone_and_ends_with_its_process() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    process = sim.spawn()
    thread = sim.spawn(process, thread=True)
    sim.write("a/tasks", f"{thread}\n".encode())
    assert pids(sim, "a") == [thread]
    assert process in pids(sim, "")
    sim.exit(process)
    assert pids(sim, "a") == []


def test_numbers_of_tasks_may_be_octal_or_hexadecimal() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    for pid, text in ((4096, "0x1000"), (64, "0100"), (77, " 77 ")):
        sim.spawn(pid=pid)
        sim.write("a/tasks", text.encode())
    assert pids(sim, "a") == [64, 77, 4096]


def test_old_kernels_move_no_group() -> None:
    sim = SimResctrl(replace(SKYLAKE, kernel=(6, 4)))
    sim.mkdir("mon_groups/m")
    with pytest.raises(PermissionError):
        sim.rename("mon_groups/m", "mon_groups/n")


def test_old_kernels_take_one_task_and_say_nothing_of_a_wrong_one() -> None:
    sim = SimResctrl(replace(SKYLAKE, kernel=(6, 6)))
    one, two = sim.spawn(), sim.spawn()
    sim.mkdir("a")
    assert refused(sim, "a/tasks", "99999") == "No task 99999"
    for wrong in (f"{one},{two}", "", "-1"):
        assert refused(sim, "a/tasks", wrong) == "No task 99999"
    assert pids(sim, "a") == []


def test_proc_says_which_group_a_task_is_in() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    sim.mkdir("a/mon_groups/m")
    pid = sim.spawn()
    assert sim.cpu_resctrl_groups(pid) == "res:/\nmon:\n"
    sim.write("a/tasks", f"{pid}\n".encode())
    assert sim.cpu_resctrl_groups(pid) == "res:a\nmon:\n"
    sim.write("a/mon_groups/m/tasks", f"{pid}\n".encode())
    assert sim.cpu_resctrl_groups(pid) == "res:a\nmon:m\n"
    sim.umount()
    assert sim.cpu_resctrl_groups(pid) == "res:\nmon:\n"


def test_a_group_counts_what_its_monitors_count() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    sim.mkdir("a/mon_groups/m")
    sim.count("a", 0, "llc_occupancy", 65536)
    sim.count("a/mon_groups/m", 0, "llc_occupancy", 131072)
    assert sim.read("a/mon_groups/m/mon_data/mon_L3_00/llc_occupancy") == b"131072\n"
    assert sim.read("a/mon_data/mon_L3_00/llc_occupancy") == b"196608\n"
    assert sim.read("a/mon_data/mon_L3_01/llc_occupancy") == b"0\n"


def test_clusters_are_counted_by_node_and_summed_by_cache() -> None:
    sim = SimResctrl(SCENARIOS["snc"])
    assert sorted(sim.list("mon_data")) == ["mon_L3_00", "mon_L3_01"]
    assert {"mon_sub_L3_02", "mon_sub_L3_03"} <= set(sim.list("mon_data/mon_L3_01"))
    for node, amount in ((0, 1), (1, 2), (2, 4), (3, 8)):
        sim.count("", node, "mbm_total_bytes", amount)
    assert sim.read("mon_data/mon_L3_00/mbm_total_bytes") == b"3\n"
    assert sim.read("mon_data/mon_L3_01/mbm_total_bytes") == b"12\n"
    assert sim.read("mon_data/mon_L3_01/mon_sub_L3_03/mbm_total_bytes") == b"8\n"


def test_rmids_run_out_and_rest_before_they_come_back() -> None:
    now = 0.0
    sim = SimResctrl(replace(SKYLAKE, rmids=3), clock=lambda: now)
    sim.mkdir("a")
    sim.mkdir("mon_groups/m")
    with pytest.raises(OSError, match="No space left"):
        sim.mkdir("b")
    assert last_status(sim) == "Out of RMIDs"
    sim.count("a", 1, "llc_occupancy", 1 << 24)
    sim.rmdir("a")
    with pytest.raises(OSError, match="busy") as raised:
        sim.mkdir("b")
    assert (raised.value.errno, last_status(sim)) == (errno.EBUSY, "Out of RMIDs")
    now = 1.0
    with pytest.raises(OSError, match="busy"):
        sim.mkdir("b")  # its lines are still in the cache of socket 1
    sim.write("info/L3_MON/max_threshold_occupancy", f"{25 << 20}\n".encode())
    sim.mkdir("b")
    with pytest.raises(OSError, match="Invalid"):
        sim.write("info/L3_MON/max_threshold_occupancy", b"99999999\n")


def test_an_rmid_in_limbo_does_not_wait_for_a_socket_that_is_gone() -> None:
    sim = SimResctrl(replace(SKYLAKE, rmids=2), clock=lambda: 0.0)
    sim.mkdir("a")
    sim.rmdir("a")
    sim.offline(0, 1, 2, 3)
    with pytest.raises(OSError, match="busy"):
        sim.mkdir("a")
    sim.bring_online(0, 1, 2, 3)
    sim.offline(4, 5, 6, 7)
    sim.mkdir("a")


def test_cpus_that_monitors_have_are_their_parent_s() -> None:
    sim = SimResctrl(SKYLAKE)
    sim.mkdir("a")
    sim.mkdir("a/mon_groups/m")
    sim.write("a/cpus_list", b"1-3,5\n")
    assert (sim.read("a/cpus"), sim.read("cpus"), sim.read("a/cpus_list")) == (b"2e\n", b"d1\n", b"1-3,5\n")
    refused(sim, "a/mon_groups/m/cpus_list", "0\n")
    assert last_status(sim) == "Can only add CPUs to mongroup that belong to parent"
    sim.write("a/mon_groups/m/cpus", b"6\n")
    with pytest.raises(PermissionError):
        sim.rename("a/mon_groups/m", "mon_groups/m")
    assert last_status(sim) == "Cannot move a MON group that monitors CPUs"
    sim.mkdir("a/mon_groups/o")
    with pytest.raises(FileExistsError):
        sim.rename("a/mon_groups/m", "a/mon_groups/o")
    sim.rename("a/mon_groups/m", "a/mon_groups/n")
    sim.write("a/mon_groups/o/cpus_list", b"2\n")  # takes it from its sibling
    assert (sim.read("a/mon_groups/n/cpus_list"), sim.read("a/mon_groups/o/cpus_list")) == (b"1\n", b"2\n")
    sim.write("a/cpus_list", b"1-3,5-6\n")  # the parent's new ones are nobody's below it
    assert (sim.read("a/mon_groups/n/cpus_list"), sim.read("a/mon_groups/o/cpus_list")) == (b"\n", b"\n")
    sim.write("a/mon_groups/n/cpus_list", b"5\n")
    sim.write("cpus_list", b"0-7\n")
    assert (sim.read("a/cpus_list"), sim.read("a/mon_groups/n/cpus_list")) == (b"\n", b"\n")


def test_others_wipe_widen_and_take() -> None:
    sim = SimResctrl(SKYLAKE)
    set_values(sim, "", "L3", {0: 0x600})
    sim.mkdir("mine")
    pid = sim.spawn()
    sim.write("mine/tasks", f"{pid}\n".encode())
    take(sim, "theirs", {0: 0x3})
    assert schemata(sim, "theirs")["L3"] == {0: 0x3, 1: 0x7FF}
    assert wipe(sim, keep=["theirs"]) == ["mine"]
    assert pid in pids(sim, "")
    widen(sim)
    assert schemata(sim)["L3"] == {0: 0x7FF, 1: 0x7FF}
    with pytest.raises(OSError, match="Invalid"):
        take(sim, "alone", {0: 0x1, 1: 0x1}, mode="exclusive")
    assert last_status(sim) == "Schemata overlaps"
