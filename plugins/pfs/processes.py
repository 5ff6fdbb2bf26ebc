# SPDX-License-Identifier: Apache-2.0
"""Which processes belong to a container that holds slots, and what they see: from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from msgspec import Struct

from deviceplugin import Host
from deviceplugin._native import sysfs as native
from deviceplugin.plugins.pfs import mounts
from deviceplugin.plugins.pfs.mounts import Mount
from deviceplugin.sysfs import SysfsError

MAX_ENVIRON = 1 << 17
"""Bytes of a process's environment that are looked at."""

MARK = "KDP_PFS_"
"""What the names of the variables begin with that a container of ours has."""


class Process(Struct, frozen=True):
    """One process of a container; ``environ`` is what it was started with."""

    pid: int
    environ: Mapping[str, str]


class Container(Struct, frozen=True):
    """The processes of one control group and of those below it, of which one at least was started with variables of ours."""

    group: str
    processes: tuple[Process, ...]

    def has(self, name: str, value: str) -> bool:
        return any(process.environ.get(name) == value for process in self.processes)


def containers(host: Host) -> list[Container]:
    """The containers that are to be seen; none where /proc is not the node's."""
    pids = _pids(host)
    root = host.path("")
    found = native.read(root, [f"/proc/{pid}/environ" for pid in pids], MAX_ENVIRON)
    # Kernel threads have no environment, and processes come and go while we look.
    environs = {pid: text for pid, text in zip(pids, found, strict=True) if isinstance(text, str) and text}
    ours = [pid for pid, text in environs.items() if MARK in text]
    if not ours:
        return []
    texts = native.read(root, [f"/proc/{pid}/cgroup" for pid in environs], 1 << 16)
    groups = {pid: _group(text) for pid, text in zip(environs, texts, strict=True) if isinstance(text, str)}
    tops: list[str] = []
    for group in sorted({groups[pid] for pid in ours if groups.get(pid, "/") != "/"}):  # no container is the root of them all
        if not any(_below(group, top) for top in tops):
            tops.append(group)
    members: dict[str, list[Process]] = {top: [] for top in tops}
    for pid, group in groups.items():
        top = next((top for top in tops if _below(group, top)), None)
        if top is not None:
            members[top].append(Process(pid, _variables(environs[pid])))
    return [Container(top, tuple(found)) for top, found in members.items()]


def table_of(host: Host, container: Container) -> tuple[Mount, ...] | None:
    """The mounts that a container sees; None if all its processes have ended meanwhile."""
    for process in container.processes:
        try:
            return mounts.read(host, f"/proc/{process.pid}")
        except SysfsError:
            continue
    return None


def devices_in_use(host: Host, node_process: str) -> Iterator[str]:
    """The numbers of the file systems that are mounted in any namespace but the node's own."""
    seen = {_namespace(host, node_process), _namespace(host, "/proc/self"), ""}
    for pid in _pids(host):
        namespace = _namespace(host, f"/proc/{pid}")
        if namespace in seen:
            continue
        seen.add(namespace)
        try:
            table = mounts.read(host, f"/proc/{pid}")
        except SysfsError:
            seen.discard(namespace)  # it has ended; another may be in the same namespace
            continue
        yield from (mount.device for mount in table)


def _pids(host: Host) -> list[int]:
    (names,) = native.names(host.path(""), ["/proc"])
    return [int(name) for name in names if name.isdecimal()] if isinstance(names, list) else []


def _namespace(host: Host, process: str) -> str:
    try:
        return os.readlink(host.path(f"{process}/ns/mnt"))
    except OSError:
        return ""


def _group(text: str) -> str:
    """The group in the unified hierarchy, else that in the first: what tells containers apart is the same in all."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    paths = {fields[0]: fields[2] for fields in lines if len(fields) == 3}
    unified = paths.pop("0", "/")
    return unified if unified != "/" or not paths else next(iter(paths.values()))


def _below(group: str, top: str) -> bool:
    return group == top or group.startswith(f"{top.rstrip('/')}/")


def _variables(text: str) -> dict[str, str]:
    return {name: value for name, equals, value in (one.partition("=") for one in text.split("\0")) if equals}
