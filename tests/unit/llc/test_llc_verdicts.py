# SPDX-License-Identifier: Apache-2.0
"""Whether a container is held to its ways is looked at, not assumed; and a container outside its group is moved there, but no other one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

import pytest

from deviceplugin import Allocation, Device
from deviceplugin.plugins.llc import membership
from tests.helpers.llc import CHECKPOINT, Node, allocation, look, picked, verdict

Make = Callable[..., Node]
GROUP = "kdp-llc.d0x3"


class Started:
    """A container with slots 0 and 1 whose runtime ignored the group, unless told otherwise."""

    def __init__(self, n: Node, *, joined: bool = False, envs: Mapping[str, str] | None = None, **process: str) -> None:
        self.node = n
        self.plugin = n.plugin()
        self.devices: dict[str, Device] = look(self.plugin)
        mine = picked(self.devices, "l3.0.00", "l3.0.01")
        self.envs = self.plugin.allocate(mine).envs
        self.plugin.prepare(mine)
        n.hold("pod", "main", ["l3.0.00", "l3.0.01"])
        self.pid = n.process("pod", "main", self.envs if envs is None else envs, group=GROUP if joined else "", **process)
        self.held: Allocation = allocation(self.devices, "pod", "main", "l3.0.00", "l3.0.01")

    def later(self, seconds: float = 6.0) -> tuple[bool | None, str]:
        verdict(self.plugin, self.held)
        self.node.now += seconds
        said = verdict(self.plugin, self.held)
        return said.enforced, said.detail


def test_container_in_its_group_is_enforced(node: Make) -> None:
    assert Started(node(), joined=True).later() == (True, "")


def test_container_outside_its_group_is_said_and_moved(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    n = node()
    one = Started(n)
    n.host.write(f"/proc/{one.pid}/task/{n.sim.spawn(one.pid, thread=True)}/comm", "app")
    child = n.process("pod", "main", {}, cgroup="/kubepods/burstable/poduid-pod/main/below")  # its environment is cleared
    assert one.later(4.0) == (None, "nothing runs in its group yet")
    enforced, detail = one.later()
    assert enforced is False
    assert detail.startswith(
        f"it runs outside its group {GROUP}: the runtime did not put it there, or the group was removed; its 3 threads were moved"
    )
    assert {n.group_of(pid) for pid in (one.pid, child)} == {GROUP}
    assert "container main of pod default/pod" in caplog.text
    assert one.later() == (True, "")


def test_without_repair_it_is_said_only(node: Make) -> None:
    n = node(repair=False)
    one = Started(n)
    enforced, detail = one.later()
    assert enforced is False
    assert "repair: true would move it" in detail
    assert n.group_of(one.pid) == "/"


def test_container_that_does_not_run_is_nobodys_fault(node: Make) -> None:
    n = node()
    one = Started(n)
    n.process("pod", "pause", {}, comm="pause")
    n.end(one.pid)
    assert one.later() == (None, "no process of it runs")


def test_other_pod_that_names_the_group_does_not_get_in(node: Make) -> None:
    n = node()
    one = Started(n)
    n.end(one.pid)
    thief = n.process("other", "main", {"KDP_LLC_GROUP": GROUP})
    lookalike = n.process("x", "y", {"KDP_LLC_GROUP": GROUP}, cgroup="/kubepods/poduid-pod-and-more/main")
    inside = n.process("x", "y", {"KDP_LLC_GROUP": GROUP}, cgroup="/user.slice/poduid-pod")  # not below a pod, but named as one
    assert one.later() == (None, "no process of it runs")
    assert {n.group_of(pid) for pid in (thief, lookalike, inside)} == {"/"}


def test_pod_that_hides_its_environment_is_not_believed(node: Make) -> None:
    one = Started(node(), envs={"KDP_LLC_GROUP": "kdp-llc.d1x1"})
    enforced, detail = one.later()
    assert enforced is False
    assert f"of the pod's processes {one.pid} none shows KDP_LLC_GROUP" in detail


def test_only_the_container_of_the_pod_that_holds_the_slots_is_moved(node: Make) -> None:
    n = node()
    one = Started(n)
    beside = n.process("pod", "sidecar", {})
    assert one.later()[0] is False
    assert n.group_of(one.pid) == GROUP
    assert n.group_of(beside) == "/"


def test_pods_of_systemd_are_found_by_their_slices(node: Make) -> None:
    n = node()
    one = Started(n, cgroup="/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poduid_pod.slice/cri-containerd-ab12.scope")
    assert one.later()[0] is False
    assert n.group_of(one.pid) == GROUP


@pytest.mark.parametrize(
    "content", [None, "", "garbage", "[]", '{"Data": null}', '{"Data": {"PodDeviceEntries": null}}', '{"Data": {"PodDeviceEntries": [{}]}}']
)
def test_checkpoint_that_tells_nothing(node: Make, content: str | None) -> None:
    n = node()
    one = Started(n)
    if content is None:
        import os

        os.unlink(n.host.path(CHECKPOINT))
    else:
        n.host.write(CHECKPOINT, content)
    enforced, detail = one.later()
    assert enforced is False
    assert "checkpoint /var/lib/kubelet/device-plugins/kubelet_internal_checkpoint does not tell its pod" in detail
    assert n.group_of(one.pid) == "/"


def test_in_another_pid_namespace_nothing_is_judged_moved_or_removed(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    n = node()
    one = Started(n, joined=True)
    n.files.namespace = "ours"
    n.host.link("/proc/self/ns/pid", "pid:[4026532999]")
    for _ in range(4):
        assert one.later(500.0) == (None, "who is in a group can be seen only in the host's PID namespace: set hostPID: true")
        list(one.plugin.reconcile([]))
    assert n.groups == [GROUP]
    look(one.plugin)
    look(one.plugin)
    assert sum("set hostPID: true" in record.message for record in caplog.records) == 1


def test_container_that_may_run_elsewhere_is_told(node: Make) -> None:
    n = node()
    enforced, detail = Started(n, joined=True, cpus="0-7").later()
    assert enforced is True
    assert detail == "not aligned: it may run on CPUs 0-7, and its slots are of caches 0; elsewhere it has the shared ways"


@pytest.mark.parametrize("content", ["", "Name:\tx\n", "Cpus_allowed_list:\tgarbage\n", "\0" * 100])
def test_container_whose_cpus_cannot_be_seen_is_enforced_all_the_same(node: Make, content: str) -> None:
    n = node()
    one = Started(n, joined=True)
    n.host.write(f"/proc/{one.pid}/status", content)
    assert one.later() == (True, "")


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, errno.EACCES])
def test_tasks_that_cannot_be_read(node: Make, number: int) -> None:
    n = node()
    one = Started(n, joined=True)
    n.files.errors["read", f"{GROUP}/tasks"] = number
    enforced, detail = one.later()
    assert enforced is False
    assert f"{GROUP}/tasks cannot be read" in detail
    assert n.groups == [GROUP]


@pytest.mark.parametrize("content", [b"garbage\n", b"-1\n", b"1\n\0"])
def test_tasks_that_make_no_sense(node: Make, content: bytes) -> None:
    n = node()
    one = Started(n, joined=True)
    n.files.contents[f"{GROUP}/tasks"] = content
    assert "which is not a list of thread ids" in one.later()[1]


def test_a_million_bytes_of_tasks_are_no_trouble(node: Make) -> None:
    n = node()
    one = Started(n, joined=True)
    n.files.contents[f"{GROUP}/tasks"] = f"{one.pid}\n".encode() * 200_000
    assert one.later() == (True, "")


def test_processes_that_end_while_they_are_moved(node: Make) -> None:
    n = node()
    one = Started(n)
    n.sim.exit(one.pid)  # its files in proc are still there
    enforced, detail = one.later()
    assert enforced is False
    assert "its 0 threads were moved" in detail


def test_device_of_another_plugin_is_refused(node: Make) -> None:
    one = Started(node())
    strange = Allocation("default", "pod", "main", "x/y", (Device("gpu"),))
    assert verdict(one.plugin, strange).enforced is False


def test_thread_zero_is_never_moved(node: Make) -> None:
    one = Started(node())
    from deviceplugin.plugins.llc.resctrl import ResctrlError

    with pytest.raises(ResctrlError, match="this process itself"):
        one.plugin._control.join("d0x3", 0)


def test_variable_is_the_one_that_is_documented() -> None:
    assert membership.VARIABLE == "KDP_LLC_GROUP"


def put_in_cgroup(n: Node, path: str, *threads: int) -> None:
    for thread in threads:
        n.host.write(f"/proc/{thread}/cgroup", f"0::{path}\n")
        n.host.write(f"/proc/{thread}/task/{thread}/comm", "app\n")


def test_threads_that_somebody_took_out_are_put_back(node: Make) -> None:
    n = node()
    one = Started(n, joined=True)
    taken, nested = n.sim.spawn(one.pid, thread=True), n.sim.spawn(one.pid)
    put_in_cgroup(n, "/kubepods/burstable/poduid-pod/main", one.pid, taken)
    put_in_cgroup(n, "/kubepods/burstable/poduid-pod/main/below", nested)
    put_in_cgroup(n, "/kubepods/burstable/poduid-pod/sidecar", n.process("pod", "sidecar"))
    assert one.later() == (True, "")
    n.sim.mkdir("theirs")
    for thread in (taken, nested):
        n.sim.write("theirs/tasks", b"%d\n" % thread)
    said = verdict(one.plugin, one.held)
    assert (said.enforced, said.detail) == (False, f"2 of its 3 threads run outside its group {GROUP}; 2 were moved into it just now")
    assert verdict(one.plugin, one.held).enforced is True
    assert {n.group_of(thread) for thread in (one.pid, taken, nested)} == {GROUP}


def test_cgroups_are_seen_from_a_namespace_of_our_own(node: Make) -> None:
    """As a container sees them that is not privileged: relative to its own."""
    n = node()
    one = Started(n, joined=True, cgroup="/../../poduid-pod/main")
    taken = n.sim.spawn()
    put_in_cgroup(n, "/../../poduid-pod/main/below", taken)
    put_in_cgroup(n, "/../../poduid-other/main", n.sim.spawn())
    assert verdict(one.plugin, one.held).detail == f"1 of its 2 threads run outside its group {GROUP}; 1 were moved into it just now"
    assert n.group_of(taken) == GROUP


def test_threads_outside_are_only_said_without_repair(node: Make) -> None:
    n = node(repair=False)
    one = Started(n, joined=True)
    other = n.sim.spawn()
    put_in_cgroup(n, "/kubepods/burstable/poduid-pod/main", one.pid, other)
    assert one.later() == (False, f"1 of its 2 threads run outside its group {GROUP}; repair: true would move them")
    assert n.group_of(other) == "/"


def test_list_of_tasks_that_may_be_cut_proves_nothing(node: Make) -> None:
    n = node()
    one = Started(n, joined=True)
    put_in_cgroup(n, "/kubepods/burstable/poduid-pod/main", one.pid, n.sim.spawn())
    n.files.contents[f"{GROUP}/tasks"] = f"{one.pid}\n".encode() * 5000
    assert one.later() == (True, "")


def test_process_of_no_pod_is_beside_nobody(node: Make) -> None:
    n = node()
    one = Started(n, joined=True, cgroup="/system.slice/sshd.service")
    put_in_cgroup(n, "/system.slice/sshd.service", one.pid, n.sim.spawn())
    assert one.later() == (True, "")
