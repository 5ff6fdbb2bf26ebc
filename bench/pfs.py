# SPDX-License-Identifier: Apache-2.0
"""The pfs plugin: what a look costs, with the native batch and with plain Python, and what a child costs that asks a file system."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from bench.report import table
from deviceplugin import Host
from deviceplugin._native import sysfs as native
from deviceplugin.plugins.pfs import Pfs, PfsConfig, processes
from deviceplugin.plugins.pfs.commands import Commands
from deviceplugin.plugins.pfs.config import FileSystem
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.pfs import SimulatedPfs
from tests.oracles import sysfs as twin

TARGETS = 500
PROCESSES = 1000
ROUNDS = 15


def milliseconds(call: Callable[[], object]) -> float:
    """The median of some rounds."""
    call()
    figures = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        figures.append((time.perf_counter() - began) * 1000)
    return statistics.median(figures)


def machine(root: str) -> Pfs:
    """A Lustre client with many targets, and many processes of containers."""
    host = SimulatedHost(root)
    pfs = SimulatedPfs(host)
    for number in range(TARGETS):
        host.write(f"/sys/fs/lustre/osc/scratch-OST{number:04x}-osc-ffff8881ffffffff/active", "1\n")
    pfs.mount("lustre", "10.0.0.1@tcp:/scratch", "/mnt/scratch")
    environ = {f"SERVICE_{n}_PORT": f"tcp://10.0.0.{n % 250}:80" for n in range(40)}
    for pid in range(100, 100 + PROCESSES):
        ours = {"KDP_PFS_SCRATCH_SLOTS": f"pfs.scratch.{pid % 8:02}"} if pid % 100 == 0 else {}
        pfs.process(pid, {**ours, **environ}, group=f"/kubepods/{pid // 10}", mounts={})
    return Pfs(PfsConfig(filesystems=[FileSystem(name="scratch", type="lustre", tier="T0", mount_point="/mnt/scratch", slots=8)]), Host(root), pfs)


def reads(root: str) -> list[list[object]]:
    plugin, host = machine(root), Host(root)
    rows: list[list[object]] = []
    looks: list[tuple[str, Callable[[], int]]] = [
        (f"a look at a client with {TARGETS + 1} targets", lambda: len(list(plugin.discover()))),
        (f"the containers among {PROCESSES} processes", lambda: len(processes.containers(host))),
    ]
    for what, call in looks:
        fast, answer = milliseconds(call), call()
        with mock.patch.object(native, "read", twin.read), mock.patch.object(native, "names", twin.names):
            if call() != answer:
                raise SystemExit(f"{what}: the two do not agree")
            slow = milliseconds(call)
        rows.append([what, f"{fast:.2f}", f"{slow:.2f}", f"{slow / fast:.1f}"])
    return rows


def children(root: str) -> list[list[object]]:
    commands = Commands(Host(root), "/proc/1")
    ways: list[tuple[str, Callable[[], object]]] = [
        ("statfs in this process, which a file system that hangs would take with it", lambda: os.statvfs(root)),
        ("statfs in a child (stat -f), with its lock", lambda: commands.statfs({"/": "/run/lock"}, 5.0)),
        ("the same for 16 mounts at once", lambda: commands.statfs({f"/{'./' * n}": f"/run/{n}" for n in range(16)}, 5.0)),
        ("a child with a Python interpreter", lambda: subprocess.run(["python3", "-ISc", f"import os; os.statvfs({root!r})"], check=True)),
    ]
    return [[what, f"{milliseconds(call):.3f}"] for what, call in ways]


def report() -> str:
    with tempfile.TemporaryDirectory() as directory:
        rows = reads(str(Path(directory, "root")))
        costs = children(str(Path(directory, "root")))
    return "\n".join(
        [
            table("The pfs plugin's looks, ms: native batches and plain Python", ["what", "native", "Python", "Python / native"], rows),
            table("Asking a file system whether it answers, ms", ["how", "ms"], costs),
        ]
    )
