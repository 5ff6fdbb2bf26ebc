# SPDX-License-Identifier: Apache-2.0
"""From what NVML says to devices."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from deviceplugin import Connection, Device, Enforcement, Host, Skipped, sysfs
from deviceplugin._native.nvml import Gpu, Mig, Snapshot
from deviceplugin.plugins.gpu.config import GpuConfig
from deviceplugin.plugins.gpu.filters import refusal
from deviceplugin.plugins.gpu.health import Verdict
from deviceplugin.plugins.gpu.naming import WHOLE, Refused, claimed, mig_resource, uneven
from deviceplugin.plugins.gpu.topology import Topology

MOST_LINKED = 64
"""No more GPUs can be chosen from by their links; nobody has built a machine with more than 16."""

_LOST = 15
_TO_SWITCH = 2
_NEAR = {0: 60, 10: 50, 20: 40, 30: 30, 40: 20, 50: 10}
_NVLINK = 100
_FABRIC_READY = 3
_ARCHITECTURES = {2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada", 9: "Hopper", 10: "Blackwell", 13: "Rubin"}
_LONGEST = 64


class Candidate(Struct, frozen=True):
    """A GPU or MIG device that has a resource."""

    gpu: Gpu
    mig: Mig | None
    resource: str


class Recall:
    """The last full answer of each GPU: one that falls silent is still there, and still the same. For one thread."""

    def __init__(self) -> None:
        self._known: dict[str, Gpu] = {}

    def complete(self, gpus: Iterable[Gpu]) -> Iterator[Gpu | Skipped]:
        """The GPUs, each once. What one does not say is taken from its last full answer, with the failures of this one."""
        gpus = list(gpus)
        named = {gpu.uuid for gpu in gpus if gpu.uuid}
        missing = {known.index: known for uuid, known in self._known.items() if uuid not in named}
        seen: dict[str, Gpu] = {}
        for gpu in gpus:
            why = "; ".join(map(str, gpu.failures))
            before = self._known.get(gpu.uuid) if gpu.uuid else missing.get(gpu.index)
            if not gpu.uuid and before is None:
                yield Skipped(f"GPU number {gpu.index}", f"does not tell its UUID: {why or 'NVML gives none'}")
            elif gpu.uuid in seen:
                first = seen[gpu.uuid].index
                yield Skipped(f"GPU number {gpu.index}", f"has the UUID of GPU number {first}, {gpu.uuid}; only the first is advertised")
            else:
                whole = gpu if before is None else _merge(gpu, before)
                seen[whole.uuid] = whole
                yield whole
        self._known = seen


def _merge(gpu: Gpu, before: Gpu) -> Gpu:
    lost = gpu.lost or any(failure.code == _LOST for failure in gpu.failures)
    if not gpu.uuid or lost:
        return replace(before, index=gpu.index, lost=lost, failures=gpu.failures)
    failed = " ".join(failure.function for failure in gpu.failures if failure.code not in (3, 13))
    changes: dict[str, object] = {}
    if not gpu.name:
        changes["name"] = before.name
    if not gpu.bus_id:
        changes["bus_id"] = before.bus_id
    if gpu.minor is None:
        changes["minor"] = before.minor
    if "MigMode" in failed:
        changes |= {"mig_mode": before.mig_mode, "migs": before.migs}
    elif "MigDevice" in failed and gpu.mig_mode:  # a list cut short is no list
        told = {mig.uuid for mig in gpu.migs}
        changes["migs"] = (*gpu.migs, *(mig for mig in before.migs if mig.uuid not in told))
    return replace(gpu, **changes) if changes else gpu


def choose(gpus: Sequence[Gpu], config: GpuConfig) -> Iterator[Candidate | Skipped]:
    """Filters and names. Whatever is left out is told with its reason."""
    kept: list[Gpu] = []
    for gpu in gpus:
        why = refusal(gpu, config.include, config.exclude)
        if why:
            yield Skipped(gpu.uuid, f"{gpu.name or 'the GPU'} {why}")
        else:
            kept.append(gpu)
    invalid = _uneven_singles(kept, config)
    for gpu in kept:
        if config.mig_strategy == "none" or not gpu.mig_mode:
            yield from _whole(gpu, config)
            continue
        if not gpu.migs:
            yield Skipped(gpu.uuid, "is in MIG mode and has no MIG devices: make some, or turn MIG mode off")
        for mig in gpu.migs:
            yield from _part(gpu, mig, config, invalid)


def _whole(gpu: Gpu, config: GpuConfig) -> Iterator[Candidate | Skipped]:
    try:
        yield Candidate(gpu, None, claimed(gpu, None, config.resources) or WHOLE)
    except Refused as refused:
        yield Skipped(gpu.uuid, str(refused))


def _part(gpu: Gpu, mig: Mig, config: GpuConfig, invalid: str) -> Iterator[Candidate | Skipped]:
    what = mig.uuid or f"MIG device {mig.index} of {gpu.uuid}"
    try:
        if not mig.uuid:
            raise Refused("does not tell its UUID")
        resource = claimed(gpu, mig, config.resources)
        if not resource and config.mig_strategy == "mixed":
            resource = mig_resource(mig)
        elif not resource and invalid:
            raise Refused(f"cannot be {WHOLE} with migStrategy single, since {invalid}: make them all alike, or use mixed")
        yield Candidate(gpu, mig, resource or WHOLE)
    except Refused as refused:
        yield Skipped(what, str(refused))


def _uneven_singles(kept: Sequence[Gpu], config: GpuConfig) -> str:
    """Why the MIG devices cannot all be one resource. Those that a rule names are in another, and do not count."""
    if config.mig_strategy != "single":
        return ""
    pool = []
    for gpu in kept:
        try:
            if gpu.mig_mode and gpu.migs:
                left = tuple(mig for mig in gpu.migs if not claimed(gpu, mig, config.resources))
                pool += [replace(gpu, migs=left)] if left else []
            elif not claimed(gpu, None, config.resources):
                pool.append(gpu)
        except Refused:
            continue
    return uneven(pool)


def device(candidate: Candidate, verdict: Verdict, numa: Iterable[int], snapshot: Snapshot, enforcement: Enforcement) -> Device:
    gpu, mig = candidate.gpu, candidate.mig
    capability = "" if gpu.compute_capability is None else "{}.{}".format(*gpu.compute_capability)
    facts: dict[str, str | int | bool | None] = {
        "type": "mig" if mig else "gpu",
        "model": gpu.name,
        "architecture": _ARCHITECTURES.get(gpu.architecture or -1, ""),
        "computeCapability": capability,
        "driverVersion": snapshot.driver_version,
        "cudaVersion": "" if snapshot.cuda_version is None else "{}.{}".format(*snapshot.cuda_version),
        "index": gpu.index,
        "minor": gpu.minor,
        "pciAddress": gpu.bus_id,
        "serial": gpu.serial,
        "migMode": bool(gpu.mig_mode) if gpu.mig_mode is not None else None,
    }
    capacity: dict[str, int] = {}
    if mig is not None:
        facts |= {"parentUUID": gpu.uuid, "profile": mig.profile, "gpuInstance": mig.gpu_instance, "computeInstance": mig.compute_instance}
        capacity = {"memory": mig.memory, "multiprocessors": mig.multiprocessors, "copyEngines": mig.copy_engines, "decoders": mig.decoders}
        capacity |= {"encoders": mig.encoders, "jpegEngines": mig.jpegs, "ofaEngines": mig.ofas}
    elif gpu.memory is not None:
        capacity = {"memory": gpu.memory.total}
    memory = capacity.get("memory")
    facts["memoryMiB"] = memory >> 20 if memory is not None else None
    return Device(
        mig.uuid if mig else gpu.uuid,
        unit=gpu.uuid,
        resource=candidate.resource,
        health=verdict.health,
        cause=verdict.cause,
        numa_nodes=numa,
        attributes={name: value[:_LONGEST] if isinstance(value, str) else value for name, value in facts.items() if value not in ("", None)},
        capacity={name: amount for name, amount in capacity.items() if amount > 0},
        incarnation=verdict.incarnation,
        enforcement=enforcement,
    )


def numa_nodes(host: Host, gpu: Gpu) -> tuple[int, ...]:
    """The NUMA nodes the GPU is near to: as the kernel says, or where the firmware did not tell it, as NVML does."""
    if gpu.bus_id:
        try:
            node = sysfs.numa_node_of(host, sysfs.realpath(host, f"/sys/bus/pci/devices/{gpu.bus_id}"))
        except sysfs.SysfsError:
            node = None
        if node is not None:
            return (node,)
    return gpu.numa_nodes


def incarnation(host: Host, gpu: Gpu, loaded: str, driver_version: str) -> str:
    """What changes when the driver is loaded, or the GPU added to its bus, anew; empty where that cannot be told for sure."""
    try:
        # As with the module: the directory is made when the device is added, and has a new inode number then.
        added = os.stat(host.path(f"/sys/bus/pci/devices/{gpu.bus_id}")).st_ino if gpu.bus_id else 0
    except OSError:
        return ""
    return f"{driver_version}/{loaded}/{added}" if loaded and added and driver_version else ""


def links(gpus: Sequence[Gpu], ancestors: Sequence[Sequence[int | None]], numa: Mapping[str, Sequence[int]]) -> Topology:
    """How the GPUs are linked; scores as NVIDIA's allocator gives them, and NVLink through switches as well. Raises ValueError."""
    scores = [[0 if a is b else _score(a, b, ancestors) for b in gpus] for a in gpus]
    return Topology(scores, [next(iter(numa[gpu.uuid]), None) for gpu in gpus])


