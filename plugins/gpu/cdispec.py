# SPDX-License-Identifier: Apache-2.0
"""CDI specs for GPUs, for machines where NVIDIA's toolkit has published none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final

from msgspec import Struct

from deviceplugin import DeviceNode, Host, Mount
from deviceplugin._native import nvml
from deviceplugin.cdi import ContainerEdits, Hook, Spec, is_device_name
from deviceplugin.plugins.gpu import driver

VENDOR: Final = "k8s.device-plugin.nvidia.com"
"""The vendor that NVIDIA's device plugin uses. Its files have the names of ours, so they are replaced, not doubled: a device that two files
describe is a conflict, and runtimes refuse it."""

KINDS: Final = tuple(f"{VENDOR}/{name}" for name in ("gpu", "imex-channel", "gdrcopy", "gds", "mofed"))
"""Everything there may be a spec of."""


class Grant(Struct, frozen=True):
    """A GPU or MIG device that a container was given. ``index`` is NVML's: ``0``, or ``0:1`` for the second MIG device of the first GPU.

    ``minor`` is the number of the GPU's device file, None where NVML does not say. The last three are set for MIG devices alone.
    """

    uuid: str
    index: str
    minor: int | None
    parent_uuid: str = ""
    gpu_instance: int | None = None
    compute_instance: int | None = None


class Machine(Struct, frozen=True, dict=True):
    """Where things are: the host, the driver's files, the device files, and the toolkit's program for hooks (empty for none). For one look."""

    host: Host
    files: driver.Tree
    devices: driver.Tree
    hook: str

    @cached_property
    def mig_minors(self) -> Mapping[str, int]:
        """Read once for all the MIG devices of a look: the file has thousands of lines."""
        return driver.mig_minors(self.host)

    def extra_nodes(self, feature: str) -> list[str]:
        return self.devices.matching(driver.EXTRA_NODES[feature])


def grants(snapshot: nvml.Snapshot) -> Iterator[Grant]:
    """Everything in the snapshot that a container could be given, in NVML's order."""
    for gpu in snapshot.gpus:
        if not gpu.uuid:
            continue
        yield Grant(gpu.uuid, str(gpu.index), gpu.minor)
        for mig in gpu.migs:
            yield Grant(mig.uuid, f"{gpu.index}:{mig.index}", gpu.minor, gpu.uuid, mig.gpu_instance, mig.compute_instance)


def grant_nodes(machine: Machine, grant: Grant) -> tuple[list[str], str]:
    """The device files of a GPU or MIG device that are there, and what is wrong if some are not."""
    if grant.minor is None:
        return [], f"GPU {grant.uuid}: the driver does not say which device file it has"
    paths = [f"/dev/nvidia{grant.minor}"]
    if grant.gpu_instance is not None:
        # A MIG device needs the GPU's file and two capabilities: access to its GPU instance and to its compute instance.
        instance = f"gpu{grant.minor}/gi{grant.gpu_instance}"
        for capability in (f"{instance}/access", f"{instance}/ci{grant.compute_instance}/access"):
            if capability not in machine.mig_minors:
                return [], f"MIG device {grant.uuid}: {driver.MIG_MINORS} does not have {capability}"
            paths.append(f"/dev/nvidia-caps/nvidia-cap{machine.mig_minors[capability]}")
    missing = [path for path in paths if not machine.devices.has(path)]
    problem = f"GPU {grant.uuid}: {', '.join(map(machine.devices.on_host, missing))} is not there" if missing else ""
    return [path for path in paths if path not in missing], problem


def gpu_spec(machine: Machine, snapshot: nvml.Snapshot) -> tuple[Spec | None, list[str]]:
    """The spec of all GPUs and MIG devices, each by its UUID and by its index, and why some are not in it. None where none is.

    Raises OSError where the driver's files cannot be found.
    """
    devices: dict[str, ContainerEdits] = {}
    problems: list[str] = []
    for grant in grants(snapshot):
        paths, problem = grant_nodes(machine, grant)
        if problem:
            problems.append(problem)
            continue
        edits = ContainerEdits(nodes=_nodes(machine, paths))
        # The names that drivers before 470 gave MIG devices have slashes, which CDI does not allow: those have their index alone.
        devices.update({name: edits for name in (grant.uuid, grant.index) if is_device_name(name)})
    if not devices:
        return None, problems
    return Spec(kind=f"{VENDOR}/gpu", devices=devices, common=_common(machine, snapshot.driver_version)), problems


def imex_spec(machine: Machine, channels: Sequence[str]) -> Spec | None:
    """The spec of the channels to other machines; None without any."""
    devices = {channel: ContainerEdits(nodes=_nodes(machine, [f"{driver.IMEX_CHANNELS}/channel{channel}"])) for channel in channels}
    return Spec(kind=f"{VENDOR}/imex-channel", devices=devices) if devices else None


def extra_spec(machine: Machine, feature: str) -> Spec | None:
    """The spec of a driver beside NVIDIA's; None where it is not loaded."""
    paths = machine.extra_nodes(feature)
    if not paths:
        return None
    mounts = tuple(_mount(machine, path) for path in driver.EXTRA_MOUNTS.get(feature, ()) if machine.files.has(path))
    return Spec(kind=f"{VENDOR}/{feature}", devices={"all": ContainerEdits(nodes=_nodes(machine, paths), mounts=mounts)})


def _common(machine: Machine, version: str) -> ContainerEdits:
    files = driver.find_files(machine.files, version)
    nodes = _nodes(machine, [path for path in driver.CONTROL_NODES if machine.devices.has(path)])
    mounts = [_mount(machine, path) for path in (*files.libraries, *files.others)]
    # Tells the NVIDIA runtime, should the container run under it, that the GPUs are already there.
    envs = {"NVIDIA_VISIBLE_DEVICES": "void"}
    if machine.hook:
        return ContainerEdits(envs=envs, nodes=nodes, mounts=tuple(mounts), hooks=tuple(_hooks(machine.hook, files)))
    # Nobody would make the links in the container: the libraries are mounted a second time under the names that programs open.
    mounts += [Mount(machine.files.on_host(link.target), link.path) for link in files.links]
    return ContainerEdits(envs=envs, nodes=nodes, mounts=tuple(mounts))


def _hooks(program: str, files: driver.Files) -> Iterator[Hook]:
    name = os.path.basename(program)
    start = (name, "hook") if name == "nvidia-ctk" else (name,)
    links = [part for link in files.links for part in ("--link", f"{os.path.basename(link.target)}::{link.path}")]
    if links:
        yield Hook(stage="createContainer", path=program, args=(*start, "create-symlinks", *links))
    folders = [part for directory in files.directories for part in ("--folder", directory)]
    yield Hook(stage="createContainer", path=program, args=(*start, "update-ldcache", *folders))


def _nodes(machine: Machine, paths: Sequence[str]) -> tuple[DeviceNode, ...]:
    return tuple(DeviceNode(machine.devices.on_host(path), path) for path in paths)


def _mount(machine: Machine, path: str) -> Mount:
    return Mount(machine.files.on_host(path), path)
