# SPDX-License-Identifier: Apache-2.0
"""Xeon Phi cards in a simulated host, and the driver that boots and resets them.

::

    mics = SimulatedMics(SimulatedHost(root), "mpss3")
    card = mics.add(serial="ADKC32800437")
    mics.crash(card)

The trees are those that the drivers make: MPSS 3 (``mpss3``), the kernel's from 4.4 to 5.9 (``kernel``) and MPSS 4 (``mpss4``). What is written to a
card's ``state`` is taken at the next :meth:`SimulatedMics.step`, as the driver would, and takes the time that it is given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from deviceplugin.testing.host import SimulatedHost

Flavour = Literal["mpss3", "kernel", "mpss4"]

SCIF: Mapping[str, str] = {"mpss3": "/dev/mic/scif", "kernel": "/dev/scif", "mpss4": "/dev/scif"}
_MAJOR = 240  # of /dev/mic/*: a dynamic one
_MISC = 10  # of /dev/scif and /dev/vfio/vfio
_BRIDGE = "/sys/devices/pci0000:00/0000:00:02.0"
_FAMILIES = {"mpss3": (0x225D, "x100"), "kernel": (0x2250, "x100"), "mpss4": (0x2262, "x200")}

_RESET_FROM = {  # in which states each driver takes a reset: linsysfs.c, cosm_main.c of the kernel, cosm_main.c of MPSS 4
    "mpss3": None,  # all but "ready"
    "kernel": None,
    "mpss4": ("ready", "online", "online_firmware", "shutdown", "error", "unknown"),
}


@dataclass(slots=True, eq=False)
class SimulatedMic:
    """One card. ``number`` is the driver's, and may change; None while no driver has it."""

    address: str
    number: int | None
    serial: str
    word: str = "online"
    boots: int = 1
    crashes: int = 0
    due: list[tuple[float, str]] = field(default_factory=list)
    """What becomes of its state, and when."""

    @property
    def pci(self) -> str:
        """Its directory in sysfs."""
        return f"{_BRIDGE}/{self.address}"

    @property
    def directory(self) -> str:
        """Its directory of the class, where the driver's attributes are."""
        return f"{self.pci}/mic/mic{self.number}"


