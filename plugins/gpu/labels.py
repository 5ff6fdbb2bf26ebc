# SPDX-License-Identifier: Apache-2.0
"""Labels of the node that say which GPUs it has, under the names of NVIDIA's GPU Feature Discovery.

They go into a feature file of Node Feature Discovery. On a node with several models the labels of ``nvidia.com/gpu`` describe one: a model that is
handed out whole before one that is partitioned, then the one with the most GPUs, then the one with the first GPU.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

from deviceplugin import Host
from deviceplugin._native import nvml
from deviceplugin.labels import DIRECTORY, label_value

FILE: Final = f"{DIRECTORY}/gfd"
"""Where GPU Feature Discovery writes: its file is replaced, so that two do not say different things."""

_DOMAIN = "nvidia.com"
_GPU = "nvidia.com/gpu"
_MACHINE_FILE = "/sys/class/dmi/id/product_name"
_FABRIC_COMPLETED = 3
_MEBIBYTE = 1 << 20
_FAMILIES: Mapping[int, str] = MappingProxyType(
    {
        1: "tesla",
        2: "fermi",
        3: "kepler",
        5: "maxwell",
        6: "pascal",
        7: "volta",
        8: "ampere",
        9: "hopper",
        10: "blackwell",
        12: "blackwell",
        13: "rubin",
    }
)
_MODES = {"0x030000": "graphics", "0x030200": "compute"}


class Sharing(Struct, frozen=True, kw_only=True):
    """How one resource is shared. ``renamed``: pods ask for the shares by another name."""

    strategy: Literal["none", "time-slicing", "mps"] = "none"
    replicas: int = 1
    renamed: bool = False


_UNSHARED = Sharing()


def labels(
    snapshot: nvml.Snapshot,
    host: Host,
    *,
    mig_strategy: Literal["none", "single", "mixed"] = "none",
    sharing: Mapping[str, Sharing] = MappingProxyType({}),
    timestamp: int | None = None,
) -> dict[str, str]:
    """The labels by name. ``sharing`` is by resource; ``timestamp`` is seconds since 1970, and nothing is said of the time without it.

    None at all where there is no GPU.
    """
    if not snapshot.gpus:
        return {}
    found = _versions(snapshot) | _whole_gpus(snapshot.gpus, sharing.get(_GPU, _UNSHARED))
    if mig_strategy != "none":
        found["mig.strategy"] = mig_strategy
        found |= _single(snapshot.gpus, sharing) if mig_strategy == "single" else _mixed(snapshot.gpus, sharing)
    found["gpu.machine"] = _read(host, _MACHINE_FILE) or "unknown"
    found["gpu.mode"] = _mode(snapshot.gpus, host)
    found["mig.capable"] = _truth(any(gpu.mig_mode is not None for gpu in snapshot.gpus))
    mps = any(shared.strategy == "mps" for shared in sharing.values())
    found["mps.capable"] = _truth(mps and not any(gpu.mig_mode == 1 for gpu in snapshot.gpus))
    found |= _clique(snapshot.gpus) | _vgpu(snapshot.gpus, host)
    if timestamp is not None:
        found["gfd.timestamp"] = str(timestamp)
    return {f"{_DOMAIN}/{key}": label_value(found[key]) for key in sorted(found)}


def _versions(snapshot: nvml.Snapshot) -> dict[str, str]:
    found: dict[str, str] = {}
    if snapshot.driver_version:
        major, minor, revision = (*snapshot.driver_version.split("."), "", "")[:3]
        found |= {"cuda.driver.major": major, "cuda.driver.minor": minor, "cuda.driver.rev": revision}
        found |= {"cuda.driver-version.major": major, "cuda.driver-version.minor": minor, "cuda.driver-version.revision": revision}
        found["cuda.driver-version.full"] = snapshot.driver_version
    if snapshot.cuda_version is not None:
        major, minor = map(str, snapshot.cuda_version)
        found |= {"cuda.runtime.major": major, "cuda.runtime.minor": minor}
        found |= {"cuda.runtime-version.major": major, "cuda.runtime-version.minor": minor, "cuda.runtime-version.full": f"{major}.{minor}"}
    return found


def _whole_gpus(gpus: Iterable[nvml.Gpu], shared: Sharing) -> dict[str, str]:
    gpus = sorted(gpus, key=lambda gpu: gpu.index)
    counts = Counter(gpu.name for gpu in gpus)
    # One that is in MIG mode is not handed out whole, so nothing is said of how it is shared.
    gpu = min(gpus, key=lambda gpu: (gpu.mig_mode == 1, -counts[gpu.name], gpu.index))
    if gpu.mig_mode == 1:
        found = _resource("gpu", gpu.name, counts[gpu.name], _UNSHARED) | {"gpu.replicas": "0"}
    else:
        found = _resource("gpu", gpu.name, counts[gpu.name], shared)
    if gpu.memory is not None:
        found["gpu.memory"] = str(gpu.memory.total // _MEBIBYTE)
    if gpu.compute_capability is not None:
        major, minor = gpu.compute_capability
        found |= {"gpu.family": _family(major, minor), "gpu.compute.major": str(major), "gpu.compute.minor": str(minor)}
    return found


def _family(major: int, minor: int) -> str:
    if (major, minor) == (7, 5):
        return "turing"
    if (major, minor) == (8, 9):
        return "ada-lovelace"
    return _FAMILIES.get(major, "undefined")


def _single(gpus: Iterable[nvml.Gpu], sharing: Mapping[str, Sharing]) -> dict[str, str]:
    """With the strategy ``single`` all MIG devices must be alike, and they are then what ``nvidia.com/gpu`` is."""
    gpus = list(gpus)
    partitioned = [gpu for gpu in gpus if gpu.mig_mode == 1]
    if not partitioned:
        return {}
    profiles = {mig.profile for gpu in partitioned for mig in gpu.migs}
    if len(partitioned) < len(gpus) or len(profiles) != 1 or not all(gpu.migs for gpu in partitioned):
        return {"gpu.product": f"{partitioned[0].name}-MIG-INVALID", "gpu.count": "0", "gpu.replicas": "0", "gpu.memory": "0"}
    return _mig_resource("gpu", partitioned, profiles.pop(), sharing.get(_GPU, _UNSHARED))


def _mixed(gpus: Iterable[nvml.Gpu], sharing: Mapping[str, Sharing]) -> dict[str, str]:
    gpus = list(gpus)
    found: dict[str, str] = {}
    for profile in sorted({mig.profile for gpu in gpus for mig in gpu.migs}):
        resource = f"mig-{profile.replace('+', '.')}"
        found |= _mig_resource(resource, gpus, profile, sharing.get(f"{_DOMAIN}/{resource}", _UNSHARED))
    return found


def _mig_resource(resource: str, gpus: Iterable[nvml.Gpu], profile: str, shared: Sharing) -> dict[str, str]:
    all_alike = [(gpu, mig) for gpu in gpus for mig in gpu.migs if mig.profile == profile]
    gpu, mig = min(all_alike, key=lambda pair: (pair[0].index, pair[1].index))
    facts = {
        "memory": mig.memory // _MEBIBYTE,
        "multiprocessors": mig.multiprocessors,
        "slices.gi": mig.gpu_slices,
        "slices.ci": mig.compute_slices,
        "engines.copy": mig.copy_engines,
        "engines.decoder": mig.decoders,
        "engines.encoder": mig.encoders,
        "engines.jpeg": mig.jpegs,
        "engines.ofa": mig.ofas,
    }
    product = f"{gpu.name}-MIG-{profile.replace('+', '.')}"
    return _resource(resource, product, len(all_alike), shared) | {f"{resource}.{key}": str(value) for key, value in facts.items()}


def _resource(resource: str, product: str, count: int, shared: Sharing) -> dict[str, str]:
    is_shared = shared.replicas > 1
    return {
        f"{resource}.product": f"{product}-SHARED" if is_shared and not shared.renamed else product,
        f"{resource}.count": str(count),
        f"{resource}.replicas": str(shared.replicas),
        f"{resource}.sharing-strategy": shared.strategy if is_shared else "none",
    }


def _mode(gpus: Iterable[nvml.Gpu], host: Host) -> str:
    classes = {_read(host, f"{_pci(gpu)}/class") for gpu in gpus}
    return _MODES.get(classes.pop(), "unknown") if len(classes) == 1 else "unknown"


def _clique(gpus: Iterable[nvml.Gpu]) -> dict[str, str]:
    """GPUs that reach each other over NVLink, on this node and others. Of a node in several of these groups nothing can be said in one label."""
    groups = {(gpu.fabric.cluster, gpu.fabric.clique) for gpu in gpus if gpu.fabric is not None and gpu.fabric.state == _FABRIC_COMPLETED}
    groups = {(cluster, clique) for cluster, clique in groups if cluster.strip("0")}
    if len(groups) != 1:
        return {}
    cluster, clique = groups.pop()
    return {"gpu.clique": f"{uuid.UUID(hex=cluster)}.{clique}"}


def _vgpu(gpus: Iterable[nvml.Gpu], host: Host) -> dict[str, str]:
    """What the hypervisor says in the PCI configuration of a virtual GPU: its driver's version and branch."""
    for gpu in sorted(gpus, key=lambda gpu: gpu.index):
        record = _vendor_record(host, gpu)
        if record is None:
            continue
        found = {"vgpu.present": "true"}
        if versions := _host_driver(record):
            found["vgpu.host-driver-version"], found["vgpu.host-driver-branch"] = versions
        return found
    return {}


