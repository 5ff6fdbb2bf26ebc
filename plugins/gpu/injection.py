# SPDX-License-Identifier: Apache-2.0
"""What a container gets that was given GPUs, in the ways that NVIDIA's device plugin has: names, paths and kinds are the same.

The answer follows from the GPUs alone: the kubelet keeps it and replays it, so asking twice must give the same twice.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

import msgspec

from deviceplugin import DeviceNode, Edits, Enforcement, Host, Mount
from deviceplugin._native import nvml
from deviceplugin.cdi import DYNAMIC, STATIC, CdiError, SpecDirectory, published, qualified
from deviceplugin.plugins.gpu import driver, mps
from deviceplugin.plugins.gpu.cdispec import KINDS, VENDOR, Grant, Machine, extra_spec, gpu_spec, grant_nodes, grants, imex_spec

Strategy = Literal["envvar", "device-specs", "volume-mounts", "cdi-annotations", "cdi-cri"]

DEVICES_VARIABLE: Final = "NVIDIA_VISIBLE_DEVICES"
IMEX_VARIABLE: Final = "NVIDIA_IMEX_CHANNELS"
MOUNTS_ROOT: Final = "/var/run/nvidia-container-devices"
ANNOTATION_PREFIX: Final = "cdi.k8s.io/"
TOOLKIT_KIND: Final = "nvidia.com/gpu"

_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/")
_CDI_STRATEGIES = frozenset(("cdi-annotations", "cdi-cri"))

__all__ = ["Grant", "ImexOptions", "InjectionError", "InjectionOptions", "Injector", "grants"]


class InjectionError(Exception):
    """The container cannot be given its GPUs. The text says why and what to do; it ends up in the pod's status."""


class ImexOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The channel over which GPUs of several machines reach each other's memory. Every container with a GPU gets it."""

    channel_ids: list[Literal[0]] = msgspec.field(name="channelIDs", default_factory=list)
    """``[]`` or ``[0]``."""
    required: bool = False
    """Whether a container may not start without it."""

    def __post_init__(self) -> None:
        if len(self.channel_ids) > 1:
            raise ValueError("channelIDs must be [] or [0]")


class InjectionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """How GPUs get into containers."""

    device_list_strategy: list[Strategy] = msgspec.field(default_factory=lambda: ["envvar", "device-specs"])
    """How the runtime is told; several may be used together."""
    device_id_strategy: Literal["uuid", "index"] = msgspec.field(name="deviceIDStrategy", default="uuid")
    """What the runtime is told: UUIDs or indices. The kubelet always sees UUIDs."""
    driver_root: str = "/"
    """The directory on the host below which the driver is installed."""
    dev_root: str = ""
    """The directory on the host that has ``dev`` with the GPUs' device files, by default the driver root if it has one, else ``/``."""
    container_driver_root: str = "/driver-root"
    """Where this container mounts the driver root, if it does."""
    cdi_annotation_prefix: str = ANNOTATION_PREFIX
    nvidia_cdi_hook_path: str = msgspec.field(name="nvidiaCDIHookPath", default="")
    """The host's nvidia-cdi-hook or nvidia-ctk, for CDI specs; empty looks in the usual places."""
    gds_enabled: bool = False
    mofed_enabled: bool = False
    gdrcopy_enabled: bool = False
    imex: ImexOptions = ImexOptions()
    mps_root: str = ""
    """The directory on the host that MPS daemons share with their clients."""
    mps: dict[str, Annotated[int, msgspec.Meta(ge=2, le=48)]] = {}
    """Resources that are shared through MPS, and how many containers share each GPU: the replicas of the resource."""

    def __post_init__(self) -> None:
        if not self.device_list_strategy:
            raise ValueError("deviceListStrategy must name at least one of envvar, device-specs, volume-mounts, cdi-annotations and cdi-cri")
        if self.mps and not self.mps_root:
            raise ValueError("mps needs mpsRoot: a directory on the host, as in /run/nvidia/mps")
        if not _PREFIX.fullmatch(self.cdi_annotation_prefix):
            raise ValueError(f"cdiAnnotationPrefix {self.cdi_annotation_prefix!r} must be a DNS name and a slash, as in {ANNOTATION_PREFIX}")
        for key, path in (
            ("driverRoot", self.driver_root),
            ("devRoot", self.dev_root),
            ("containerDriverRoot", self.container_driver_root),
            ("mpsRoot", self.mps_root),
        ):
            if path and not path.startswith("/"):
                raise ValueError(f"{key} {path!r} must be an absolute path")

    @property
    def features(self) -> tuple[str, ...]:
        """Which of the drivers beside NVIDIA's a container gets as well."""
        enabled = {"gdrcopy": self.gdrcopy_enabled, "gds": self.gds_enabled, "mofed": self.mofed_enabled}
        return tuple(name for name, on in enabled.items() if on)