class SimulatedMics:
    """The cards of a host, all behind one driver. ``reset`` and ``boot`` are the seconds that these take."""

    def __init__(
        self, host: SimulatedHost, flavour: Flavour, *, reset: float = 10.0, boot: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.host = host
        self.flavour = flavour
        self.cards: list[SimulatedMic] = []
        self.commands: list[tuple[str, str]] = []
        """What the driver took: the card's address, and what was written."""
        self.refused: list[tuple[str, str, str]] = []
        """What it did not take: the card's address, what was written, and the state that it was in."""
        self._reset, self._boot, self._clock = reset, boot, clock
        host.write("/sys/class/mic/.keep")
        os.unlink(host.path("/sys/class/mic/.keep"))
        if flavour == "mpss3":
            for minor, name in enumerate(("ctrl", "scif")):
                host.device(f"/dev/mic/{name}", f"/sys/devices/virtual/mic/{name}", major=_MAJOR, minor=minor, subsystem="class/mic")
        else:
            host.device("/dev/scif", "/sys/devices/virtual/misc/scif", major=_MISC, minor=58, subsystem="class/misc")

    def add(self, address: str = "", *, number: int | None = None, serial: str = "", numa_node: int = 0, word: str = "online") -> SimulatedMic:
        """Plugs a card in. By default it gets the next place on the bus, the next number and a serial number of its own."""
        taken = {card.address for card in self.cards}
        address = address or next(at for at in (f"0000:{bus:02x}:00.0" for bus in range(5, 256)) if at not in taken)
        numbers = {card.number for card in self.cards}
        number = next(n for n in range(256) if n not in numbers) if number is None else number
        serial = serial or f"ADKC{int(address[5:7], 16):08d}"
        card = SimulatedMic(address, number, serial, word)
        device, _ = _FAMILIES[self.flavour]
        group = f"/sys/kernel/iommu_groups/{int(address[5:7], 16)}"
        self.host.sysfs_device(
            card.pci,
            subsystem="pci",
            driver="mic" if self.flavour == "mpss3" else "mic_x200" if self.flavour == "mpss4" else "mic_host",
            numa_node=numa_node,
            attributes={
                "vendor": "0x8086",
                "device": f"{device:#06x}",
                "class": "0x0b4000",
                "modalias": f"pci:v00008086d{device:08X}sv00008086sd00003608bc0Bsc40i00",
            },
        )
        self.host.link(f"{card.pci}/iommu_group", group)
        self.host.link(f"{group}/devices/{address}", card.pci)
        self.cards.append(card)
        self._show(card)
        return card

    def remove(self, card: SimulatedMic) -> None:
        """Pulls a card out. The numbers of the others stay."""
        self._hide(card)
        self.host.remove(f"/sys/bus/pci/devices/{card.address}")
        self.host.remove(f"/sys/kernel/iommu_groups/{int(card.address[5:7], 16)}/devices/{card.address}")
        self.host.remove(card.pci)
        self.cards.remove(card)

    def renumber(self, *numbers: int) -> None:
        """Gives the cards that the driver has other numbers, in their order, as a reboot may."""
        mine = [card for card in self.cards if card.number is not None]
        for card in mine:
            self._hide(card)
        for card, number in zip(mine, numbers, strict=True):
            card.number = number
            self._show(card)

    def set(self, card: SimulatedMic, word: str) -> None:
        """The driver says another word of a card's state."""
        card.word, card.due = word, []
        self._show(card)

    def say(self, card: SimulatedMic, attribute: str, text: str) -> None:
        """Writes any attribute of a card, without what the driver would put around it."""
        self.host.write(f"{card.directory}/{attribute}", text)

    def crash(self, card: SimulatedMic) -> None:
        """The card crashes and boots again at once, faster than anybody looks."""
        card.crashes += 1
        card.boots += 1
        self._show(card)

    def give_to_vfio(self, card: SimulatedMic) -> str:
        """Takes a card from its driver and binds it to vfio-pci. Returns its IOMMU group's node."""
        self._hide(card)
        card.number = None
        self.host.link(f"{card.pci}/driver", "/sys/bus/pci/drivers/vfio-pci")
        if not os.path.lexists(self.host.path("/dev/vfio/vfio")):
            self.host.device_file("/dev/vfio/vfio", major=_MISC, minor=196)
        group = int(card.address[5:7], 16)
        self.host.device_file(f"/dev/vfio/{group}", major=511, minor=group)
        return f"/dev/vfio/{group}"

    def neighbour(self, card: SimulatedMic, address: str, driver: str = "", kind: str = "0x020000") -> None:
        """Another PCI device in the card's IOMMU group, of a class and with a driver, or with none."""
        place = f"{_BRIDGE}/{address}"
        attributes = {"class": kind, "modalias": "pci:v00008086d00001533sv00008086sd00000000bc02sc00i00"}
        self.host.sysfs_device(place, subsystem="pci", driver=driver, attributes=attributes)
        group = f"/sys/kernel/iommu_groups/{int(card.address[5:7], 16)}"
        self.host.link(f"{group}/devices/{address}", place)
        self.host.link(f"{place}/iommu_group", group)

    def step(self) -> None:
        """The driver takes what was written to the cards' states, and what has become due happens."""
        now = self._clock()
        for card in self.cards:
            if card.number is None:
                continue
            said = self.host.read(f"{card.directory}/state").strip()
            if said and said != card.word:
                self._take(card, said, now)
            while card.due and card.due[0][0] <= now:
                _, card.word = card.due.pop(0)
                card.boots += card.word == "online"
                self._show(card)

    def _take(self, card: SimulatedMic, command: str, now: float) -> None:
        states = _RESET_FROM[self.flavour]
        boots = command == "boot" if self.flavour != "mpss3" else command.startswith("boot:linux:/")
        if command == "reset" and (card.word in states if states else card.word != "ready"):
            card.word, card.due = "resetting", [(now + self._reset, "ready")]
        elif boots and card.word == "ready":
            card.word, card.due = "booting", [(now + self._boot, "online")]
        else:
            self.refused.append((card.address, command, card.word))
            self._say(card, "state", card.word)
            return
        self.commands.append((card.address, command))
        self._say(card, "state", card.word)

    def _say(self, card: SimulatedMic, attribute: str, text: str) -> None:
        # linsysfs.c writes some attributes without a newline.
        bare = self.flavour == "mpss3" and attribute in ("state", "mode", "serialnumber", "boot_count", "crash_count", "post_code")
        self.host.write(f"{card.directory}/{attribute}", text if bare else f"{text}\n")

    def _show(self, card: SimulatedMic) -> None:
        """All attributes of a card."""
        for name, text in self._attributes(card).items():
            self._say(card, name, text)
        self.host.link(f"{card.directory}/subsystem", "/sys/class/mic")
        self.host.link(f"{card.directory}/device", card.pci)
        self.host.link(f"/sys/class/mic/mic{card.number}", card.directory)

    def _hide(self, card: SimulatedMic) -> None:
        if card.number is not None:
            self.host.remove(f"/sys/class/mic/mic{card.number}")
            self.host.remove(f"{card.pci}/mic")

    def _attributes(self, card: SimulatedMic) -> dict[str, str]:
        online = card.word == "online"
        if self.flavour == "mpss3":
            facts = {"family": "x100", "stepping": "C0", "sku": "C0-7120 P/A/X/D", "serialnumber": card.serial, "active_cores": "3d"}
            counts = {"boot_count": str(card.boots), "crash_count": str(card.crashes)}
            return {"state": card.word, "mode": "linux" if online else "N/A", "scif_status": "online" if online else "not present", **facts, **counts}
        if self.flavour == "kernel":
            return {"state": card.word, "shutdown_status": "nop", "family": "x100", "stepping": "C0", "heartbeat_enable": "1", "bootmode": "linux"}
        uuid = f"00000000-0000-4000-8000-{card.serial[-12:].rjust(12, '0').lower().replace('k', 'a')}"
        info = {
            "system_uuid": uuid,
            "system_serial_number": card.serial,
            "mic_family": "x200",
            "processor_stepping": "B0",
            "system_sku_number": "7220A",
        }
        return {"state": card.word, "state_msg": "", "spad/post_code": "0xff", **{f"info/{name}": text for name, text in info.items()}}


def self_boot(
    host: SimulatedHost, *, model: int = 87, clusters: int = 1, mcdram_gib: float = 16.0, ddr_gib: int = 96, cmdline: str = "root=/dev/sda1"
) -> None:
    """Makes a host a Xeon Phi itself: ``clusters`` of processors, each with its part of the MCDRAM that is memory (0: all of it is cache)."""
    host.write(
        "/proc/cpuinfo",
        f"processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\nmodel name\t: Intel(R) Xeon Phi(TM) CPU 7250 @ 1.40GHz\n\n"
        f"processor\t: 1\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\n",
    )
    host.write("/proc/cmdline", f"BOOT_IMAGE=/vmlinuz {cmdline}\n")
    nodes = clusters * (2 if mcdram_gib else 1)
    for node in range(nodes):
        memory = node >= clusters
        size = int((mcdram_gib if memory else ddr_gib) * (1 << 20) / clusters)
        at = f"/sys/devices/system/node/node{node}"
        host.write(f"{at}/cpulist", "\n" if memory else f"{node * 68}-{node * 68 + 67}\n")
        host.write(f"{at}/meminfo", f"Node {node} MemTotal:       {size} kB\nNode {node} MemFree:        {size // 2} kB\n")
        distances = [10 if other == node else _distance(node, other, clusters) for other in range(nodes)]
        host.write(f"{at}/distance", " ".join(map(str, distances)) + "\n")


def _distance(one: int, other: int, clusters: int) -> int:
    """As the firmware of Knights Landing tells it: 21 to another cluster, 31 to one's own MCDRAM, 41 to another's."""
    if (one < clusters) == (other < clusters):
        return 21 if one < clusters else 41
    return 31 if one % clusters == other % clusters else 41
