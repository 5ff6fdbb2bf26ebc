# SPDX-License-Identifier: Apache-2.0
"""What a snapshot must say, asked of the same library through NVIDIA's own Python binding: one call at a time, ctypes structures, no sharing."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from deviceplugin._native import nvml


@contextmanager
def library(path: str | os.PathLike[str]) -> Iterator[None]:
    """pynvml initialised on this library; it keeps one for the process, and looks functions up by name in a cache."""
    before = pynvml.nvmlLib
    pynvml.nvmlLib = ctypes.CDLL(os.fspath(path))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        pynvml.nvmlInit()
        try:
            yield
        finally:
            pynvml.nvmlShutdown()
    finally:
        pynvml.nvmlLib = before
        pynvml._nvmlGetFunctionPointer_cache.clear()


class Asked:
    """The calls about one GPU: notes each kind of failure once, and asks no more once the GPU is lost. Without a GPU nothing is ever lost."""

    def __init__(self, *, machine: bool = False) -> None:
        self.failures: list[nvml.Failure] = []
        self.machine = machine
        self.lost = False

    def note(self, function: str, code: int) -> None:
        self.lost = self.lost or (code == pynvml.NVML_ERROR_GPU_IS_LOST and not self.machine)
        if nvml.Failure(function, code) not in self.failures:
            self.failures.append(nvml.Failure(function, code))

    def ask(self, function: str, *args: Any, default: Any = None, quiet: tuple[int, ...] = (), **more: Any) -> Any:
        """Calls pynvml's function of this name (the symbol's without its version) and gives its answer, or the default."""
        if self.lost:
            return default
        try:
            return getattr(pynvml, re.sub("_v[23]$", "", function))(*args, **more)
        except pynvml.NVMLError as error:
            if error.value not in quiet:
                self.note(function, error.value)
            return default


def address(pci: Any) -> str:
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"


def snapshot(path: str | os.PathLike[str]) -> nvml.Snapshot:
    with library(path):
        everyone = Asked(machine=True)
        count = pynvml.nvmlDeviceGetCount()
        driver = everyone.ask("nvmlSystemGetDriverVersion", default="")
        version = everyone.ask("nvmlSystemGetNVMLVersion", default="")
        cuda = everyone.ask("nvmlSystemGetCudaDriverVersion")
        asked = [Asked() for _ in range(count)]
        handles = [a.ask("nvmlDeviceGetHandleByIndex_v2", n) for n, a in enumerate(asked)]
        fields = [identity(a, h) if h else {} for a, h in zip(asked, handles, strict=True)]
        for a, h, f in zip(asked, handles, fields, strict=True):
            if h:
                f.update(topology(a, h))
                f.update(health(a, h))
        ancestors = common(asked, handles)
        peers = {f["bus_id"]: n for n, f in enumerate(fields) if f.get("bus_id")}
        return nvml.Snapshot(
            driver,
            version,
            (cuda // 1000, cuda % 1000 // 10) if cuda is not None else None,
            tuple(gpu(n, a, f, peers) for n, (a, f) in enumerate(zip(asked, fields, strict=True))),
            ancestors,
            tuple(everyone.failures),
        )


def gpu(number: int, asked: Asked, known: dict[str, Any], peers: dict[str, int]) -> nvml.Gpu:
    texts = dict.fromkeys(("uuid", "name", "serial", "bus_id"), "")
    several: dict[str, Any] = dict.fromkeys(("numa_nodes", "migs", "links"), ())
    values: dict[str, Any] = dict.fromkeys(nvml.Gpu.__struct_fields__) | texts | several | known
    values["links"] = tuple(nvml.Link(**link, peer=peers.get(link["remote_bus_id"])) for link in values["links"])
    return nvml.Gpu(**{**values, "index": number, "lost": asked.lost, "failures": tuple(asked.failures)})


def identity(a: Asked, h: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "uuid": a.ask("nvmlDeviceGetUUID", h, default=""),
        "name": a.ask("nvmlDeviceGetName", h, default=""),
        "serial": a.ask("nvmlDeviceGetSerial", h, default=""),
    }
    if pci := a.ask("nvmlDeviceGetPciInfo_v3", h):
        known.update(bus_id=address(pci), pci_device_id=pci.pciDeviceId, pci_subsystem_id=pci.pciSubSystemId)
    known["minor"] = a.ask("nvmlDeviceGetMinorNumber", h)
    known["brand"] = a.ask("nvmlDeviceGetBrand", h)
    known["architecture"] = a.ask("nvmlDeviceGetArchitecture", h)
    known["compute_capability"] = a.ask("nvmlDeviceGetCudaComputeCapability", h)
    if known["compute_capability"]:
        known["compute_capability"] = tuple(known["compute_capability"])
    known["compute_mode"] = a.ask("nvmlDeviceGetComputeMode", h)
    if m := a.ask("nvmlDeviceGetMemoryInfo_v2", h, version=pynvml.nvmlMemory_v2):
        known["memory"] = nvml.Memory(m.total, m.free, m.used, m.reserved)
    nodes = a.ask("nvmlDeviceGetMemoryAffinity", h, 4, pynvml.NVML_AFFINITY_SCOPE_NODE, default=())
    known["numa_nodes"] = tuple(64 * n + bit for n, word in enumerate(nodes) for bit in range(64) if word >> bit & 1)
    known["event_types"] = a.ask("nvmlDeviceGetSupportedEventTypes", h)
    if mode := a.ask("nvmlDeviceGetMigMode", h):
        known["mig_mode"], known["mig_pending"] = mode
        if mode[0]:
            known.update(migs(a, h, known.get("memory")))
    return known


def migs(a: Asked, h: Any, memory: nvml.Memory | None) -> dict[str, Any]:
    count = a.ask("nvmlDeviceGetMaxMigDeviceCount", h)
    if count is None:
        return {}
    found = []
    for n in range(count):
        m = a.ask("nvmlDeviceGetMigDeviceHandleByIndex", h, n, quiet=(pynvml.NVML_ERROR_NOT_FOUND,))
        if not m:
            continue
        uuid = a.ask("nvmlDeviceGetUUID", m)
        gi: Any = None if uuid is None else a.ask("nvmlDeviceGetGpuInstanceId", m)
        ci: Any = None if gi is None else a.ask("nvmlDeviceGetComputeInstanceId", m)
        t = None if ci is None else a.ask("nvmlDeviceGetAttributes_v2", m)
        if t is None:
            continue
        name = a.ask("nvmlDeviceGetName", m, default="")
        found.append(
            nvml.Mig(
                n, uuid, name, profile(a, h, gi, ci, t, name, memory), gi, ci, t.gpuInstanceSliceCount, t.computeInstanceSliceCount,
                t.memorySizeMB << 20, t.multiprocessorCount, t.sharedCopyEngineCount, t.sharedDecoderCount, t.sharedEncoderCount,
                t.sharedJpegCount, t.sharedOfaCount,
            )
        )  # fmt: skip
    return {"max_mig": count, "migs": tuple(found)}


SLICES = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7, 5: 8, 6: 6, 7: 1, 8: 2, 9: 1, 10: 1, 11: 2, 12: 4, 13: 1, 14: 2, 15: 1, 16: 2}
SUFFIXES = {7: "+me", 8: "+me", 10: "+gfx", 11: "+gfx", 12: "+gfx", 13: "-me", 14: "-me", 15: "+me.all", 16: "+me.all"}
NOT_OF_THIS_MODEL = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT)


def profile(a: Asked, h: Any, gi: int, ci: int, attributes: Any, name: str, memory: nvml.Memory | None) -> str:
    """The name go-nvlib gives: slices by the numbers of the profiles, memory in eighths of the GPU's, rounded up."""
    instance = a.ask("nvmlDeviceGetGpuInstanceById", h, gi)
    info = instance and a.ask("nvmlGpuInstanceGetInfo", instance)
    compute = info and a.ask("nvmlGpuInstanceGetComputeInstanceById", instance, ci)
    compute_info = compute and a.ask("nvmlComputeInstanceGetInfo_v2", compute)
    index = slices = None
    if compute_info:
        for n in range(17):
            p = a.ask("nvmlDeviceGetGpuInstanceProfileInfo", h, n, 1, quiet=NOT_OF_THIS_MODEL)
            if index is None and p and p.id == info.profileId:
                index = n
        for n in range(8 if index is not None else 0):
            p = a.ask("nvmlGpuInstanceGetComputeInstanceProfileInfo", instance, n, 0, 1, quiet=NOT_OF_THIS_MODEL)
            if p is None and any(f.function == "nvmlGpuInstanceGetComputeInstanceProfileInfo" for f in a.failures):
                break
            if p and p.id == compute_info.profileId:
                slices = SLICES[n] if n != 7 else 1
                break
    if index is None or slices is None:
        if " MIG " in name:
            return name.partition(" MIG ")[2]
        whole, slices, suffix = attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount, ""
    else:
        whole, suffix = SLICES[index], SUFFIXES.get(index, "")
    if not memory:
        size = math.floor(attributes.memorySizeMB / 1024 + 0.5)
    else:
        eighths = math.ceil(attributes.memorySizeMB * 2**20 * 8 / memory.total)
        size = math.floor(eighths / 8 * math.ceil(memory.total / 2**30) + 0.5)
    return f"{'' if slices == whole else f'{slices}c.'}{whole}g.{size}gb{suffix}" if whole else ""