class _Specs(msgspec.Struct, frozen=True):
    """What the last look found: the devices that can be named to the runtime, and why there may be fewer than there should be."""

    ours: frozenset[str] = frozenset()
    toolkit: frozenset[str] = frozenset()
    features: tuple[str, ...] = ()
    failure: str = "the GPUs have not been looked at yet"


class Injector:
    """Says what containers get. :meth:`refresh` is called by one thread at a time, :meth:`edits` by any."""

    def __init__(self, options: InjectionOptions, host: Host) -> None:
        self._options = options
        self._strategies = frozenset(options.device_list_strategy)
        self._host = host
        self._directory = SpecDirectory(host)
        self._specs = _Specs()
        self._toolkit: dict[str, tuple[tuple[int, ...], frozenset[str]]] = {}
        self._log = logging.getLogger(__name__)

    @property
    def enforcement(self) -> Enforcement:
        """With device-specs or CDI the device cgroup lets a container open its own GPUs only. The others are requests to a runtime that a pod
        can make as well, with a variable or a mount of its own.
        """
        return Enforcement.HARD if self._strategies & {"device-specs", *_CDI_STRATEGIES} else Enforcement.ADVISORY

    def refresh(self, snapshot: nvml.Snapshot) -> None:
        """Brings the CDI specs up to date, where the strategy needs them; before the devices of the snapshot are advertised.

        A failure is logged once and remembered: it fails those containers that the specs would be needed for.
        """
        if not self._strategies & _CDI_STRATEGIES:
            return
        toolkit = self._published()
        try:
            specs = self._write(snapshot, toolkit)
        except (CdiError, OSError) as error:
            specs = _Specs(toolkit=toolkit, features=self._specs.features, failure=str(error))
        if specs.failure and specs.failure != self._specs.failure:
            covered = {self._id(grant) for grant in grants(snapshot)} <= toolkit
            self._log.log(logging.INFO if covered else logging.ERROR, "CDI: %s", specs.failure)
        self._specs = specs

    def leftovers(self, remove: bool) -> Iterator[str]:
        """The CDI specs that were written, now or under another configuration. Raises CdiError."""
        return self._directory.leftovers(KINDS, remove)

    def edits(self, given: Sequence[Grant], resource: str = "") -> Edits:
        """What a container that was given these GPUs needs. ``resource`` is theirs, by the plugin's name, and only MPS goes by it.

        Raises InjectionError.
        """
        given = sorted(given, key=_order)
        ids = tuple(self._id(grant) for grant in given)
        channels = self._channels()
        envs: dict[str, str] = {}
        mounts: list[Mount] = []
        nodes: list[DeviceNode] = []
        names: tuple[str, ...] = ()
        if self._strategies & _CDI_STRATEGIES:
            names = self._names(ids, channels)
        if "envvar" in self._strategies:
            envs[DEVICES_VARIABLE] = ",".join(ids)
            if channels:
                envs[IMEX_VARIABLE] = ",".join(channels)
        if "volume-mounts" in self._strategies:
            envs[DEVICES_VARIABLE] = MOUNTS_ROOT
            entries = [*ids, *(f"imex/{channel}" for channel in channels)]
            mounts = [Mount("/dev/null", f"{MOUNTS_ROOT}/{entry}", read_only=False) for entry in entries]
        if envs:
            envs.update({f"NVIDIA_{feature.upper()}": "enabled" for feature in self._options.features})
        if resource in self._options.mps:
            client = mps.client_edits(self._options.mps_root, resource)
            envs.update(client.envs)
            mounts += client.mounts
        if "device-specs" in self._strategies:
            nodes = list(self._nodes(given, channels))
        return Edits(
            envs=envs,
            mounts=tuple(mounts),
            nodes=tuple(nodes),
            annotations=self._annotations(names) if "cdi-annotations" in self._strategies else {},
            cdi=names if "cdi-cri" in self._strategies else (),
        )

    def _id(self, grant: Grant) -> str:
        return grant.uuid if self._options.device_id_strategy == "uuid" else grant.index

    def _machine(self) -> Machine:
        options = self._options
        tree = driver.driver_tree(self._host, options.driver_root, options.container_driver_root)
        root = options.dev_root or "/"
        # Below the driver's root the device files are where the rest of it is mounted.
        with_driver = not options.dev_root and tree.has("/dev/nvidiactl")
        devices = tree if with_driver else driver.Tree(root, self._host.path(root))
        return Machine(self._host, tree, devices, driver.find_hook(self._host, options.nvidia_cdi_hook_path))

    def _channels(self) -> tuple[str, ...]:
        imex = self._options.imex
        channels = tuple(map(str, imex.channel_ids))
        if not channels:
            return ()
        devices = self._machine().devices
        there = tuple(channel for channel in channels if devices.has(f"{driver.IMEX_CHANNELS}/channel{channel}"))
        if imex.required and there != channels:
            raise InjectionError(f"{driver.IMEX_CHANNELS}/channel0 is not there and imex.required is true: create the channel or set it to false")
        return there

    def _nodes(self, given: Sequence[Grant], channels: Sequence[str]) -> Iterator[DeviceNode]:
        machine = self._machine()
        paths = [path for path in driver.CONTROL_NODES if machine.devices.has(path)]
        for grant in given:
            own, problem = grant_nodes(machine, grant)
            if problem:
                if len(self._strategies) == 1:  # nothing else would bring the GPU into the container
                    raise InjectionError(problem)
                self._log.warning("%s; the container depends on the runtime for it", problem)
            paths += own
        paths += [f"{driver.IMEX_CHANNELS}/channel{channel}" for channel in channels]
        for feature in self._options.features:
            paths += machine.extra_nodes(feature)
        for path in dict.fromkeys(paths):
            yield DeviceNode(machine.devices.on_host(path), path)

    def _names(self, ids: Sequence[str], channels: Sequence[str]) -> tuple[str, ...]:
        specs = self._specs
        if specs.toolkit.issuperset(ids):
            names = [qualified(TOOLKIT_KIND, name) for name in ids]
        elif missing := [name for name in ids if name not in specs.ours]:
            raise InjectionError(f"no CDI spec describes GPU {', '.join(missing)}: {specs.failure or 'it has just appeared; try again'}")
        else:
            names = [qualified(f"{VENDOR}/gpu", name) for name in ids]
        names += [qualified(f"{VENDOR}/imex-channel", channel) for channel in channels if "imex-channel" in specs.features]
        names += [qualified(f"{VENDOR}/{feature}", "all") for feature in specs.features if feature != "imex-channel"]
        return tuple(names)

    def _annotations(self, names: Sequence[str]) -> dict[str, str]:
        value = ",".join(names)
        # The name of an annotation has 63 characters at most; the runtime reads all that have the prefix, whatever follows it.
        digest = hashlib.sha256(value.encode()).hexdigest()[:32]
        return {f"{self._options.cdi_annotation_prefix}nvidia-device-plugin_{digest}": value}

    def _write(self, snapshot: nvml.Snapshot, toolkit: frozenset[str]) -> _Specs:
        machine = self._machine()
        features = []
        channels = self._channels_or_none()
        spec = imex_spec(machine, channels)
        for name, extra in (("imex-channel", spec), *((feature, extra_spec(machine, feature)) for feature in self._options.features)):
            if extra is not None:
                self._directory.write(extra)
                features.append(name)
        # Ours is written even where the toolkit's would do: containers that were started with its names may have to be restarted.
        spec, problems = gpu_spec(machine, snapshot)
        if spec is not None:
            self._directory.write(spec)
        names = frozenset(spec.devices) if spec is not None else frozenset()
        return _Specs(names, toolkit, tuple(features), "; ".join(problems))

    def _channels_or_none(self) -> tuple[str, ...]:
        try:
            return self._channels()
        except InjectionError:  # said to each container that needs the channel, and no reason for the others' specs not to be written
            return ()

    def _published(self) -> frozenset[str]:
        """The GPUs in the specs that NVIDIA's toolkit wrote; read again only when a file has changed: they are long."""
        paths = [f"{STATIC}/nvidia.yaml", f"{STATIC}/nvidia.json"]
        tree = driver.Tree("/", self._host.path("/"))
        paths += tree.matching([f"{DYNAMIC}/nvidia*.yaml", f"{DYNAMIC}/nvidia*.json"])
        found: dict[str, tuple[tuple[int, ...], frozenset[str]]] = {}
        for path in paths:
            here = self._host.path(path)
            try:
                state = os.stat(here)
            except OSError:
                continue
            seen = (state.st_ino, state.st_size, state.st_mtime_ns)
            known = self._toolkit.get(path)
            if known is None or known[0] != seen:
                known = seen, self._read(here)
            found[path] = known
        self._toolkit = found
        return frozenset().union(*(names for _, names in found.values()))

    def _read(self, path: str) -> frozenset[str]:
        try:
            return published(path, TOOLKIT_KIND)
        except CdiError as error:
            self._log.warning("%s; it is left aside", error)
            return frozenset()


def _order(grant: Grant) -> tuple[tuple[int, ...], str]:
    return tuple(int(part) for part in grant.index.split(":") if part.isdecimal()), grant.uuid
