# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs and MIG devices. See docs/gpu.md."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from deviceplugin import Connection, Device, Edits, Health, Host, Measurement, Plugin, Skipped
from deviceplugin._native.nvml import Gpu as NvmlGpu
from deviceplugin._native.nvml import Snapshot, State
from deviceplugin.labels import LabelFile
from deviceplugin.plugins.gpu import discovery, labels, xid
from deviceplugin.plugins.gpu.choice import shares
from deviceplugin.plugins.gpu.config import GpuConfig
from deviceplugin.plugins.gpu.driver import driver_tree
from deviceplugin.plugins.gpu.figures import MEASURES, figures
from deviceplugin.plugins.gpu.health import Judge, Verdict
from deviceplugin.plugins.gpu.injection import Grant, Injector, grants
from deviceplugin.plugins.gpu.mps import Daemons
from deviceplugin.plugins.gpu.session import Session, Watched
from deviceplugin.plugins.gpu.topology import Topology

__all__ = ["Gpu", "GpuConfig"]

_PROMPT = 5.0
"""Seconds within which a look surely reached the framework. A slower one may have been given up on, so what it told is told again."""

_ABSENT = (State.NO_LIBRARY, State.NO_DRIVER)


class _View(Struct, frozen=True):
    """What the last look found, for the threads that allocate."""

    grants: Mapping[str, Grant] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)
    """Where each whole GPU is in ``topology``."""
    topology: Topology | None = None


