# SPDX-License-Identifier: Apache-2.0
r"""A simulated resctrl: cache ways, bandwidth and groups of tasks, by the kernel's rules, for machines that have no such hardware.

::

    sim = SimResctrl(SCENARIOS["skylake"])
    sim.mkdir("mine")
    sim.write("mine/schemata", b"L3:0=3c\n")
    sim.read("info/last_cmd_status")  # b"ok\n"
"""

from __future__ import annotations

from deviceplugin.testing.resctrl.actors import take, widen, wipe
from deviceplugin.testing.resctrl.machine import MOUNT_POINT, furnish, snapshot
from deviceplugin.testing.resctrl.scenarios import SCENARIOS, Scenario
from deviceplugin.testing.resctrl.simulator import SimResctrl, View
from deviceplugin.testing.resctrl.tasks import Caller
from deviceplugin.testing.resctrl.tree import MountedTree, Tree, groups, last_status, schemata, set_values

__all__ = [
    "MOUNT_POINT",
    "SCENARIOS",
    "Caller",
    "MountedTree",
    "Scenario",
    "SimResctrl",
    "Tree",
    "View",
    "furnish",
    "groups",
    "last_status",
    "schemata",
    "set_values",
    "snapshot",
    "take",
    "widen",
    "wipe",
]
