# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs that are not there: scenarios for the simulated ``libnvidia-ml.so.1`` that comes with this package.

    machine = dgx_h100()
    library = machine.install(tmp_path)     # a libnvidia-ml.so.1 of its own, driven by the scenario beside it
    machine.inject_xid(3, 79)               # whoever waits for events on that library wakes
    machine.lose(3)                         # every call about that GPU now says NVML_ERROR_GPU_IS_LOST
    machine.partition(0, "3g.40gb", "3g.40gb")

The library takes the scenario from ``DEVICEPLUGIN_NVML_SCENARIO``, else from the file ``scenario`` in its own folder, and reads it again whenever it
changes; without the file there is no driver. Any program that opens ``libnvidia-ml.so.1`` can run on it: put its folder in ``LD_LIBRARY_PATH``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType

LIBRARIES = Path(__file__).parent / "libnvidia_ml_sim"
SONAME = "libnvidia-ml.so.1"

XID_EVENT, DOUBLE_BIT_ECC_EVENT, SINGLE_BIT_ECC_EVENT, MIG_EVENT = 0x8, 0x2, 0x1, 0x100
TO_GPU, TO_SWITCH = 0, 2
_KEPT_EVENTS = 256
_NAMES = uuid.UUID("6d0cb2a4-5a55-4f63-9f0b-6b7d9f1c7b1e")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU: the names are those of the scenario file. A negative number means that the GPU does not support the query.

    ``tree`` places it: NUMA node, host bridge, outer switch, inner switch, board. How many of these two GPUs share is their common ancestor.
    ``memory``, ``reserved`` and ``used`` are bytes, ``power`` and ``power_limit`` milliwatts, ``temperature`` degrees Celsius, ``events`` a mask of
    event types, ``cluster`` 32 hexadecimal digits, ``profiles`` the name of a table in :data:`MIG_PROFILES`.
    """

    uuid: str = ""
    name: str = "NVIDIA Simulated GPU"
    serial: str = ""
    pci: str = "0000:00:00.0"
    compute: str = "7.5"
    tree: str = "0.0.0.0.0"
    profiles: str = ""
    cluster: str = ""
    device_id: int = 0x10DE
    subsystem_id: int = 0
    minor: int = -1
    brand: int = 14
    architecture: int = 6
    memory: int = 16 << 30
    reserved: int = 0
    used: int = 0
    numa: int = -1
    mig_mode: int = -1
    mig_pending: int = -1
    max_mig: int = 0
    links: int = 0
    fabric_state: int = -1
    fabric_status: int = 0
    clique: int = 0
    fabric_health: int = 0
    fabric_summary: int = 0
    ecc_mode: int = -1
    ecc_pending: int = -1
    ecc_corrected_volatile: int = 0
    ecc_corrected_aggregate: int = 0
    ecc_uncorrected_volatile: int = 0
    ecc_uncorrected_aggregate: int = 0
    remap_corrected: int = -1
    remap_uncorrected: int = 0
    remap_pending: int = 0
    remap_failure: int = 0
    retired_pending: int = -1
    temperature: int = 34
    power: int = 65000
    power_limit: int = 300000
    use_gpu: int = 0
    use_memory: int = 0
    events: int = 0x1F
    compute_mode: int = 0
    persistence: int = 1
    lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One end of an NVLink: what GPU number ``gpu`` sees at its link number ``link``. ``version`` is NVML's number for the NVLink version."""

    gpu: int
    link: int
    remote: str = ""
    type: int = TO_GPU
    version: int = 2
    state: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mig:
    """One MIG device: compute instance ``ci`` of GPU instance ``gi``. ``start`` and ``size`` are memory slices."""

    gpu: int
    index: int
    uuid: str
    gi: int
    ci: int = 0
    gi_profile: int = 0
    ci_profile: int = 0
    start: int = 0
    size: int = 1
    ci_start: int = 0
    ci_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A GPU instance profile: ``index`` is its number in NVML, ``id`` the driver's, ``memory`` MiB, ``size`` memory slices of eight."""

    name: str
    index: int
    id: int
    slices: int
    instances: int
    multiprocessors: int
    copy_engines: int
    decoders: int
    memory: int
    size: int
    encoders: int = 0
    jpegs: int = 0
    ofas: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a function does before, or instead of, its work: wait, die, or return ``result``. ``function`` ``*`` is all but the initialisation."""

    function: str
    gpu: int = -1
    result: int = 0
    delay_us: int = 0
    crash: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    sequence: int
    gpu: int
    type: int
    data: int = 0
    gi: int = 0xFFFFFFFF
    ci: int = 0xFFFFFFFF


def _profile(row: str) -> Profile:
    name, *rest = row.split()
    keys = ("index", "id", "slices", "instances", "multiprocessors", "copy_engines", "decoders", "jpegs", "ofas", "memory", "size")
    return Profile(name=name, **dict(zip(keys, map(int, rest), strict=True)))


def _profiles(table: str) -> tuple[Profile, ...]:
    return tuple(map(_profile, table.strip().splitlines()))


# name, NVML's index, the driver's id, slices, instances, multiprocessors, copy engines, decoders, JPEGs, OFAs, MiB, memory slices
MIG_PROFILES: Mapping[str, tuple[Profile, ...]] = MappingProxyType(
    {
        "h100-80gb": _profiles("""
            1g.10gb    0 19 1 7  16 1 1 1 0  9984 1
            1g.10gb+me 7 20 1 1  16 1 1 1 1  9984 1
            1g.20gb    9 15 1 4  26 1 1 1 0 20096 2
            2g.20gb    1 14 2 3  32 2 2 2 0 20096 2
            3g.40gb    2  9 3 2  60 3 3 3 0 40448 4
            4g.40gb    3  5 4 1  64 4 4 4 0 40448 4
            7g.80gb    4  0 7 1 132 8 7 7 1 81152 8
        """),
        "a100-40gb": _profiles("""
            1g.5gb     0 19 1 7 14 1 0 0 0  4864 1
            1g.5gb+me  7 20 1 1 14 1 1 1 1  4864 1
            1g.10gb    9 15 1 4 14 1 1 0 0  9856 2
            2g.10gb    1 14 2 3 28 2 1 0 0  9856 2
            3g.20gb    2  9 3 2 42 3 2 0 0 19968 4
            4g.20gb    3  5 4 1 56 4 2 0 0 19968 4
            7g.40gb    4  0 7 1 98 7 5 1 1 40192 8
        """),
    }
)

#: Ways to partition an H100 of 80 GB: what each GPU instance is, and after a colon the slices of its compute instances.
H100_LAYOUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all-1g.10gb": ("1g.10gb",) * 7,
        "media": ("1g.10gb+me", *("1g.10gb",) * 6),
        "all-1g.20gb": ("1g.20gb",) * 4,
        "all-2g.20gb": ("2g.20gb",) * 3,
        "all-3g.40gb": ("3g.40gb",) * 2,
        "all-4g.40gb": ("4g.40gb",),
        "all-7g.80gb": ("7g.80gb",),
        "balanced": ("3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"),
        "shared-compute": ("3g.40gb:1,2", "4g.40gb:2,2"),
        "empty": (),
    }
)

_ALONE = ("0." * 3 + "0",)
_COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4, 8: 5, 6: 6}

H100 = Gpu(
    name="NVIDIA H100 80GB HBM3", compute="9.0", architecture=9, device_id=0x233010DE, subsystem_id=0x16C110DE, memory=81559 << 20,
    reserved=529 << 20, profiles="h100-80gb", mig_mode=0, max_mig=7, ecc_mode=1, remap_corrected=0, power_limit=700000, events=0xDF9F,
)  # fmt: skip
A100 = replace(
    H100, name="NVIDIA A100-SXM4-40GB", compute="8.0", architecture=7, device_id=0x20B010DE, subsystem_id=0x134F10DE, memory=40960 << 20,
    profiles="a100-40gb", power_limit=400000, events=0x19F,
)  # fmt: skip
V100 = Gpu(
    name="Tesla V100-SXM2-16GB", compute="7.0", architecture=5, device_id=0x1DB110DE, subsystem_id=0x121210DE, brand=2, ecc_mode=1, retired_pending=0,
)  # fmt: skip
L40S = Gpu(
    name="NVIDIA L40S", compute="8.9", architecture=8, device_id=0x26B910DE, subsystem_id=0x185110DE, memory=46068 << 20, reserved=600 << 20,
    ecc_mode=1, remap_corrected=0, power_limit=350000, events=0x19F,
)  # fmt: skip
T4 = Gpu(
    name="Tesla T4",
    compute="7.5",
    device_id=0x1EB810DE,
    subsystem_id=0x12A210DE,
    brand=2,
    memory=15360 << 20,
    ecc_mode=1,
    retired_pending=0,
    power_limit=70000,
)


class Scenario:
    """A machine with GPUs. Each method that changes it rewrites the file, once :meth:`write` or :meth:`install` has said where that is.

    GPUs are given by number. Not for more than one thread at a time.
    """

    def __init__(
        self, gpus: Iterable[Gpu] = (), *, links: Iterable[Link] = (), driver: str = "550.90.07", nvml: str = "12.550.90.07", cuda: int = 12040
    ) -> None:
        self.gpus = [g if g.uuid else replace(g, uuid=f"GPU-{uuid.uuid5(_NAMES, f'{g.name} {n}')}") for n, g in enumerate(gpus)]
        self.links = list(links)
        self.migs: list[Mig] = []
        self.rules: list[Rule] = []
        self.driver, self.nvml, self.cuda = driver, nvml, cuda
        self.path: Path | None = None
        self._events: list[_Event] = []
        self._sequence = 0

    def text(self) -> str:
        """The scenario as the library reads it: lines of a word and ``name=value`` pairs."""
        used = sorted({g.profiles for g in self.gpus if g.profiles})
        lines = ["nvml-scenario 1", f'driver version="{self.driver}" nvml="{self.nvml}" cuda={self.cuda}']
        lines += [_line("profile", p, f' table="{table}"', skip=("size",)) for table in used for p in MIG_PROFILES[table]]
        for word, records in ("gpu", self.gpus), ("mig", self.migs), ("link", self.links), ("event", self._events), ("rule", self.rules):
            lines += [_line(word, r) for r in records]
        return "\n".join(lines) + "\n"

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the scenario to ``path``, whole or not at all, and keeps that file up to date from now on."""
        self.path = Path(path)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=f".{self.path.name}.", delete=False, encoding="utf-8") as file:
            file.write(self.text())
        now = time.time_ns()
        os.utime(file.name, ns=(now, now))  # file systems count time in ticks of milliseconds; two writes must never look alike
        Path(file.name).replace(self.path)
        return self.path

    def install(self, directory: str | os.PathLike[str], *, old: bool = False) -> Path:
        """Puts a library of its own, with this scenario, into ``directory`` and returns its path.

        A copy for each scenario, so that one process can hold several. ``old`` lacks what drivers before 400 lacked: MIG, fabrics, remapped rows.
        """
        source = LIBRARIES / ("old" if old else ".") / SONAME
        if not source.exists():
            raise FileNotFoundError(f"the simulated NVML was not built: {source} is missing; reinstall the package")
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / SONAME)
        self.write(target / "scenario")
        return target / SONAME

    def _changed(self) -> None:
        if self.path is not None:
            self.write(self.path)

    def unload(self) -> None:
        """Removes the file: the driver is not loaded. Any later change loads it again, :meth:`load` without one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def load(self) -> None:
        """Writes the file again as it was."""
        self._changed()

    def change(self, gpu: int, **values: int | str) -> None:
        """Gives fields of a GPU new values."""
        self.gpus[gpu] = replace(self.gpus[gpu], **values)  # type: ignore[arg-type]
        self._changed()

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus."""
        self.change(gpu, lost=1)

    def find(self, gpu: int) -> None:
        """The GPU is back."""
        self.change(gpu, lost=0)

    def inject(self, gpu: int, kind: int, data: int = 0, *, gi: int = 0xFFFFFFFF, ci: int = 0xFFFFFFFF) -> None:
        """An event of a type NVML knows; those who registered the GPU for it before now get it."""
        self._sequence += 1
        self._events = [*self._events, _Event(sequence=self._sequence, gpu=gpu, type=kind, data=data, gi=gi, ci=ci)][-_KEPT_EVENTS:]
        self._changed()

    def inject_xid(self, gpu: int, xid: int, *, gi: int = 0xFFFFFFFF, ci: int = 0xFFFFFFFF) -> None:
        """A critical XID error, of one MIG device where the instances are given."""
        self.inject(gpu, XID_EVENT, xid, gi=gi, ci=ci)

    def inject_ecc(self, gpu: int, *, uncorrected: bool = True) -> None:
        """An ECC error: counted, and told to those who registered for it."""
        kind = "uncorrected" if uncorrected else "corrected"
        g = self.gpus[gpu]
        counts = {f"ecc_{kind}_{over}": getattr(g, f"ecc_{kind}_{over}") + 1 for over in ("volatile", "aggregate")}
        self.gpus[gpu] = replace(g, **counts)
        self.inject(gpu, DOUBLE_BIT_ECC_EVENT if uncorrected else SINGLE_BIT_ECC_EVENT)

    def rule(self, function: str, *, gpu: int = -1, result: int = 0, delay: float = 0.0, crash: bool = False) -> None:
        """From now on ``function`` (``nvmlInit``, ``nvmlDeviceGetUUID``, ...; ``*`` for all but the first) waits ``delay`` seconds, kills
        the process or returns ``result``; for one GPU or all. The first rule that fits a call counts.
        """
        self.rules.append(Rule(function=function, gpu=gpu, result=result, delay_us=int(delay * 1e6), crash=int(crash)))
        self._changed()

    def clear_rules(self) -> None:
        """All functions work again."""
        self.rules.clear()
        self._changed()

    def partition(self, gpu: int, *layout: str) -> None:
        """Turns MIG mode on and makes these GPU instances, by profile name; ``3g.40gb:1,2`` has compute instances of one and of two slices.

        ValueError when the GPU has no such profile or they do not fit.
        """
        g = self.gpus[gpu]
        migs: list[Mig] = []
        free = [True] * 8
        for gi, item in enumerate(layout, 1):
            name, _, parts = item.partition(":")
            profile = next((p for p in MIG_PROFILES.get(g.profiles, ()) if p.name == name), None)
            if profile is None:
                raise ValueError(f"{g.name} has no MIG profile {name!r}")
            start = _place(profile, free)
            at = 0
            for ci, slices in enumerate(map(int, parts.split(",")) if parts else [profile.slices]):
                migs.append(
                    Mig(
                        gpu=gpu, index=len(migs), gi=gi, ci=ci, gi_profile=profile.index, ci_profile=_COMPUTE_PROFILES[slices], start=start,
                        size=profile.size, ci_start=at, ci_size=slices, uuid=f"MIG-{uuid.uuid5(_NAMES, f'{g.uuid} {name} {start} {slices} {at}')}",
                    )
                )  # fmt: skip
                at += slices
            if at > profile.slices:
                raise ValueError(f"the compute instances of {item!r} need {at} slices of {profile.slices}")
        self.migs = [m for m in self.migs if m.gpu != gpu] + migs
        self.change(gpu, mig_mode=1, mig_pending=1)

    def unpartition(self, gpu: int) -> None:
        """Turns MIG mode off."""
        self.migs = [m for m in self.migs if m.gpu != gpu]
        self.change(gpu, mig_mode=0, mig_pending=0)