def topology(a: Asked, h: Any) -> dict[str, Any]:
    links: list[dict[str, Any]] = []
    for n in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if a.lost:
            break
        try:
            active = pynvml.nvmlDeviceGetNvLinkState(h, n)
        except pynvml.NVMLError as error:
            if n and error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                break
            a.note("nvmlDeviceGetNvLinkState", error.value)
            if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                break
            continue
        version = kind = pci = None
        if active:
            version = a.ask("nvmlDeviceGetNvLinkVersion", h, n)
            kind = a.ask("nvmlDeviceGetNvLinkRemoteDeviceType", h, n)
            pci = a.ask("nvmlDeviceGetNvLinkRemotePciInfo_v2", h, n)
        links.append({"index": n, "active": bool(active), "version": version, "remote_type": kind, "remote_bus_id": address(pci) if pci else ""})
    known: dict[str, Any] = {"links": links}
    fabric = pynvml.c_nvmlGpuFabricInfoV_t()
    fabric.version = pynvml.nvmlGpuFabricInfo_v2
    if a.ask("nvmlDeviceGetGpuFabricInfoV", h, ctypes.byref(fabric)) == pynvml.NVML_SUCCESS:
        known["fabric"] = nvml.Fabric(fabric.state, fabric.status, fabric.cliqueId, bytes(fabric.clusterUuid).hex(), fabric.healthMask)
    return known


