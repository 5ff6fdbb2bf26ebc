# SPDX-License-Identifier: Apache-2.0
import enum
import os
from types import TracebackType
from typing import Self, final

from msgspec import Struct

SONAME: str

SINGLE_BIT_ECC: int
DOUBLE_BIT_ECC: int
XID: int
MIG_CONFIG_CHANGE: int
GPU_UNAVAILABLE: int
RECOVERY_ACTION: int
LOST: int

NOT_SUPPORTED: int
FUNCTION_NOT_FOUND: int
GPU_IS_LOST: int

class State(enum.Enum):
    CLOSED = "closed"
    NO_LIBRARY = "library not found"
    BAD_LIBRARY = "library unusable"
    NO_DRIVER = "driver not loaded"
    MISMATCH = "driver and library versions differ"
    FAILED = "initialisation failed"
    READY = "ready"

class NvmlError(Exception):
    function: str
    code: int
    def __init__(self, function: str, code: int) -> None: ...

class NotReadyError(NvmlError):
    state: State
    def __init__(self, state: State, reason: str) -> None: ...

class Failure(Struct, frozen=True):
    function: str
    code: int

class Link(Struct, frozen=True):
    index: int
    active: bool
    version: int | None
    remote_type: int | None
    remote_bus_id: str
    peer: int | None

class Fabric(Struct, frozen=True):
    state: int
    status: int
    clique: int
    cluster: str
    health: int | None

class Mig(Struct, frozen=True):
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
    total: int
    free: int
    used: int
    reserved: int | None

class Ecc(Struct, frozen=True):
    enabled: bool
    pending: bool
    corrected_volatile: int | None
    corrected_aggregate: int | None
    uncorrected_volatile: int | None
    uncorrected_aggregate: int | None

class RemappedRows(Struct, frozen=True):
    corrected: int
    uncorrected: int
    pending: bool
    failure: bool

class Gpu(Struct, frozen=True):
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
    driver_version: str
    nvml_version: str
    cuda_version: tuple[int, int] | None
    gpus: tuple[Gpu, ...]
    ancestors: tuple[tuple[int | None, ...], ...]
    failures: tuple[Failure, ...]

class Event(Struct, frozen=True):
    type: int
    data: int
    gpu: int | None
    uuid: str
    gpu_instance: int | None
    compute_instance: int | None

def describe(code: int) -> str: ...
def candidates(path: str | None = None, root: str = "/") -> list[str]: ...

@final
class Nvml:
    def __init__(self, path: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] = "/") -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    @property
    def state(self) -> State: ...
    @property
    def reason(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def missing(self) -> frozenset[str]: ...
    def open(self) -> State: ...
    def snapshot(self, topology: bool = True, health: bool = True) -> Snapshot: ...
    def events(self, types: int = ...) -> EventSet: ...
    def close(self) -> None: ...

@final
class EventSet:
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def registered(self) -> dict[int, int]: ...
    @property
    def failures(self) -> dict[int, int]: ...
    def wait(self, timeout: float | None = None) -> Event | None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...
