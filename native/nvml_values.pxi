# SPDX-License-Identifier: Apache-2.0
"""What the binding answers with: plain Python values, and its errors. A part of nvml.pyx."""

import enum

from msgspec import Struct

# What the return codes mean, in words.
_CODES = {
    1: "not initialised", 2: "invalid argument", 3: "not supported", 4: "no permission", 5: "already initialised", 6: "not found",
    7: "insufficient size", 8: "insufficient power", 9: "driver not loaded", 10: "timeout", 11: "interrupt problem", 12: "library not found",
    13: "function not found in this version of the library", 14: "corrupted infoROM", 15: "GPU is lost", 16: "GPU requires a reset",
    17: "blocked by the operating system", 18: "driver and library versions differ", 19: "in use", 20: "out of memory", 21: "no data",
    23: "insufficient resources", 25: "argument version mismatch", 26: "deprecated", 27: "not ready", 28: "GPU not found", 29: "invalid state",
}


class State(enum.Enum):
    """What became of opening the library."""

    CLOSED = "closed"
    NO_LIBRARY = "library not found"
    BAD_LIBRARY = "library unusable"
    NO_DRIVER = "driver not loaded"
    MISMATCH = "driver and library versions differ"
    FAILED = "initialisation failed"
    READY = "ready"


class NvmlError(Exception):
    """A call that failed: ``function``, and NVML's return ``code``."""

    def __init__(self, function: str, code: int):
        super().__init__(f"{function}: {describe(code)} (NVML code {code})")
        self.function = function
        self.code = code


class NotReadyError(NvmlError):
    """NVML cannot be asked anything now; ``state`` says why."""

    def __init__(self, state: State, reason: str):
        Exception.__init__(self, f"NVML: {reason or state.value}")
        self.function = ""
        self.code = 1
        self.state = state


class Failure(Struct, frozen=True):
    """A call that a GPU did not answer, and NVML's return code. 3 and 13 only mean that the GPU or the library cannot tell."""

    function: str
    code: int

    def __str__(self) -> str:
        return f"{self.function}: {describe(self.code)}"


class Link(Struct, frozen=True):
    """One NVLink of a GPU. ``version`` is NVML's number (6 is NVLink 4.0), ``remote_type`` what is at the other end (0 a GPU, 1 an IBM NPU, 2 an
    NVSwitch, 255 unknown), ``peer`` the number of the GPU there. Of a link that is down nothing else is known.
    """

    index: int
    active: bool
    version: int | None
    remote_type: int | None
    remote_bus_id: str
    peer: int | None


class Fabric(Struct, frozen=True):
    """A GPU in an NVSwitch fabric: ``state`` 3 once it has joined (1 not yet, 2 joining), ``status`` then an NVML code, ``cluster`` 32 hexadecimal
    digits, ``clique`` the part of the cluster it can reach, ``health`` NVML's mask, None from a library that has none.
    """

    state: int
    status: int
    clique: int
    cluster: str
    health: int | None


class Mig(Struct, frozen=True):
    """A MIG device: ``profile`` as NVIDIA's tools write it (``1g.10gb``, ``1g.10gb+me``, ``1c.3g.40gb``), ``memory`` bytes."""

    index: int
    uuid: str
    name: str
    profile: str
    gpu_instance: int
    compute_instance: int
    gpu_slices: int
    compute_slices: int
    memory: int
    multiprocessors: int
    copy_engines: int
    decoders: int
    encoders: int
    jpegs: int
    ofas: int


class Memory(Struct, frozen=True):
    """Bytes. Where ``reserved`` is None the library counts it as used."""

    total: int
    free: int
    used: int
    reserved: int | None


class Ecc(Struct, frozen=True):
    """ECC mode, and errors counted since the driver was loaded (volatile) and for ever (aggregate)."""

    enabled: bool
    pending: bool
    corrected_volatile: int | None
    corrected_aggregate: int | None
    uncorrected_volatile: int | None
    uncorrected_aggregate: int | None


class RemappedRows(Struct, frozen=True):
    """Rows of memory replaced after errors; ``pending``: a reset will replace more; ``failure``: no spare was left."""

    corrected: int
    uncorrected: int
    pending: bool
    failure: bool


class Gpu(Struct, frozen=True):
    """A GPU. None is what it or the library cannot tell; ``failures`` says which call said so. ``lost``: it has fallen off the bus, and what was not
    read before is empty. ``bus_id`` is written as sysfs writes it, ``power`` and ``power_limit`` are milliwatts, ``temperature`` degrees Celsius,
    utilisations percent, ``numa_nodes`` those whose memory is nearest.
    """

    index: int
    uuid: str
    name: str
    serial: str
    bus_id: str
    pci_device_id: int | None
    pci_subsystem_id: int | None
    minor: int | None
    brand: int | None
    architecture: int | None
    compute_capability: tuple[int, int] | None
    compute_mode: int | None
    memory: Memory | None
    numa_nodes: tuple[int, ...]
    event_types: int | None
    mig_mode: int | None
    mig_pending: int | None
    max_mig: int | None
    migs: tuple[Mig, ...]
    links: tuple[Link, ...]
    fabric: Fabric | None
    ecc: Ecc | None
    remapped_rows: RemappedRows | None
    retired_pages_pending: bool | None
    temperature: int | None
    power: int | None
    power_limit: int | None
    gpu_utilization: int | None
    memory_utilization: int | None
    lost: bool
    failures: tuple[Failure, ...]


class Snapshot(Struct, frozen=True):
    """A machine. ``ancestors[a][b]`` is the closest thing that two GPUs share: 0 a board, 10 one PCIe switch, 20 several, 30 a host bridge, 40 a NUMA
    node, 50 nothing but the system; None of a GPU with itself, and where NVML did not say.
    """

    driver_version: str
    nvml_version: str
    cuda_version: tuple[int, int] | None
    gpus: tuple[Gpu, ...]
    ancestors: tuple[tuple[int | None, ...], ...]
    failures: tuple[Failure, ...]


class Event(Struct, frozen=True):
    """Something that happened to GPU number ``gpu``: for XID ``data`` is the XID. The instances are those of a MIG device, where one is meant. LOST
    means that the GPU is gone.
    """

    type: int
    data: int
    gpu: int | None
    uuid: str
    gpu_instance: int | None
    compute_instance: int | None


def describe(code: int) -> str:
    """NVML's return code in words."""
    return _CODES.get(code, f"unknown error {code}")
