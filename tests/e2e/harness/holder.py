"""The process that owns a node's mount namespace, and the one place where a node is taken down.

Run as a script, by `unshare --mount`, with one JSON object as its argument (see main). It makes the node's mounts, prints "ready", and waits
for its standard input to end. Then it kills whatever runs in its namespace or in the node's control groups, and removes those groups, the
device files that the node made, and (by ending) the namespace with all its mounts.

Because the end of standard input is the signal, a node also goes when the tests that use it are killed. For the same reason this
script must not import anything outside the standard library: it has to run with any Python and from any directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
KILL_SECONDS = 15.0

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, flags: int) -> None:
    """mount(2) for bind mounts and changes of propagation. Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def cgroup_mounts() -> list[Path]:
    """Where control groups are mounted: one folder per controller with version 1, a single one with version 2, or both kinds."""
    fields = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(field[1]) for field in fields if field[2] in ("cgroup", "cgroup2")]


def make_cgroups(name: str) -> None:
    """Makes the group called name below every hierarchy, ready for the kubelet to make groups of its own in it. Raises OSError."""
    for root in cgroup_mounts():
        if (root / "cgroup.controllers").exists() and root == Path("/sys/fs/cgroup"):
            for controller in ("cpuset", "cpu", "io", "memory", "pids", "hugetlb"):
                # What the machine lacks is for the kubelet to report: it knows what it needs.
                with contextlib.suppress(OSError):
                    (root / "cgroup.subtree_control").write_text(f"+{controller}")
        group = root / name
        group.mkdir()
        # Version 1 only: a cpuset starts without processors and memory, and no process can enter it until it has both.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (root / setting).exists():
                (group / setting).write_text((root / setting).read_text())


def groups_below(name: str) -> Iterator[Path]:
    """The node's control groups in all hierarchies, each before the one that contains it."""
    for root in cgroup_mounts():
        if (root / name).is_dir():
            for folder, _, _ in os.walk(root / name, topdown=False):
                yield Path(folder)


def processes(cgroup: str) -> set[int]:
    """The process ids of the node: in its mount namespace (daemons, shims) or in its control groups (containers). Without our own."""
    found: set[int] = set()
    for group in groups_below(cgroup):
        with contextlib.suppress(OSError):
            found.update(int(line) for line in (group / "cgroup.procs").read_text().split())
    namespace = os.readlink("/proc/self/ns/mnt")
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/mnt") == namespace:
                found.add(int(entry))
    # 0 stands for a process outside our pid namespace.
    return found - {0, os.getpid()}


def take_down(cgroup: str, files: Iterable[str]) -> list[str]:
    """Ends the node's processes and removes its groups and files. Returns what could not be removed."""
    deadline = time.monotonic() + KILL_SECONDS
    while left := processes(cgroup):
        if time.monotonic() > deadline:
            return [f"process {pid}" for pid in sorted(left)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for file in files:
        Path(file).unlink(missing_ok=True)
    # The kernel empties a group a moment after its last process is gone.
    while left_groups := list(groups_below(cgroup)):
        for group in left_groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        if time.monotonic() > deadline:
            return [str(group) for group in left_groups]
        time.sleep(0.02)
    return []


def main() -> int:
    """Holds one node. Status 0: nothing of it is left. Status 1: something is, and stderr names it."""
    setup = json.loads(sys.argv[1])
    cgroup, binds, made_files = setup["cgroup"], setup["binds"], Path(setup["made_files"])
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    try:
        make_cgroups(cgroup)
        for source, target in binds:
            os.makedirs(target, exist_ok=True)
            mount(source, target, MS_BIND)
        # The kubelet wants its folders shared, so that what a container mounts can reach the node. Only this namespace shares them.
        mount("none", "/", MS_REC | MS_SHARED)
        print("ready", flush=True)
        sys.stdin.buffer.read()
    finally:
        left = take_down(cgroup, made_files.read_text().splitlines() if made_files.exists() else [])
    print("\n".join(left), file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
