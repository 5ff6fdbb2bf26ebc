# SPDX-License-Identifier: Apache-2.0
"""One look at a machine with 64 FPGA ports: with sysfs read by native code, and by its plain Python twin. And the ioctls beside theirs.

The tree is that of 16 cards with 4 ports each, in plain files: the kernel's own attributes cost what their drivers need on top. Device files are real
ones for root, and plain files that stand in for them otherwise, which takes longer.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

from bench.report import table
from deviceplugin import Host, sysfs
from deviceplugin._native import fpga
from deviceplugin.plugins.fpga import Fpga, probe
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import NLB0, Fpgas
from tests.oracles import fpga as fpga_oracle
from tests.oracles import sysfs as sysfs_oracle

CARDS, PORTS = 16, 4
ROUNDS = 101


def times(call: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median and 90th percentile of one call, in milliseconds."""
    call()
    figures = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        figures.append((time.perf_counter() - start) * 1e3)
    return statistics.median(figures), sorted(figures)[rounds * 9 // 10]


def looks() -> list[list[object]]:
    with tempfile.TemporaryDirectory() as root:
        fpgas = Fpgas(SimulatedHost(root, mknod=os.geteuid() == 0))
        for number in range(CARDS):
            fpgas.dfl(f"0000:{16 + number:02x}:00.0", [NLB0] * PORTS, numa_node=number % 2)
        look, plugin = partial(probe.look, Host(root)), Fpga(host=Host(root))
        found = look()
        if len(found.ports) != CARDS * PORTS or found.skipped:
            raise SystemExit(f"{len(found.ports)} ports were found")
        rows: list[list[object]] = []
        for what, call in (("the probe", look), ("discover() with names, health and memory", lambda: list(plugin.discover()))):
            native = times(call)
            with mock.patch.object(sysfs, "native", sysfs_oracle):
                if look() != found:
                    raise SystemExit("the two do not agree")
                twin = times(call)
            rows.append([what, *(f"{one:.2f}" for one in (*native, *twin)), f"{twin[0] / native[0]:.1f}"])
        return rows


def ioctls() -> list[list[object]]:
    """On a file that is no FPGA: what is measured is the way to the kernel and back."""
    image = bytes(1 << 20)
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        rows: list[list[object]] = []
        for what, native, twin in (
            ("program an image of 1 MiB", partial(fpga.port_pr, fd, 0, image), partial(fpga_oracle.port_pr, fd, 0, image)),
            ("ask for the version", partial(fpga.api_version, fd), partial(fpga_oracle.api_version, fd)),
        ):
            if native() != twin():
                raise SystemExit(f"{what}: the two do not agree")
            fast, slow = times(native, 1001)[0] * 1e3, times(twin, 1001)[0] * 1e3
            rows.append([what, f"{fast:.2f}", f"{slow:.2f}", f"{slow / fast:.1f}"])
        return rows
    finally:
        os.close(fd)


def report() -> str:
    header = ["what", "native p50 ms", "p90", "Python p50 ms", "p90", "Python / native"]
    return "\n".join(
        [
            table(f"A look at {CARDS * PORTS} FPGA ports on {CARDS} cards, {ROUNDS} rounds", header, looks()),
            table("ioctls, us", ["what", "native", "Python", "Python / native"], ioctls()),
        ]
    )


if __name__ == "__main__":
    print(report())
