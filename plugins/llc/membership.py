# SPDX-License-Identifier: Apache-2.0
"""Which processes a container has, and moving them into its group.

The kubelet names pods and containers, resctrl wants thread ids. What leads from one to the other, and who could forge it:

- The pod's uid comes from the kubelet's own checkpoint, by the devices that the container holds. Only root can write it.
- The pod's processes come from ``/proc/<pid>/cgroup``. A pod that may not write to the host's cgroups cannot get into another pod's.
- Which of a pod's containers it is, its processes say themselves: they have the variable that Allocate set. So one container of a pod can pass for
  another of the same pod, and a container that hides its environment is not found; no pod can pass for another pod.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable

from msgspec import Struct

from deviceplugin import Allocation, Host, sysfs

VARIABLE = "KDP_LLC_GROUP"
"""Set in the container's environment to the name of its group."""

CHECKPOINT = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"

# PROC_PID_INIT_INO (include/linux/proc_ns.h): the number of the PID namespace that the machine starts with.
_HOST_NAMESPACE = f"pid:[{0xEFFFFFFC}]"
_ANY_POD = re.compile(r"pod[-0-9A-Za-z]+|.+-pod[_0-9A-Za-z]+\.slice")
_MOST_BYTES = 64 << 20
_MOST_ENVIRON = 4 << 20
_ROUNDS = 5


class Found(Struct, frozen=True):
    """The processes of one container; ``others`` are those of its pod of which it cannot be said, without the pod's own (``pause``)."""

    pids: tuple[int, ...]
    others: tuple[int, ...]


def sees_host_pids(host: Host) -> bool:
    """Whether this process is in the host's PID namespace: in another, resctrl shows it empty groups."""
    try:
        return os.readlink(host.path("/proc/self/ns/pid")) == _HOST_NAMESPACE
    except OSError:
        return False


def pod_uids(host: Host, allocation: Allocation) -> set[str]:
    """The uid of the pod whose container holds the devices, as the kubelet has written it down. Empty if it has not, or the file cannot be read."""
    try:
        with open(host.path(CHECKPOINT), "rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
        entries = document["Data"]["PodDeviceEntries"] or []
        wanted = {device.id for device in allocation.devices}
        return {
            entry["PodUID"]
            for entry in entries
            if entry["ContainerName"] == allocation.container
            and entry["ResourceName"] == allocation.resource
            and {one for ids in entry["DeviceIDs"].values() for one in ids} == wanted
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def find(host: Host, uids: Iterable[str], group: str) -> Found:
    """The processes of the container of these pods whose variable names ``group``."""
    names = [re.compile(rf"pod{re.escape(uid)}|.+-pod{re.escape(uid.replace('-', '_'))}\.slice") for uid in uids]
    if not names:
        return Found((), ())
    homes = {pid: home for pid, text in _processes(host).items() if (home := _home(text, names))}
    marked = {home for pid, home in homes.items() if _variable(host, pid) == group}
    others = [pid for pid, home in homes.items() if home not in marked and sysfs.read(host, f"/proc/{pid}/comm") != "pause"]
    return Found(tuple(pid for pid, home in homes.items() if home in marked), tuple(others))


def beside(host: Host, thread: int) -> frozenset[int]:
    """All threads of the container that a thread is in; none if that cannot be seen.

    By what each process says of its cgroup, and not by the cgroups' own lists: in a cgroup namespace of its own, as a container has it, this process
    sees the others' paths relative to its own, and no mount that they would fit.
    """
    try:
        home = _home(sysfs.read(host, f"/proc/{thread}/cgroup") or "", [_ANY_POD])
    except sysfs.SysfsError:  # it has ended
        return frozenset()
    if not home:
        return frozenset()
    pids = _processes(host)
    mine = [pid for pid, text in pids.items() if _home(text, [_ANY_POD]) == home]
    tasks = sysfs.entries_many(host, [f"/proc/{pid}/task" for pid in mine])
    return frozenset(int(name) for names in tasks if isinstance(names, list) for name in names if name.isdecimal())


def move(host: Host, find_pids: Callable[[], Iterable[int]], join: Callable[[int], bool]) -> int:
    """Moves all threads of some processes, until no new ones show: a thread starts in the group of the one that made it. How many were moved."""
    seen: set[int] = set()
    moved = 0
    for _ in range(_ROUNDS):
        threads = {int(name) for pid in find_pids() for name in sysfs.entries(host, f"/proc/{pid}/task") if name.isdecimal()}
        if threads <= seen:
            break
        moved += sum(join(thread) for thread in sorted(threads - seen))
        seen |= threads
    return moved


def allowed_cpus(host: Host, pid: int) -> str:
    """The CPUs that a process may run on, as a list such as ``0-3,8``; empty if that cannot be seen."""
    try:
        found = re.search(r"^Cpus_allowed_list:\s*(\S+)$", sysfs.read(host, f"/proc/{pid}/status") or "", re.MULTILINE)
    except sysfs.SysfsError:
        return ""
    return found[1] if found else ""


def _processes(host: Host) -> dict[int, str]:
    """What each process says of its cgroups."""
    pids = [int(name) for name in sysfs.entries(host, "/proc") if name.isdecimal()]
    texts = sysfs.read_many(host, [f"/proc/{pid}/cgroup" for pid in pids])
    return {pid: text for pid, text in zip(pids, texts, strict=True) if isinstance(text, str)}


def _home(text: str, names: list[re.Pattern[str]]) -> str:
    """The cgroup of the container that a process is in, by its ``/proc/<pid>/cgroup``; empty for a process of another pod."""
    for line in text.splitlines():
        parts = line.rpartition(":")[2].split("/")
        for number, part in enumerate(parts[:-1]):
            if any(name.fullmatch(part) for name in names):
                return "/".join(parts[: number + 2])
    return ""


def _variable(host: Host, pid: int) -> str:
    try:
        with open(host.path(f"/proc/{pid}/environ"), "rb") as file:
            environ = file.read(_MOST_ENVIRON)
    except OSError:  # it has ended, or is another's that we may not look into
        return ""
    return next((os.fsdecode(one[len(VARIABLE) + 1 :]) for one in environ.split(b"\0") if one.startswith(VARIABLE.encode() + b"=")), "")
