# SPDX-License-Identifier: Apache-2.0
"""The plugin on a simulated machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deviceplugin import Allocation, Device, Edits, Health, Host, Skipped, Verdict
from deviceplugin.plugins.pfs import Pfs, PfsConfig
from deviceplugin.testing import ContainerConfig, SimulatedHost
from deviceplugin.testing.containers import CriMount
from deviceplugin.testing.pfs import SimulatedPfs
from tests.helpers.core import Clock

FIXTURES = Path(__file__).parents[2] / "fixtures" / "pfs"
NODE = "node1"

T0 = {"name": "scratch", "type": "lustre", "tier": "T0", "mountPoint": "/mnt/scratch", "slots": 4}
T1 = {**T0, "tier": "T1", "bandwidthPerSlot": "1G", "servers": {"oss": 8, "cpts": 2, "rpcSize": "4Mi"}}
T2 = {**T0, "type": "gpfs", "tier": "T2", "slotDirectory": "slots/{slot}"}
T3 = {"name": "scratch", "type": "lustre", "tier": "T3", "slots": 4, "privateMount": {"source": "10.0.0.1@tcp:/scratch", "inFlight": 2}}
T4 = {**T0, "tier": "T4"}


def config(*filesystems: Mapping[str, Any], **options: Any) -> PfsConfig:
    """As the configuration file is read. :raises msgspec.ValidationError: as for a user."""
    return msgspec.convert({"domain": "example.com", "filesystems": list(filesystems), **options}, PfsConfig)


class Rig:
    """A machine, the clients on it, and the plugin."""

    def __init__(self, root: Path, *filesystems: Mapping[str, Any], tree: str = "", **options: Any) -> None:
        self.host = SimulatedHost(root)
        if tree:
            self.host.populate(FIXTURES / f"{tree}.yaml")
        self.pfs = SimulatedPfs(self.host)
        self.clock = Clock()
        self.config = config(*filesystems, **options)
        self.plugin = self.restart()

    def restart(self) -> Pfs:
        """Another instance of the plugin, which has to find out everything anew."""
        self.plugin = Pfs(self.config, Host(self.host.root, NODE), self.pfs, self.clock)
        return self.plugin

    def look(self) -> list[Device]:
        return [one for one in self.plugin.discover() if isinstance(one, Device)]

    def skipped(self) -> list[Skipped]:
        return [one for one in self.plugin.discover() if isinstance(one, Skipped)]

    def health(self) -> set[tuple[Health, str]]:
        """What is said of the slots, each different thing once."""
        return {(one.health, one.cause) for one in self.look()}

    def listed(self) -> list[int]:
        return [int(one.attributes["slot"]) for one in self.look()]

    def take(self, *slots: int) -> tuple[list[Device], Edits]:
        """A pod is admitted and its container started: allocate, prepare."""
        devices = [one for one in self.look() if one.attributes["slot"] in slots]
        edits = self.plugin.allocate(devices)
        self.plugin.prepare(devices)
        return devices, edits

    def run(self, pid: int, edits: Edits, **options: Any) -> None:
        """A process of the container, as the runtime starts it."""
        self.pfs.start(pid, started(edits), **options)

    def verdicts(self, *held: Sequence[Device]) -> list[Verdict]:
        """What is said of the containers that hold these devices."""
        asked = [Allocation("default", f"pod{n}", "main", devices[0].resource, tuple(devices)) for n, devices in enumerate(held)]
        return list(self.plugin.reconcile(asked))

    def later(self, *held: Sequence[Device]) -> list[int]:
        """A minute goes by in which the kubelet says twice who holds what; the slots that are listed then."""
        self.verdicts(*held)
        self.clock.advance(61)
        self.verdicts(*held)
        return self.listed()

    def verdict(self, held: Sequence[Device]) -> tuple[bool | None, str]:
        (one,) = self.verdicts(held)
        return one.enforced, one.detail


def started(edits: Edits, envs: Iterable[tuple[str, str]] = ()) -> ContainerConfig:
    """What the kubelet tells the runtime; the pod's own variables come last."""
    mounts = tuple(CriMount(one.container_path, one.path, one.read_only) for one in edits.mounts)
    return ContainerConfig((*edits.envs.items(), *envs), (), mounts, dict(edits.annotations), edits.cdi)