def health(a: Asked, h: Any) -> dict[str, Any]:
    known: dict[str, Any] = {}
    if mode := a.ask("nvmlDeviceGetEccMode", h):
        counts = [a.ask("nvmlDeviceGetTotalEccErrors", h, kind, over) if mode[0] else None for kind in (0, 1) for over in (0, 1)]
        known["ecc"] = nvml.Ecc(bool(mode[0]), bool(mode[1]), *counts)
    if rows := a.ask("nvmlDeviceGetRemappedRows", h):
        known["remapped_rows"] = nvml.RemappedRows(rows[0], rows[1], bool(rows[2]), bool(rows[3]))
    pending = a.ask("nvmlDeviceGetRetiredPagesPendingStatus", h)
    known["retired_pages_pending"] = None if pending is None else bool(pending)
    known["temperature"] = a.ask("nvmlDeviceGetTemperature", h, pynvml.NVML_TEMPERATURE_GPU)
    known["power"] = a.ask("nvmlDeviceGetPowerUsage", h)
    known["power_limit"] = a.ask("nvmlDeviceGetEnforcedPowerLimit", h)
    if use := a.ask("nvmlDeviceGetUtilizationRates", h):
        known.update(gpu_utilization=use.gpu, memory_utilization=use.memory)
    return known


def common(asked: list[Asked], handles: list[Any]) -> tuple[tuple[int | None, ...], ...]:
    levels: list[list[int | None]] = [[None] * len(handles) for _ in handles]
    for a in range(len(handles)):
        for b in range(a + 1, len(handles)):
            if not handles[a] or not handles[b] or asked[b].lost:
                continue
            level = asked[a].ask("nvmlDeviceGetTopologyCommonAncestor", handles[a], handles[b])
            levels[a][b] = levels[b][a] = level
    return tuple(map(tuple, levels))
