# SPDX-License-Identifier: Apache-2.0
"""FPGAs of Intel's DFL and OPAE drivers, of AMD's XRT, and of the kernel's fpga_manager class. See docs/fpga.md."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from deviceplugin import Allocation, Device, DeviceNode, Edits, Enforcement, Health, Host, Plugin, Skipped, Verdict, sysfs
from deviceplugin.events import Events
from deviceplugin.plugins.fpga import health, naming, places, probe
from deviceplugin.plugins.fpga.bitstream import Store
from deviceplugin.plugins.fpga.config import FpgaConfig
from deviceplugin.plugins.fpga.hardware import Port
from deviceplugin.plugins.fpga.ioctls import Files, Ioctls
from deviceplugin.plugins.fpga.memory import Memory, Record
from deviceplugin.plugins.fpga.naming import Offer
from deviceplugin.plugins.fpga.programming import Marker, Order, Programmer
from deviceplugin.plugins.fpga.snapshot import Source

__all__ = ["Fpga", "FpgaConfig"]

_SUBSYSTEMS = ("fpga", "fpga_region", "fpga_manager", "platform", "pci", "drm")
_PREPARE = 20.0
"""Seconds that a container's start waits for its ports: the kubelet gives up after 30 and asks again."""

_MOVING = (Health.UNHEALTHY, "moving: it is offered as something else once no container holds it")
_WAITS = "waits until no container holds {} as what it was"
_UNKNOWN_TO_US = "what the container holds is not there any more"


class CannotStart(Exception):
    """A container must not start with what it was given. The text says why and what to do."""