class Gpu(Plugin):
    """NVIDIA GPUs. One instance serves all resources that they count towards."""

    Config = GpuConfig
    config: GpuConfig
    measures = MEASURES

    def __init__(self, config: GpuConfig | None = None, host: Host | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(config or GpuConfig(), host)
        self.recovery = MappingProxyType(self.config.faults.rules())  # type: ignore[misc] # this instance's, by its configuration
        if strangers := [str(key) for key in self.config.faults.xids if str(key).isdecimal() and int(key) not in xid.TABLE]:
            self.log.warning("faults.xids: %s: this version knows of no such XID; the rule is kept for drivers that do", ", ".join(strangers))
        self.injector = Injector(self.config.injection, self.host)
        self._clock = clock
        injection = self.config.injection
        self._mps = Daemons(injection.mps, injection.mps_root, self.host)
        tree = driver_tree(self.host, injection.driver_root, injection.container_driver_root)
        self._session = Session(self.host, self.config.library, tree.here("/"), clock)
        self._recall = discovery.Recall()
        self._judge = Judge(self.config.faults, self.config.monitor_timeout)
        self._labels, self._unlabelled = LabelFile(self.host, labels.FILE), ""
        self._count = 0
        self._last: tuple[Device, ...] = ()
        self._joined: tuple[tuple[NvmlGpu, ...], tuple[tuple[int | None, ...], ...]] = (), ()
        self._view = _View()
        self._said: dict[str, str] = {}

    def discover(self) -> Iterator[Device | Skipped]:
        """Every GPU that NVML lists. One that fails is unhealthy or unknown and hides no other; without a driver there is none, and no error."""
        began = self._clock()
        snapshot = self._session.look(topology=self._count <= discovery.MOST_LINKED)
        if snapshot is None:
            yield from self._blind()
            return
        events, watched = self._session.heard()
        self._count = len(snapshot.gpus)
        found = list(self._recall.complete(snapshot.gpus))
        gpus = [gpu for gpu in found if isinstance(gpu, NvmlGpu)]
        self._judge.hear(events)
        verdicts = self._verdicts(gpus, snapshot, watched)
        if watched is not None and any(not watched.knows(gpu.index) for gpu in gpus if not gpu.lost):
            self._session.renew()
        snapshot = replace(snapshot, gpus=tuple(gpus))
        self._joined = snapshot.gpus, snapshot.ancestors
        self.injector.refresh(snapshot)
        candidates = list(discovery.choose(gpus, self.config))
        numa = {gpu.uuid: discovery.numa_nodes(self.host, gpu) for gpu in gpus}
        chosen = [one for one in candidates if isinstance(one, discovery.Candidate)]
        unserved = self._serve(chosen)
        enforcement = self.injector.enforcement
        devices = tuple(
            discovery.device(one, _without(verdicts[one.gpu.uuid], one.resource in unserved), numa[one.gpu.uuid], snapshot, enforcement)
            for one in chosen
        )
        self._view = self._see(snapshot, chosen, numa)
        self._last = devices
        if self.config.labels:
            self._label(snapshot)
        skipped = [*(one for one in (*found, *candidates) if isinstance(one, Skipped)), *(Skipped(*one) for one in unserved.items())]
        self._say(skipped)
        yield from devices
        yield from skipped
        if self._clock() - began < _PROMPT:
            self._judge.reported()

    def allocate(self, devices: Sequence[Device]) -> Edits:
        """What the container needs for these GPUs. Raises LookupError for one that is gone, and what the injector raises."""
        known = self._view.grants
        gone = [device.id for device in devices if device.id not in known]
        if gone:
            raise LookupError(f"{', '.join(gone)} is not there any more")
        return self.injector.edits([known[device.id] for device in devices], devices[0].resource if devices else "")

    def prefer(self, available: Sequence[Device], required: Sequence[Device], size: int) -> Iterable[Device] | None:
        """By the configured policy; None, for the framework's, where it has nothing to say."""
        if self.config.allocation_policy != "topology":
            return shares(self.config.allocation_policy, available, required, size)
        view = self._view
        devices = {device.id: device for device in available}
        if view.topology is None or len(devices) != len(available) or not view.places.keys() >= devices.keys():
            return None  # shared GPUs, MIG devices, or one that has just come
        by_place = {view.places[device_id]: device for device_id, device in devices.items()}
        chosen = view.topology.choose("topology", by_place, [view.places[device.id] for device in required if device.id in view.places], size)
        return [by_place[place] for place in chosen]

    def connections(self) -> Iterator[Connection]:
        """The NVLinks that are up, or else what of PCIe joins the GPUs."""
        return iter(discovery.connections(*self._joined))

    def measure(self) -> Iterator[Measurement]:
        """What NVML measures now, and the XIDs that were told."""
        return figures(self._session.glance(), self._judge.xids)

    def uninstall(self, remove: bool) -> Iterator[str]:
        """The CDI specs, and the labels if they are ours."""
        yield from self.injector.leftovers(remove)
        if self.config.labels:
            yield from self._labels.leftovers(remove)

    def watch(self) -> Iterator[object]:
        """On XIDs and other events of NVML, on changes of the driver's files, and when a GPU comes or goes."""
        return self._session.watch()

    def stop(self) -> None:
        """Ends watch() and lets go of the driver, which could not be unloaded otherwise."""
        self._session.stop()
        self._mps.stop()

    def _label(self, snapshot: Snapshot) -> None:
        """Labels are for schedulers: that they cannot be written takes no GPU away."""
        shared = {}
        for resource, how in self.sharing.items():
            strategy: Literal["none", "time-slicing", "mps"] = "time-slicing" if how.replicas > 1 else "none"
            if resource in self.config.injection.mps:
                strategy = "mps"
            shared[resource] = labels.Sharing(strategy=strategy, replicas=how.replicas, renamed=bool(how.rename))
        try:
            self._labels.write(labels.labels(snapshot, self.host, mig_strategy=self.config.mig_strategy, sharing=shared))
            self._unlabelled = ""
        except OSError as error:
            if str(error) != self._unlabelled:  # once per reason
                self.log.error("the labels cannot be written: %s: %s; is the directory mounted?", error.filename, error.strerror)
            self._unlabelled = str(error)

    def _blind(self) -> Iterator[Device | Skipped]:
        """Without a driver there are no GPUs. One that is there and does not work says nothing of them: they are unknown."""
        session = self._session
        what = Skipped("NVIDIA driver", f"cannot be asked: {session.state.value}: {session.reason}")
        self._say([what])
        yield what
        if session.state in _ABSENT:
            self._last = ()
            return
        for device in self._last:
            yield dataclasses.replace(device, health=Health.UNKNOWN, cause="driver")

    def _serve(self, chosen: Iterable[discovery.Candidate]) -> dict[str, str]:
        """Sees to it that MPS runs where it is configured. Answers with the resources that cannot be had, and why."""
        if not self.config.injection.mps:
            return {}
        gpus: dict[str, list[NvmlGpu]] = {}
        for one in chosen:
            gpus.setdefault(one.resource, []).append(one.gpu)
        return self._mps.ensure(gpus)

    def _verdicts(self, gpus: Sequence[NvmlGpu], snapshot: Snapshot, watched: Watched | None) -> dict[str, Verdict]:
        loaded, now = self._session.loaded(), self._clock()
        self._judge.forget(gpu.uuid for gpu in gpus)
        return {
            gpu.uuid: self._judge.judge(gpu, discovery.incarnation(self.host, gpu, loaded, snapshot.driver_version), watched, now) for gpu in gpus
        }

    def _see(self, snapshot: Snapshot, chosen: Sequence[discovery.Candidate], numa: Mapping[str, Sequence[int]]) -> _View:
        # The framework may still ask for what the look before this one found.
        before = {device.id: self._view.grants[device.id] for device in self._last if device.id in self._view.grants}
        given = before | {grant.uuid: grant for grant in grants(snapshot)}
        whole = [one.gpu for one in chosen if one.mig is None]
        if not whole or len(whole) > discovery.MOST_LINKED or not snapshot.ancestors:
            return _View(given)
        return _View(given, {gpu.uuid: place for place, gpu in enumerate(whole)}, discovery.links(whole, snapshot.ancestors, numa))

    def _say(self, skipped: Iterable[Skipped]) -> None:
        """Logs what is left out, once for each reason: it is news when it changes, and on the status page always."""
        now = {one.what: one.reason for one in skipped}
        for what, reason in now.items():
            if self._said.get(what) != reason:
                self.log.warning("%s %s", what, reason)
        self._said = now


def _without(verdict: Verdict, mps: bool) -> Verdict:
    """The verdict of a GPU that containers could only reach through an MPS daemon that does not run."""
    return replace(verdict, health=Health.UNHEALTHY, cause="mps") if mps and verdict.health is Health.HEALTHY else verdict