def _vendor_record(host: Host, gpu: nvml.Gpu) -> bytes | None:
    """The vendor-specific capability of a virtual GPU; None for a GPU of metal."""
    try:
        with open(host.path(f"{_pci(gpu)}/config"), "rb") as file:
            config = file.read(256)
    except OSError:
        return None  # sysfs has no file for it: nothing says that it is virtual
    if len(config) < 256 or not config[6] & 0x10:  # PCI_STATUS_CAP_LIST
        return None
    at, seen = config[0x34] & 0xFC, set[int]()
    while at >= 0x40 and at not in seen:  # a broken list may lead back to itself
        seen.add(at)
        if config[at] == 0x09:  # PCI_CAP_ID_VNDR, followed by the next one's place, the length, and a vendor's own bytes
            record = config[at : at + config[at + 2]]
            if record[3:5] == b"VF":
                return record
        at = config[at + 1] & 0xFC
    return None


def _host_driver(record: bytes) -> tuple[str, str] | None:
    at = 5
    while at + 1 < len(record) and record[at] != 0:  # each part of the record has a type and a length; type 0 holds the versions
        if record[at + 1] == 0:
            return None
        at += record[at + 1]
    if at + 22 > len(record):
        return None
    version, branch = (record[start : start + 10].strip(b"\0").decode("ascii", "replace") for start in (at + 2, at + 12))
    return version, branch


def _pci(gpu: nvml.Gpu) -> str:
    return f"/sys/bus/pci/devices/{gpu.bus_id.lower()[-12:]}"  # NVML has eight digits for the domain, the kernel four


def _read(host: Host, path: str) -> str:
    try:
        with open(host.path(path), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:  # not every machine has it, and a label less is no fault
        return ""


def _truth(value: bool) -> str:
    return "true" if value else "false"