class Fpga(Plugin):
    """FPGA ports. One instance serves all resources that they count towards."""

    Config = FpgaConfig
    config: FpgaConfig
    recovery = health.RECOVERY
    interval = 5.0  # neither error registers nor the ids of functions notify anybody

    def __init__(
        self,
        config: FpgaConfig | None = None,
        host: Host | None = None,
        *,
        ioctls: Ioctls | None = None,
        source: Source = sysfs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config or FpgaConfig(), host)
        self._clock = clock
        self._source = source
        state = self.config.state_directory
        self._store = Store(self.host, self.config.bitstreams, require_digest=self.config.require_digest, largest=self.config.largest_bitstream)
        self._programmer = Programmer(self.host, self._store, f"{state}/programming", ioctls or Files(self.host), clock)
        self._memory = Memory(self.host, f"{state}/state.json")
        self._releases = places.Releases(self.config.settle)
        self._errors: health.Errors | None = None
        self._busy_since: dict[str, float] = {}
        self._view: Mapping[str, Offer] = MappingProxyType({})
        self._leaving: frozenset[str] = frozenset()
        self._events: Events | None = None
        self._stopped = False
        # `deviceplugin check` looks as well: only who serves pods may write anything down or touch a card.
        self._serving = False

    def discover(self) -> Iterator[Device | Skipped]:
        """Every port, or card, that can be named. What is broken, in reset or unreadable costs itself."""
        now = self._clock()
        found = probe.look(self.host, self.config.managers, self._source)
        markers = self._programmer.markers()
        self._memory.refresh()
        with self._memory.held() as record:
            known = {port.id: naming.Ids(*record.known[port.id]) for port in found.ports if port.id in record.known}
            for port in found.ports:
                if ids := naming.learn(port, known.get(port.id)):
                    record.known[port.id] = (ids.interface, ids.afu)
            offers = naming.offers(found.ports, self.config, known)
            plan = places.plan([one for one in offers if isinstance(one, Offer)], record.places, self._releases.released())
            record.places = dict(plan.places)
            fresh = self._fresh(record, found.ports)
        self._view = MappingProxyType({offer.id: offer for offer in (*plan.listed, *plan.leaving)})
        self._leaving = frozenset(offer.id for offer in plan.leaving)
        self._note_busy(found.ports, now)
        if self._serving:
            self._memory.save()
            self._resume(plan.listed, markers)
        yield from (_device(offer, self._verdict(offer, fresh, markers, now)) for offer in plan.listed)
        yield from (_device(offer, _MOVING) for offer in plan.leaving)
        yield from (
            one if isinstance(one, Skipped) else Skipped(f"{one.id} as {one.resource}", _WAITS.format(plan.waiting[one.id]))
            for one in offers
            if isinstance(one, Skipped) or one.id in plan.waiting
        )
        yield from found.skipped

    def allocate(self, devices: Sequence[Device]) -> Edits:
        """The device files of the ports. They are remembered: after a reboot they may be other hardware's, and the kubelet passes them on."""
        with self._memory.held() as record:
            for device in devices:
                record.given[device.id] = tuple(node.path for node in device.nodes)
        return Edits(nodes=tuple(dict.fromkeys(node for device in devices for node in device.nodes)))

    def prepare(self, devices: Sequence[Device]) -> None:
        """Programs what must be. Raises CannotStart, StillProgramming, ProgrammingFailed: the kubelet tries again."""
        self._serving = True
        self._memory.save()
        view = self._view
        offers = []
        for device in devices:
            offer = view.get(device.id)
            if offer is None or offer.resource != device.resource:
                raise CannotStart(f"{device.id} is not {device.resource} any more: delete the pod, and it gets another")
            if moved := self._moved(device):
                raise CannotStart(f"{moved}: delete the pod, and it gets files that are right")
            offers.append(offer)
        orders = [self._order(offer, port, offer.afu, offer.function.sha256) for offer in offers if offer.function for port in offer.ports]
        self._programmer.ensure(orders, _PREPARE)
        for offer in offers:
            if wrong := self._wrong_function(offer):
                raise CannotStart(f"{wrong}: delete the pod, or program the port again")

    def reconcile(self, allocations: Sequence[Allocation]) -> Iterator[Verdict]:
        """Whether what containers hold is still what they were given: the files of that hardware, and the function that they asked for."""
        self._serving = True
        held = {device.id for allocation in allocations for device in allocation.devices}
        self._releases.seen(self._leaving, held, self._clock())
        with self._memory.held() as record:
            for allocation in allocations:
                for device in allocation.devices:
                    record.given.setdefault(device.id, tuple(node.path for node in device.nodes))
        self._memory.save()
        for allocation in allocations:
            wrong = next((text for device in allocation.devices if (text := self._unenforced(device))), "")
            unseen = any(device.id not in self._view for device in allocation.devices)
            if wrong:
                yield Verdict(allocation, False, wrong)
            else:
                yield Verdict(allocation, None, _UNKNOWN_TO_US) if unseen else Verdict(allocation, True)

    def uninstall(self, remove: bool) -> Iterator[str]:
        """The directory of the plugin's state."""
        directory = self.config.state_directory
        at = self.host.path(directory)
        if os.path.isdir(at):
            if remove:
                shutil.rmtree(at)
            yield f"directory {directory}"

    def watch(self) -> Iterator[object]:
        """When a card or a bitstream comes, goes or changes. Only who serves calls this."""
        self._serving = True
        root = self.config.bitstreams
        folders: list[str] = []
        with contextlib.suppress(sysfs.SysfsError):
            folders = [f"{root}/{name}" for name in sysfs.entries(self.host, root)]
        self._events = events = Events(self.host, paths=["/dev", root, *folders], subsystems=_SUBSYSTEMS)
        if self._stopped:
            events.close()
        return iter(events)

    def stop(self) -> None:
        """Ends watch(). A card that is being programmed goes on, and is looked after by whoever comes next."""
        self._stopped = True
        self._serving = False
        if self._events is not None:
            self._events.close()

    def _fresh(self, record: Record, ports: tuple[Port, ...]) -> Mapping[str, int]:
        if self._errors is None:
            self._errors = health.Errors(record.baselines)
        self._errors.baselines = record.baselines  # another record, where the file was read again
        return self._errors.look(ports)

    def _note_busy(self, ports: Iterable[Port], now: float) -> None:
        self._busy_since = {port.id: self._busy_since.get(port.id, now) for port in ports if port.busy}

    def _resume(self, offers: Iterable[Offer], markers: Mapping[str, Marker]) -> None:
        """Programs anew what did not end well, before a container waits for it."""
        for offer in offers:
            for port in offer.ports:
                marker = markers.get(port.id)
                if marker is None or self._programmer.running(port.id):
                    continue
                afu = offer.function.afu_id if offer.function else marker.afu
                if afu:
                    self._programmer.resume(self._order(offer, port, afu, offer.function.sha256 if offer.function else ""))

    def _order(self, offer: Offer, port: Port, afu: str, sha256: str) -> Order:
        with self._memory.held() as record:
            interface = record.known[port.id][0]
        return Order(
            port.id, offer.card.id, offer.card.management, offer.card.driver, port.number, port.nodes[0], port.directory, interface, afu, sha256
        )

    def _verdict(self, offer: Offer, fresh: Mapping[str, int], markers: Mapping[str, Marker], now: float) -> health.Verdict:
        if any(self._programmer.running(port.id) for port in offer.ports):
            return health.WELL  # the container that holds it is about to start; what the port tells meanwhile means nothing
        for port in offer.ports:
            if (marker := markers.get(port.id)) is not None:
                why = marker.failed or "the last time was interrupted"
                return Health.UNHEALTHY, f"program: {why}; it is tried again"
        needs_engine = bool(offer.management) or (offer.function is not None and offer.ports[0].afu != offer.afu)
        if needs_engine and offer.card.unmanaged:
            return Health.UNHEALTHY, offer.card.unmanaged
        busy_for = max((now - self._busy_since[port.id] for port in offer.ports if port.id in self._busy_since), default=0.0)
        failed_here = any(marker.card == offer.card.id for marker in markers.values())
        verdict = health.judge(offer.ports, fresh, busy_for, self.config.busy_timeout, failed_here=failed_here)
        if verdict == health.WELL and offer.function is not None and offer.ports[0].afu != offer.afu:
            with self._memory.held() as record:
                interface = record.known[offer.ports[0].id][0]
            if reason := self._store.check(interface, offer.afu, offer.function.sha256):
                return Health.UNHEALTHY, f"bitstream: {reason}"
        return verdict

    def _moved(self, device: Device) -> str:
        """Whether the files that the container has been given are still those of the hardware; empty, or in words what they are now."""
        with self._memory.held() as record:
            given = record.given.get(device.id)
        now = tuple(node.path for node in device.nodes)
        if given is None or given == now:
            return ""
        return f"{device.id} was given out as {', '.join(given)}, and is {', '.join(now)} now: the kernel has numbered the ports anew"

    def _wrong_function(self, offer: Offer) -> str:
        """What a port is programmed with, read anew, where a container is promised something else; empty if that cannot be told just now."""
        if not offer.afu:
            return ""
        for port in offer.ports:
            with contextlib.suppress(sysfs.SysfsError):  # in reset
                afu = sysfs.read(self.host, f"{port.directory}/afu_id")
                if afu is not None and afu != offer.afu:
                    return f"{port.id} should have the function {offer.afu}, and has {afu[:40]}"
        return ""

    def _unenforced(self, device: Device) -> str:
        """Why a container does not have what it was given, empty if it has."""
        if moved := self._moved(device):
            return moved
        offer = self._view.get(device.id)
        if offer is None or offer.resource != device.resource:
            return ""
        for port in offer.ports:
            if wrong := next((fault for fault in port.faults if fault.startswith("node:")), ""):
                return wrong
            if self._programmer.running(port.id):
                return ""
        return self._wrong_function(offer)


def _device(offer: Offer, verdict: health.Verdict) -> Device:
    """An offer as the framework lists it."""
    port, card = offer.ports[0], offer.card
    facts: dict[str, str | int] = {"driver": card.driver.value, "address": card.id, "interface": card.interface, "kind": port.kind}
    if not offer.management:
        facts |= {"address": port.address, "port": port.number, "afu": port.afu}
    return Device(
        offer.id,
        resource=offer.resource,
        health=verdict[0],
        cause=verdict[1],
        numa_nodes=sorted({one.numa for one in offer.ports if one.numa is not None}),
        nodes=[DeviceNode(file, permissions="rw") for file in offer.files],
        attributes={key: value for key, value in facts.items() if value != "" and len(str(value)) <= 64},
        enforcement=Enforcement.HARD,
    )
