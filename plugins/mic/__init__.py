# SPDX-License-Identifier: Apache-2.0
"""Intel Many Integrated Core: Xeon Phi coprocessors, and hosts that are Xeon Phis themselves. See docs/mic.md."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from deviceplugin import Allocation, Device, Edits, Enforcement, Health, Host, Plugin, Rule, Skipped, Verdict, sysfs
from deviceplugin.events import Events
from deviceplugin.labels import LabelFile
from deviceplugin.plugins.mic import cards, devices, labels, pci, selfboot, vfio
from deviceplugin.plugins.mic.boot import Booter, NotReady, Target, wait_for_change
from deviceplugin.plugins.mic.cards import Card, Identities
from deviceplugin.plugins.mic.config import MicConfig
from deviceplugin.plugins.mic.state import WELL, Driver, Finding, Phase, judge
from deviceplugin.plugins.mic.told import Told

__all__ = ["Mic", "MicConfig"]

_WATCHED = ("mic", "pci", "vfio", "misc")


class Mic(Plugin):
    """Xeon Phi cards. One instance serves those behind a driver, those to be passed through, and the host itself where that is a Xeon Phi."""

    Config = MicConfig
    config: MicConfig
    recovery = MappingProxyType({"crash": Rule(seconds=30)})
    interval = 2.0  # no event tells of a change of state (it is not a uevent), and a look takes a millisecond

    def __init__(
        self,
        config: MicConfig | None = None,
        host: Host | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[Host, Sequence[str], float], None] = wait_for_change,
    ) -> None:
        super().__init__(config or MicConfig(), host)
        self._identities = Identities(by_slot=self.config.identity == "slot")
        options = self.config
        limit, patience = options.prepare_timeout, options.boot.timeout
        self._booter = Booter(self.host, options.prepare, self._boot_command, limit=limit, patience=patience, clock=clock, wait=wait)
        self._told = Told(self.host, options.record)
        self._label_file, self._unlabelled = LabelFile(self.host, labels.FILE), ""
        self._model: str | None = None
        self._crashes: dict[str, int] = {}
        self._served = 0
        self._present: Mapping[str, Device] = MappingProxyType({})

    def discover(self) -> Iterator[Device | Skipped]:
        """Every card that a driver serves, every one that can be passed through, and why others cannot."""
        seen: list[Card | vfio.Passed | Skipped] = [*cards.look(self.host, self._identities)]
        served = [one for one in seen if isinstance(one, Card)]
        seen += self._others({card.address for card in served})
        passed = [one for one in seen if isinstance(one, vfio.Passed)]
        skipped = [one for one in seen if isinstance(one, Skipped)]
        found = [*self._cards(served, skipped), *(devices.passed(one, self.config) for one in passed)]
        processor = self._processor()
        if processor is not None:
            told = f"memory {processor.memory_mode}, mesh {processor.cluster_mode}" + (f": {processor.why}" if processor.why else "")
            skipped.append(Skipped("host", f"is a Xeon Phi ({processor.model}), {told}"))
            if self.config.host_resource:
                found.append(devices.host(processor, self.config.host_resource))
        self._served = len(served)
        self._present = {device.id: device for device in found}
        if self.config.labels:
            self._label(served, passed, processor)
        yield from found
        yield from skipped

    def allocate(self, held: Sequence[Device]) -> Edits:
        """The SCIF node and which cards to offload to, or the IOMMU groups and whose they are."""
        self._told.tell({device.id: handle for device in held if (handle := devices.handle(device))})
        return devices.edits(held, self.config)

    def prepare(self, held: Sequence[Device]) -> None:
        """Sees to it that the container gets what it was told of, online. Raises NotReady, after which the kubelet tries again."""
        for device in held:
            if trouble := self._moved(device):
                raise NotReady(trouble)
        targets = [Target(one.id, devices.handle(one), Driver(one.attributes["driver"])) for one in held if devices.number(one) is not None]
        shared = self.sharing.get(self.config.resource)
        if targets and self.config.prepare == "reset" and shared is not None and shared.replicas > 1:
            raise NotReady(
                f"prepare: reset would reset a card under the containers that share it: take the replicas from {self.config.resource}, "
                "or configure prepare: boot"
            )
        self._booter.bring_online(targets)

    def reconcile(self, allocations: Sequence[Allocation]) -> Iterable[Verdict]:
        """Whether each container was told of the right cards, and what keeps it to them."""
        present, served = self._present, self._served
        for allocation in allocations:
            gone = [device.id for device in allocation.devices if device.id not in present]
            held = [present[device.id] for device in allocation.devices if device.id in present]
            wrong = [trouble for trouble in map(self._moved, held) if trouble]
            broken = [f"{one.id}: {one.cause}" for one in held if devices.is_passed(one) and one.health is not Health.HEALTHY]
            if wrong or broken:
                yield Verdict(allocation, False, (wrong or broken)[0])
            elif gone:
                yield Verdict(allocation, None, f"{gone[0]} is not there any more")
            elif all(one.enforcement is Enforcement.HARD and self._told.handle(one.id) for one in held):
                yield Verdict(allocation, True)
            else:
                yield Verdict(allocation, None, _unseen(held, served))

    def uninstall(self, remove: bool) -> Iterator[str]:
        """The labels, and the record of what containers were told."""
        yield from self._label_file.leftovers(remove)
        yield from self._told.leftovers(remove)

    def watch(self) -> Iterator[object]:
        """When a card comes or goes, or a file of theirs. A change of state has no event: that is what the short interval is for."""
        yield from Events(self.host, paths=["/dev/mic", "/dev/scif", vfio.NODES], subsystems=_WATCHED)

    def _others(self, served: Collection[str]) -> Iterator[vfio.Passed | Skipped]:
        """The cards on the PCI bus at other addresses than these."""
        try:
            families = pci.cards(self.host)
        except sysfs.SysfsError as error:
            yield Skipped("PCI bus", str(error))
            return
        yield from vfio.look(self.host, {address: family for address, family in families.items() if address not in served})

    def _cards(self, served: Sequence[Card], skipped: list[Skipped]) -> Iterator[Device]:
        names = Counter(card.id for card in served)
        crashes = {card.id: card.crashes for card in served if card.crashes is not None}
        common = self._common(served)
        for card in served:
            if not card.id:
                skipped.append(Skipped(card.name, card.nameless))
            elif names[card.id] > 1:
                skipped.append(Skipped(card.name, f"has the same serial number as another card ({card.id}); identity: slot goes by PCI addresses"))
            else:
                yield devices.served(card, self._finding(card, common[card.driver]), self.config, alone=len(served) == 1)
        self._crashes = crashes

    def _common(self, served: Sequence[Card]) -> dict[Driver, Finding]:
        """What is the matter with all cards of a driver: a file that every container needs."""
        gone = next((one.path for one in self.config.libraries if not os.path.exists(self.host.path(one.path))), "")
        found: dict[Driver, Finding] = {}
        for driver in {card.driver for card in served}:
            try:
                there = sysfs.device_number(self.host, devices.SCIF[driver]) is not None
                why = "" if there else f"node: {devices.SCIF[driver]} is not there"
            except sysfs.SysfsError as error:
                why = f"node: {error}"
            why = why or (f"library: {gone} is not there" if gone else "")
            found[driver] = Finding(Health.UNHEALTHY, why) if why else WELL
        return found

    def _finding(self, card: Card, common: Finding) -> Finding:
        before = self._crashes.get(card.id)
        if before is not None and card.crashes is not None and card.crashes > before:
            self.log.warning("%s (%s) has crashed; what containers had on it is lost", card.name, card.id)
            return Finding(Health.UNHEALTHY, "crash")
        found = judge(card.state, boots=self.config.prepare in ("boot", "reset") and self._bootable(card.driver))
        if found is not WELL and card.state.phase in (Phase.MOVING, Phase.READY) and self._booter.underway(card.id):
            found = WELL  # this is the way of its own container's start
        return common if found is WELL else found

    def _moved(self, device: Device) -> str:
        """Why a device is not what its container was told of, or not where it was seen; empty if it is."""
        handle, told = devices.handle(device), self._told.handle(device.id)
        if told and told != handle:
            return (
                f"{device.id} is {handle} now, and its container was told of {told}, which may be another card since the numbers changed: "
                "delete the pod, and a new one is told the right number"
            )
        number, seen = devices.number(device), device.attributes.get("pci_address")
        if number is None or not seen:
            return ""
        try:
            now = cards.address(self.host, number)
        except sysfs.SysfsError as error:
            return str(error)
        if now != seen:
            return f"{device.id} was {handle} at {seen}, and {handle} is at {now or 'no address'} now: the cards are looked at again soon"
        return ""

    def _bootable(self, driver: Driver) -> bool:
        return driver is not Driver.MPSS3 or bool(self.config.boot.image)

    def _boot_command(self, target: Target) -> str:
        """What the driver takes: linsysfs.c, set_micstate, and cosm_sysfs.c, state_store."""
        if target.driver is not Driver.MPSS3:
            return "boot"
        if not self.config.boot.image:
            raise NotReady(f"{target.name} ({target.id}): MPSS 3 must be told what to boot: set boot: image (and initramfs)")
        files = [path.replace("{card}", target.name) for path in (self.config.boot.image, self.config.boot.initramfs) if path]
        return ":".join(["boot:linux", *files])

    def _processor(self) -> selfboot.Processor | None:
        if self._model is None:
            self._model = selfboot.model(self.host)
        return selfboot.look(self.host, self._model) if self._model else None

    def _label(self, served: Sequence[Card], passed: Sequence[vfio.Passed], processor: selfboot.Processor | None) -> None:
        """Labels are for schedulers: that they cannot be written takes no card away."""
        try:
            found = labels.labels(served, passed, processor)
            if found:
                self._label_file.write(found)
            else:
                self._label_file.remove()
            self._unlabelled = ""
        except OSError as error:
            if str(error) != self._unlabelled:  # once per reason
                self.log.error("the labels cannot be written: %s: %s; is the directory mounted?", error.filename, error.strerror)
            self._unlabelled = str(error)


def _unseen(held: Sequence[Device], served: int) -> str:
    """Why it cannot be seen whether an allocation is kept to."""
    if any(one.enforcement is Enforcement.NONE for one in held):
        return "it is counted, and nothing else"
    if any(one.enforcement is Enforcement.ADVISORY for one in held):
        return f"the SCIF node reaches all {served} cards: OFFLOAD_DEVICES is advice"
    return "what the container was told is not known: it was admitted before there was a record"
