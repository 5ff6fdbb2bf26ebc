# SPDX-License-Identifier: Apache-2.0
"""A node with divisible caches: a simulated resctrl beside the files of sysfs, proc and the kubelet that the LLC plugin reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deviceplugin import Allocation, Device, Host, Skipped, Verdict
from deviceplugin.plugins.llc import Llc, LlcConfig
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.resctrl import SCENARIOS, Caller, Scenario, SimResctrl, furnish, schemata

RESOURCE = "devices.local/llc"
HOST_PIDS = "pid:[4026531836]"
CHECKPOINT = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
GROUP = "KDP_LLC_GROUP"


@dataclass
class Disk:
    """The simulated resctrl as the plugin reaches it: with faults, and a mount that may be read-only. What a test says of a path comes first."""

    sim: SimResctrl
    namespace: str = ""
    read_only_mount: bool = False
    errors: dict[tuple[str, str], int] = field(default_factory=dict)
    """errno by operation and path."""
    contents: dict[str, bytes | None] = field(default_factory=dict)
    """By path: what is read; None for a file that is not there."""
    writes: list[tuple[str, bytes]] = field(default_factory=list)

    def _fail(self, operation: str, path: str) -> None:
        if number := self.errors.get((operation, path)):
            raise OSError(number, os.strerror(number))
        if self.read_only_mount and operation not in ("read", "list", "stat"):
            raise OSError(30, os.strerror(30))

    @property
    def _files(self) -> Any:
        return self.sim.seen_by(Caller(self.namespace))

    def read(self, path: str) -> bytes:
        self._fail("read", path)
        if path in self.contents:
            content = self.contents[path]
            if content is None:
                raise FileNotFoundError(2, os.strerror(2))
            return content
        return bytes(self._files.read(path))

    def write(self, path: str, data: bytes) -> None:
        self._fail("write", path)
        self.writes.append((path, data))
        self._files.write(path, data)

    def list(self, path: str) -> list[str]:
        self._fail("list", path)
        return [str(name) for name in self._files.list(path)]

    def mkdir(self, path: str) -> None:
        self._fail("mkdir", path)
        self._files.mkdir(path)

    def rmdir(self, path: str) -> None:
        self._fail("rmdir", path)
        self._files.rmdir(path)

    def read_only(self) -> bool:
        self._fail("stat", "")
        return self.read_only_mount


def masks(sim: SimResctrl, group: str = "") -> dict[int, int]:
    """By cache; code and data, where they are told apart, must be alike."""
    first, *others = (values for name, values in schemata(sim, group).items() if name.startswith("L3"))
    assert all(other == first for other in others)
    return first


class Node:
    """The node below ``root``. ``now`` is its time; ``files`` is how its plugins reach resctrl."""

    def __init__(self, root: str, scenario: str | Scenario = "skylake", *, has_kubelet: bool = False, **config: Any) -> None:
        self.scenario = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
        self.host = SimulatedHost(root)
        self.now = 1000.0
        self.sim = self._furnished()
        self.files = Disk(self.sim)
        self.config = msgspec.convert(config, LlcConfig)
        self.entries: dict[tuple[str, str], dict[str, Any]] = {}
        self.host.link("/proc/self/ns/pid", HOST_PIDS)
        self._has_kubelet = has_kubelet  # which keeps the checkpoint
        self._keep()

    def plugin(self) -> Llc:
        """A plugin that has just been started."""
        return Llc(self.config, Host(self.host.root), files=self.files, clock=lambda: self.now)

    @property
    def groups(self) -> list[str]:
        """Ours."""
        return sorted(name for name in self.sim.list("") if name.startswith("kdp-llc."))

    def cdi(self) -> dict[str, str]:
        """The group that a runtime would use, by the name of its CDI device."""
        path = self.host.path(f"/var/run/cdi/k8s.device-plugin.{self.config.resource.replace('/', '-')}.json")
        if not os.path.exists(path):
            return {}
        with open(path, encoding="utf-8") as file:
            spec = json.load(file)
        assert spec["cdiVersion"] == "0.7.0"
        return {f"{spec['kind']}={one['name']}": one["containerEdits"]["intelRdt"]["closID"] for one in spec["devices"]}

    def hold(self, pod: str, container: str, ids: Iterable[str]) -> None:
        """The kubelet writes down who holds what. A pod's uid is ``uid-`` and its name."""
        node_ids = {"0": sorted(ids)}
        self.entries[pod, container] = {
            "PodUID": f"uid-{pod}",
            "ContainerName": container,
            "ResourceName": self.config.resource,
            "DeviceIDs": node_ids,
            "AllocResp": "",
        }
        self._keep()

    def release(self, pod: str, container: str) -> None:
        del self.entries[pod, container]
        self._keep()

    def process(
        self, pod: str, container: str, envs: Mapping[str, str] | None = None, *, group: str = "", comm: str = "app", cgroup: str = "", cpus: str = ""
    ) -> int:
        """A process of a container; the runtime has put it into ``group`` if there is one named."""
        pid = self.sim.spawn()
        if group:
            self.sim.write(f"{group}/tasks", b"%d\n" % pid)
        text = "".join(f"{key}={value}\0" for key, value in {"PATH": "/bin", **(envs or {})}.items())
        self.host.write(f"/proc/{pid}/environ", text)
        self.host.write(f"/proc/{pid}/cgroup", f"0::{cgroup or f'/kubepods/burstable/poduid-{pod}/{container}'}\n")
        self.host.write(f"/proc/{pid}/comm", comm + "\n")
        self.host.write(f"/proc/{pid}/status", f"Name:\t{comm}\nCpus_allowed_list:\t{cpus or '0-3'}\n")
        self.host.write(f"/proc/{pid}/task/{pid}/comm", comm + "\n")
        return pid

    def end(self, pid: int) -> None:
        self.sim.exit(pid)
        shutil.rmtree(self.host.path(f"/proc/{pid}"))

    def group_of(self, pid: int) -> str:
        """The group that a process is in, as the kernel shows it."""
        return self.sim.cpu_resctrl_groups(pid).partition("\n")[0].removeprefix("res:")

    def reboot(self) -> None:
        """Everything in memory is gone: groups, processes, and what is in /run."""
        self.sim = self.files.sim = self._furnished()
        shutil.rmtree(self.host.path("/var/run"), ignore_errors=True)
        for name in os.listdir(self.host.path("/proc")):
            if name.isdecimal():
                shutil.rmtree(self.host.path(f"/proc/{name}"))

    def _furnished(self) -> SimResctrl:
        return furnish(self.host, self.scenario, clock=lambda: self.now)

    def _keep(self) -> None:
        if self._has_kubelet:
            return
        self.host.write(
            CHECKPOINT, json.dumps({"Data": {"PodDeviceEntries": list(self.entries.values()) or None, "RegisteredDevices": {}}, "Checksum": 1})
        )


def look(plugin: Llc) -> dict[str, Device]:
    """The devices, by id."""
    return {one.id: one for one in plugin.discover() if isinstance(one, Device)}


def skipped(plugin: Llc) -> dict[str, str]:
    return {one.what: one.reason for one in plugin.discover() if isinstance(one, Skipped)}


def picked(devices: Mapping[str, Device], *ids: str) -> list[Device]:
    return [devices[one] for one in sorted(ids)]


def allocation(devices: Mapping[str, Device], pod: str, container: str, *ids: str) -> Allocation:
    return Allocation("default", pod, container, RESOURCE, tuple(picked(devices, *ids)))


def verdict(plugin: Llc, *allocations: Allocation) -> Verdict:
    """What is said of the first one."""
    first, *_ = plugin.reconcile(allocations)
    return first