def write_host(machine: Scenario, root: str | os.PathLike[str]) -> None:
    """Writes below ``root`` what the kernel and the driver show of the machine in /proc and /sys: NUMA nodes, PCI ids, MIG capability minors."""
    files = {"proc/driver/nvidia/version": f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {machine.driver}  Simulated\n"}
    minors = ["config 1", "monitor 2"]
    for n, g in enumerate(machine.gpus):
        pci = f"sys/bus/pci/devices/{g.pci}"
        vendor, device = g.device_id & 0xFFFF, g.device_id >> 16
        ids = {"vendor": f"0x{vendor:04x}", "device": f"0x{device:04x}", "class": "0x030200", "numa_node": str(g.numa)}
        files |= {f"{pci}/{name}": f"{value}\n" for name, value in ids.items()}
        facts = {"Model": g.name, "GPU UUID": g.uuid, "Bus Location": g.pci, "Device Minor": str(g.minor), "GPU Excluded": "No"}
        files[f"proc/driver/nvidia/gpus/{g.pci}/information"] = "".join(f"{name}: \t {value}\n" for name, value in facts.items())
        if g.mig_mode >= 0:  # the driver numbers all capabilities there could be: 15 instances of a GPU, with 8 compute instances each
            for gi in range(15):
                base = 3 + 9 * (15 * n + gi)
                minors += [f"gpu{n}/gi{gi}/access {base}", *(f"gpu{n}/gi{gi}/ci{ci}/access {base + 1 + ci}" for ci in range(8))]
    files["proc/driver/nvidia-caps/mig-minors"] = "\n".join(minors) + "\n"
    for name, text in files.items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _line(word: str, record: object, more: str = "", skip: Sequence[str] = ()) -> str:
    pairs = ((f.name, getattr(record, f.name)) for f in fields(record) if f.name not in skip)  # type: ignore[arg-type]
    return word + more + "".join(f' {name}="{value}"' if isinstance(value, str) else f" {name}={value}" for name, value in pairs)


def _place(profile: Profile, free: list[bool]) -> int:
    """Takes memory slices. There are eight, but only seven of compute; three of these go to the far half, so that four fit beside them."""
    starts = [s for s in range(0, 8, profile.size) if s + profile.slices <= 7 and all(free[s : s + profile.size])]
    if not starts:
        raise ValueError(f"no room is left for {profile.name}")
    start = starts[-1] if profile.slices == 3 else starts[0]
    free[start : start + profile.size] = [False] * profile.size
    return start


def _gpus(model: Gpu, places: Sequence[str], **values: int | str) -> list[Gpu]:
    """GPUs of one model, at these places of the tree without the board, which each has for itself."""
    return [
        replace(
            model, pci=f"{n // 224:04x}:{0x10 + n % 224:02x}:00.0", minor=n, serial=f"16541220{n:05d}", tree=f"{place}.{n}",
            numa=int(place.split(".")[0]), **values,  # type: ignore[arg-type]
        )
        for n, place in enumerate(places)
    ]  # fmt: skip


def _to_switches(gpu: int, switches: Sequence[int], version: int) -> list[Link]:
    """Links of one GPU, each to the NVSwitch of that number."""
    return [Link(gpu=gpu, link=n, remote=f"00000000:{0xC0 + s:02X}:00.0", type=TO_SWITCH, version=version) for n, s in enumerate(switches)]


def dgx_h100() -> Scenario:
    """Eight H100 behind four NVSwitches, two sockets, a PCIe switch for each GPU."""
    gpus = _gpus(H100, [f"{n // 4}.{n}.0.0" for n in range(8)], links=18, fabric_state=3, cluster="0" * 32, fabric_health=0x2AA)
    return Scenario(gpus, links=[k for n in range(8) for k in _to_switches(n, [0] * 5 + [1] * 4 + [2] * 4 + [3] * 5, 6)], driver="550.90.07")


def dgx_a100() -> Scenario:
    """Eight A100 of 40 GB behind six NVSwitches, two GPUs to a NUMA node."""
    gpus = _gpus(A100, [f"{(3, 1, 7, 5)[n // 2]}.0.0.0" for n in range(8)], links=12, fabric_state=0)
    return Scenario(gpus, links=[k for n in range(8) for k in _to_switches(n, [s for s in range(6) for _ in range(2)], 4)])


def dgx1_v100() -> Scenario:
    """Eight V100 in a hybrid cube mesh: six links each, double to two neighbours."""
    pairs = "01:1 02:1 03:2 04:2 12:2 13:1 15:2 23:2 26:1 37:1 45:1 46:1 47:2 56:2 57:1 67:2"
    gpus = _gpus(V100, [f"{n // 4}.0.{n // 2 % 2}.0" for n in range(8)], links=6)
    links: list[Link] = []
    for a, b, count in ((int(p[0]), int(p[1]), int(p[3])) for p in pairs.split()):
        for _ in range(count):
            ends = [(a, b, sum(k.gpu == a for k in links)), (b, a, sum(k.gpu == b for k in links))]
            links += [Link(gpu=here, link=at, remote=gpus[there].pci, version=2) for here, there, at in ends]
    return Scenario(gpus, links=links)


def dgx2_v100() -> Scenario:
    """Sixteen V100 on two boards of six NVSwitches each."""
    gpus = _gpus(replace(V100, name="Tesla V100-SXM3-32GB", memory=32 << 30), [f"{n // 8}.0.{n // 4 % 2}.{n // 2 % 2}" for n in range(16)], links=6)
    return Scenario(gpus, links=[k for n in range(16) for k in _to_switches(n, range(n // 8 * 6, n // 8 * 6 + 6), 2)])


def l40s_pcie() -> Scenario:
    """Four L40S without NVLink, two to a socket."""
    return Scenario(_gpus(L40S, [f"{n // 2}.{n}.0.0" for n in range(4)]))


def one_t4() -> Scenario:
    """A single T4."""
    return Scenario(_gpus(T4, _ALONE))


def many_t4(count: int) -> Scenario:
    """More GPUs than any machine has."""
    return Scenario(_gpus(T4, [f"{n % 2}.{n}.0.0" for n in range(count)]))


def h100_mig(layout: str = "balanced") -> Scenario:
    """One H100 in one of :data:`H100_LAYOUTS`."""
    machine = Scenario(_gpus(H100, _ALONE, links=18, fabric_state=3, cluster="0" * 32))
    machine.partition(0, *H100_LAYOUTS[layout])
    return machine
