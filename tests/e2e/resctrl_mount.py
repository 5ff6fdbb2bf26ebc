# SPDX-License-Identifier: Apache-2.0
"""A simulated resctrl with the real processes of this machine, served until its input ends: a program for a node's mount namespace.

    python resctrl_mount.py DIRECTORY

The caches are made up but for what the plugin compares with sysfs: the number of the first, and its CPUs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deviceplugin.testing import fuse
from deviceplugin.testing.resctrl import Scenario, SimResctrl
from deviceplugin.testing.resctrl.scenarios import L3

CACHE = "/sys/devices/system/cpu/cpu0/cache/index3"


def machine() -> Scenario:
    id_ = int(Path(CACHE, "id").read_text(encoding="ascii"))
    cpus = tuple(range(os.cpu_count() or 1))
    cache = L3(id=id_, cpus=cpus, size=28160)
    return Scenario(name="here", caches=(cache,), nodes={0: cpus}, ways=11, closids=16, shareable=0x600, paired=0x600, rmids=64)


def main() -> None:
    with fuse.serve(SimResctrl(machine(), real=True), sys.argv[1]):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
