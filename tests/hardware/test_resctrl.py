# SPDX-License-Identifier: Apache-2.0
"""The kernel keeps the rules that the simulator was written by. Run it alone on a machine without a GPU: ``pytest tests/hardware/test_resctrl.py``.

It makes groups named ``conformance.*``, takes ways from the root group for moments, and puts everything back. Groups of others stay as they are.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from deviceplugin.testing.resctrl import MOUNT_POINT, MountedTree
from deviceplugin.testing.resctrl.conformance import RULES, Bench, Inapplicable, Rule

_BREEDER = "while read -r _; do sleep 1000 & echo $!; done"
"""A shell that has a child for each line it reads, and says its number."""


def missing() -> str | None:
    """What this machine lacks."""
    with open("/proc/filesystems", encoding="ascii") as file:
        if "resctrl" not in file.read().split():
            return "missing: resctrl, in this kernel (CONFIG_X86_CPU_RESCTRL) or in this CPU"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        if not any(f" {MOUNT_POINT} " in line and " - resctrl " in line for line in file):
            return f"missing: the mount, mount -t resctrl resctrl {MOUNT_POINT}"
    return None if os.geteuid() == 0 else "missing: root"


class Family:
    """Real processes, which stay until the end."""

    def __init__(self) -> None:
        self._shells: dict[int, subprocess.Popen[str]] = {}

    def spawn(self, parent: int | None) -> int:
        if parent is None:
            shell = subprocess.Popen(["sh", "-c", _BREEDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
            self._shells[shell.pid] = shell
            return shell.pid
        shell = self._shells[parent]
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write("\n")
        shell.stdin.flush()
        return int(shell.stdout.readline())

    def end(self) -> None:
        while self._shells:
            pid, shell = self._shells.popitem()
            os.killpg(pid, signal.SIGKILL)
            shell.communicate()


@pytest.fixture
def bench() -> Iterator[Bench]:
    if lack := missing():
        pytest.skip(lack)
    family = Family()
    bench = Bench(MountedTree(MOUNT_POINT), family.spawn)
    try:
        with bench.tidy():
            yield bench
    finally:
        family.end()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_kernel_keeps_the_rule(rule: Rule, bench: Bench) -> None:
    try:
        rule(bench)
    except Inapplicable as reason:
        pytest.skip(str(reason))
