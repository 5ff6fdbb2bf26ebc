# SPDX-License-Identifier: Apache-2.0
"""A whole look at a machine's GPUs, topology and health with it: our one native call beside the same calls through NVIDIA's Python binding.

Both run on the simulated library, whose calls take about a microsecond; a real driver's take longer, and as long for either side.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.report import ms, table
from deviceplugin._native.nvml import Nvml, State
from deviceplugin.testing import nvml as sim
from tests.oracles import nvml as oracle

ROUNDS = 31

MACHINES: dict[str, Callable[[], sim.Scenario]] = {
    "8 x H100, NVSwitch, 144 links": sim.dgx_h100,
    "8 x V100, cube mesh, 48 links": sim.dgx1_v100,
    "16 x V100, NVSwitch, 96 links": sim.dgx2_v100,
    "4 x L40S": sim.l40s_pcie,
    "1 x H100, 7 MIG devices": lambda: sim.h100_mig("media"),
}


def median(call: Callable[[], object]) -> float:
    """Milliseconds."""
    figures = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        figures.append((time.perf_counter() - start) * 1e3)
    return statistics.median(figures)


def report() -> str:
    rows = []
    for name, make in MACHINES.items():
        with tempfile.TemporaryDirectory() as folder:
            library = make().install(Path(folder))
            with Nvml(library) as nvml:
                if nvml.state is not State.READY:
                    sys.exit(f"bench: {nvml.reason}")
                if nvml.snapshot() != oracle.snapshot(library):
                    sys.exit(f"bench: {name}: the two bindings do not agree")
                ours, identity = median(nvml.snapshot), median(partial(nvml.snapshot, False, False))
                theirs = median(partial(oracle.snapshot, library))
                rows.append([name, ms(ours), ms(identity), ms(theirs), f"{theirs / ours:.1f}"])
    head = ["machine", "native, all", "native, inventory", "pynvml, all", "pynvml / native"]
    return table(f"NVML discovery: milliseconds, median of {ROUNDS}", head, rows)


if __name__ == "__main__":
    print(report())