_FAR = 50
"""NVML_TOPOLOGY_SYSTEM: only the link between two sockets joins them."""

_JOINS = ((20, "PCIe switch"), (30, "PCIe host bridge"))
"""NVML_TOPOLOGY_SINGLE and _MULTIPLE: one or several switches; NVML_TOPOLOGY_HOSTBRIDGE."""


def connections(gpus: Sequence[Gpu], ancestors: Sequence[Sequence[int | None]]) -> list[Connection]:
    """The NVLinks that are up, between two GPUs and to the switches that join all; without any, what of PCIe joins the GPUs."""
    return [*_nvlinks(gpus)] or [*_pcie(gpus, ancestors)]


def _nvlinks(gpus: Sequence[Gpu]) -> Iterator[Connection]:
    for gpu in gpus:
        for other in gpus:
            if other.index > gpu.index and (lanes := sum(link.active and link.peer == other.index for link in gpu.links)):
                yield Connection(gpu.uuid, other.uuid, "NVLink", lanes)
        if lanes := sum(link.active and link.remote_type == _TO_SWITCH for link in gpu.links):
            yield Connection(gpu.uuid, "NVSwitch", "NVLink", lanes)


def _pcie(gpus: Sequence[Gpu], ancestors: Sequence[Sequence[int | None]]) -> Iterator[Connection]:
    """By the lowest thing that a GPU shares with another: that is what joins them, and whatever is above says nothing more."""
    left = [gpu for gpu in gpus if gpu.index < len(ancestors)]
    for level, name in _JOINS:
        number = 0
        for gpu in list(left):
            near = [other for other in left if other is gpu or (ancestors[gpu.index][other.index] or _FAR) <= level]
            if gpu in left and len(near) > 1:
                for other in near:
                    yield Connection(other.uuid, f"{name} {number}", "PCIe")
                left = [other for other in left if other not in near]
                number += 1


def _score(a: Gpu, b: Gpu, ancestors: Sequence[Sequence[int | None]]) -> int:
    known = a.index < len(ancestors) and b.index < len(ancestors)
    near = ancestors[a.index][b.index] if known else None
    direct = sum(link.active and link.peer == b.index for link in a.links)
    back = sum(link.active and link.peer == a.index for link in b.links)
    return _NEAR.get(50 if near is None else near, _NEAR[50]) + _NVLINK * (max(direct, back) + _switched(a, b))


def _switched(a: Gpu, b: Gpu) -> int:
    """Links by which two GPUs reach each other through switches: all switches of a machine are one fabric, which may be parted into cliques."""
    joined = [gpu.fabric for gpu in (a, b) if gpu.fabric is not None and gpu.fabric.state == _FABRIC_READY]
    if len({(fabric.cluster, fabric.clique) for fabric in joined}) > 1:
        return 0
    up = [sum(link.active and link.remote_type == _TO_SWITCH for link in gpu.links) for gpu in (a, b)]
    return min(up)
