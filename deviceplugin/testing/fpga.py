# SPDX-License-Identifier: Apache-2.0
"""FPGA cards on a simulated machine: what their drivers show in sysfs and /dev, cards that come, go, fail and are programmed, and no hardware.

::

    fpgas = Fpgas(SimulatedHost(root))
    card = fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])  # two ports
    card.ports[1].afu = NLB3
    card.write("errors/fme_errors", "0x2")
    fpgas.reboot(reverse=True)  # the same hardware, numbered the other way round
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deviceplugin.testing.host import SimulatedHost

INTERFACE = "69528db6eb31577a8c3668f9faa081f6"
OTHER_INTERFACE = "ce48969398f05f33946d560708be108a"
NLB0 = "d8424dc4a4a3c413f89e433683f9040b"
NLB3 = "f7df405cbd7acf7222f144b0b93acd18"
DEAD = "f" * 32

_PORT_MAJOR, _ENGINE_MAJOR = 238, 239
_PCI = "/sys/devices/pci0000:3a/0000:3a:00.0"


def gbs(interface: str, afu: str, image: bytes = b"\x5a" * 4096, **metadata: object) -> bytes:
    """A bitstream file. A simulated port that is programmed with it has the function ``afu``: that is told by the first bytes of its image."""
    facts = {
        "version": 1,
        "afu-image": {
            "interface-uuid": _hyphens(interface),
            "afu-top-interface": {"class": "ccip_std_afu"},
            "power": 0,
            "accelerator-clusters": [{"accelerator-type-uuid": _hyphens(afu), "name": "nlb", "total-contexts": 1}],
        },
        **metadata,
    }
    text = json.dumps(facts).encode()
    return struct.pack("<QQI", 0x414750466E6F6558, 0x31303076534247B7, len(text)) + text + bytes.fromhex(afu) + image


def put_bitstream(host: SimulatedHost, interface: str, afu: str, content: bytes | None = None, *, digest: bool = True) -> str:
    """Writes a bitstream, and its digest, where Intel's plugin looks for them. Returns the host's path."""
    path = f"/srv/intel.com/fpga/{interface}/{afu}.gbs"
    content = gbs(interface, afu) if content is None else content
    at = host.path(path)
    os.makedirs(os.path.dirname(at), exist_ok=True)
    with open(f"{at}~", "wb") as file:
        file.write(content)
    os.rename(f"{at}~", at)
    if digest:
        host.write(f"{path}.sha256", f"{hashlib.sha256(content).hexdigest()}  {path}\n")
    return path


@dataclass(eq=False)
class SimulatedPort:
    """A port of a card. ``function`` is the address of the virtual function that has it, empty while the physical one has."""

    card: SimulatedCard
    number: int
    function: str = ""
    index: int = 0
    """The kernel's number: N in dfl-port.N."""
    _afu: str = NLB0

    @property
    def name(self) -> str:
        return f"{self.card.names['port']}.{self.index}"

    @property
    def node(self) -> str:
        return f"/dev/{self.name}"

    @property
    def directory(self) -> str:
        base = f"{self.card.pci(self.function)}/fpga"
        return f"{base}_region/region{self.card.region(self)}/{self.name}" if self.card.driver == "dfl" else f"{base}/{self.card.base}/{self.name}"

    @property
    def afu(self) -> str:
        """The function that it has been programmed with."""
        return self._afu

    @afu.setter
    def afu(self, afu: str) -> None:
        self._afu = afu
        if self.card.present:
            self.write("afu_id", afu)

    def write(self, attribute: str, value: str) -> None:
        """Changes an attribute, as ``errors/errors``."""
        self.card.host.write(f"{self.directory}/{attribute}", f"{value}\n")

    def tree(self) -> dict[str, object]:
        """Everything about it, as ``SimulatedHost.populate`` takes it."""
        at, number = self.directory, f"{_PORT_MAJOR}:{self.index}"
        facts = {"id": str(self.number), "dev": number, "afu_id": self.afu, "power_state": "0x0", "ltr": "0", "errors/errors": "0x0"}
        facts |= {"errors/first_error": "0x0", "errors/first_malformed_req": "0x" + "0" * 32, "uevent": f"MAJOR={_PORT_MAJOR}"}
        return {
            **{f"{at}/{name}": f"{value}\n" for name, value in facts.items()},
            f"/sys/bus/platform/devices/{self.name}": {"link": at},
            f"/sys/dev/char/{number}": {"link": at},
            self.node: {"device": f"c {number}"},
        }


@dataclass(eq=False)
class SimulatedCard:
    """A card of the DFL driver, or of OPAE's (``driver``)."""

    host: SimulatedHost
    driver: str
    address: str
    interface: str
    numa_node: int
    ports: list[SimulatedPort] = field(default_factory=list)
    index: int = 0
    """The kernel's number: N in dfl-fme.N."""
    first_region: int = 0
    present: bool = False

    @property
    def names(self) -> Mapping[str, str]:
        return {"port": "dfl-port", "fme": "dfl-fme"} if self.driver == "dfl" else {"port": "intel-fpga-port", "fme": "intel-fpga-fme"}

    @property
    def base(self) -> str:
        return f"region{self.first_region}" if self.driver == "dfl" else f"intel-fpga-dev.{self.index}"

    @property
    def engine(self) -> str:
        """The directory of the management engine."""
        return f"{self.pci()}/fpga{'_region' if self.driver == 'dfl' else ''}/{self.base}/{self.names['fme']}.{self.index}"

    @property
    def node(self) -> str:
        """The device file of the management engine."""
        return f"/dev/{os.path.basename(self.engine)}"

    def pci(self, function: str = "") -> str:
        return f"{_PCI}/{function or self.address}"

    def region(self, port: SimulatedPort) -> int:
        """The kernel's number of the base region that a port is below: a virtual function has one of its own."""
        return self.first_region if not port.function else self.first_region + len(self.ports) + 1 + port.number

    def write(self, attribute: str, value: str) -> None:
        """Changes an attribute of the management engine, as ``errors/fme_errors``."""
        self.host.write(f"{self.engine}/{attribute}", f"{value}\n")

    def manager(self, state: str) -> None:
        """Changes the state of the FPGA manager: ``operating``, ``write error``."""
        self.write(f"dfl-fme-mgr.{self.index}/fpga_manager/fpga{self.index}/state", state)

    def aer(self, fatal: int) -> None:
        """Changes the counter of fatal PCI Express errors."""
        self.host.write(f"{self.pci()}/aer_dev_fatal", f"Undefined 0\nData Link Protocol {fatal}\nTOTAL_ERR_FATAL {fatal}\n")

    def to_function(self, number: int, function: str) -> None:
        """Gives a port to a virtual function; an empty one brings it back."""
        self.unplug()
        self.ports[number].function = function
        self.plug()

    def tree(self) -> dict[str, object]:
        """Everything about it, as ``SimulatedHost.populate`` takes it."""
        found: dict[str, object] = {}
        functions = sorted({port.function for port in self.ports if port.function})
        for function in ("", *functions):
            facts = {"vendor": "0x8086", "device": "0x09c5" if function else "0x09c4", "class": "0x120000", "numa_node": str(self.numa_node)}
            facts |= {} if function else {"sriov_totalvfs": str(len(self.ports)), "sriov_numvfs": str(len(functions))}
            found |= {f"{self.pci(function)}/{name}": f"{value}\n" for name, value in facts.items()}
            found[f"/sys/bus/pci/devices/{function or self.address}"] = {"link": self.pci(function)}
            if function:
                found[f"{self.pci(function)}/physfn"] = {"link": self.pci()}
        number, at = f"{_ENGINE_MAJOR}:{self.index}", self.engine
        facts = {"dev": number, "ports_num": str(len(self.ports)), "bitstream_id": "0x63000023100b0c8", "bitstream_metadata": "0x18110801"}
        facts["socket_id"] = str(max(0, self.numa_node))
        found |= {f"{at}/{name}": f"{value}\n" for name, value in (facts | self._registers()).items()}
        found |= {f"/sys/dev/char/{number}": {"link": at}, self.node: {"device": f"c {number}"}}
        found |= self._classes()
        for port in self.ports:
            found |= port.tree()
        found[f"{self.pci()}/aer_dev_fatal"] = "Undefined 0\nData Link Protocol 0\nTOTAL_ERR_FATAL 0\n"
        return found

    def plug(self) -> None:
        """Puts it in, as its driver finds it."""
        self.host.populate(self.tree())
        self.present = True

    def unplug(self) -> None:
        """Pulls it out: what others link to goes first, as with a driver that lets go."""
        tree = self.tree()
        for path in sorted((path for path in tree if not path.startswith("/sys/devices/")), key=len):
            if os.path.lexists(self.host.path(path)):
                self.host.remove(path)
        for directory in {self.pci(port.function) for port in self.ports} | {self.pci()}:
            if os.path.lexists(self.host.path(directory)):
                self.host.remove(directory)
        self.present = False

    def _registers(self) -> dict[str, str]:
        if self.driver != "dfl":
            return {"errors/fme-errors/errors": "0x0", "errors/pcie0_errors": "0x0", "pr/interface_id": self.interface}
        names = ("fme_errors", "pcie0_errors", "pcie1_errors", "nonfatal_errors", "catfatal_errors", "first_error", "next_error", "inject_errors")
        return {f"errors/{name}": "0x0" for name in names} | {"hwmon/hwmon3/name": "dfl_fme_thermal", "hwmon/hwmon3/temp1_crit_alarm": "0"}

    def _classes(self) -> dict[str, object]:
        """What the class directories lead to, and below the engine a region for each port and a manager, which are classes too."""
        if self.driver != "dfl":
            found: dict[str, object] = {f"/sys/class/fpga/{self.base}": {"link": os.path.dirname(self.engine)}}
            for function in {port.function for port in self.ports if port.function}:
                raise NotImplementedError(f"OPAE's virtual functions are not simulated: {function}")
            return found
        found = {f"/sys/class/fpga_region/region{self.first_region}": {"link": os.path.dirname(self.engine)}}
        for place, port in enumerate(self.ports):
            region = f"region{self.first_region + 1 + place}"
            at = f"{self.engine}/dfl-fme-region.{self.first_region + place}/fpga_region/{region}"
            found |= {f"{at}/compat_id": f"{self.interface}\n", f"/sys/class/fpga_region/{region}": {"link": at}}
            if port.function:
                found[f"/sys/class/fpga_region/region{self.region(port)}"] = {"link": os.path.dirname(port.directory)}
        at = f"{self.engine}/dfl-fme-mgr.{self.index}/fpga_manager/fpga{self.index}"
        found |= {f"{at}/name": "DFL FME FPGA Manager\n", f"{at}/state": "operating\n", f"/sys/class/fpga_manager/fpga{self.index}": {"link": at}}
        return found


class Fpgas:
    """The FPGAs of a machine. Kernel numbers are given in the order in which cards are put in."""

    def __init__(self, host: SimulatedHost) -> None:
        self.host = host
        self.cards: list[SimulatedCard] = []
        self._boot(0)

    def dfl(self, address: str, afus: Sequence[str] = (NLB0,), *, interface: str = INTERFACE, numa_node: int = 0) -> SimulatedCard:
        """Puts in a card of the kernel's driver, with a port for each function."""
        return self._add("dfl", address, afus, interface, numa_node)

    def opae(self, address: str, afus: Sequence[str] = (NLB0,), *, interface: str = OTHER_INTERFACE, numa_node: int = 0) -> SimulatedCard:
        """Puts in a card of Intel's driver out of the tree."""
        return self._add("opae", address, afus, interface, numa_node)

    def xrt(
        self, address: str, render: int = 128, *, platform: str = "xilinx_u200_xdma_201830_2", timestamp: str = "1561465320", numa_node: int = 1
    ) -> str:
        """Puts in both functions of a card of XRT's: the management function is .0 and the user function .1. Returns the user function's address."""
        user, management = f"{address[:-1]}1", address
        self.host.populate(xrt_tree(user, management, render, platform, timestamp, numa_node))
        return user

    def manager(self, device: str, name: str, *, state: str = "operating", index: int = 9) -> str:
        """Registers an FPGA manager of a platform device. Returns its directory."""
        at = f"/sys/devices/platform/axi/{device}/fpga_manager/fpga{index}"
        self.host.populate({f"{at}/name": f"{name}\n", f"{at}/state": f"{state}\n", f"/sys/class/fpga_manager/fpga{index}": {"link": at}})
        return at

    def reboot(self, *, reverse: bool = False) -> None:
        """The drivers find the cards anew, in another order if asked; what was programmed stays."""
        there = [card for card in self.cards if card.present]
        for card in there:
            card.unplug()
        self._boot(self._boots + 1)
        for card in reversed(there) if reverse else there:
            self._number(card)
            card.plug()
        for card in self.cards:
            if card not in there:  # it gets the next numbers if it is put in again
                self._number(card)

    def _boot(self, number: int) -> None:
        self._boots = number
        self._next = {"fme": 0, "port": 0, "region": 0}
        self.host.write("/proc/sys/kernel/random/boot_id", f"{number:08x}-0000-4000-8000-000000000000\n")

    def _add(self, driver: str, address: str, afus: Sequence[str], interface: str, numa_node: int) -> SimulatedCard:
        card = SimulatedCard(self.host, driver, address, interface, numa_node)
        card.ports = [SimulatedPort(card, number, _afu=afu) for number, afu in enumerate(afus)]
        self._number(card)
        card.plug()
        self.cards.append(card)
        return card

    def _number(self, card: SimulatedCard) -> None:
        card.index, card.first_region = self._next["fme"], self._next["region"]
        self._next["fme"] += 1
        self._next["region"] += 1 + 2 * len(card.ports)
        for port in card.ports:
            port.index = self._next["port"]
            self._next["port"] += 1


def xrt_tree(user: str, management: str, render: int, platform: str, timestamp: str, numa_node: int) -> dict[str, object]:
    """Both functions of an XRT card."""
    at = {"user": f"{_PCI}/{user}", "mgmt": f"{_PCI}/{management}"}
    bus, device = int(user[5:7], 16), int(user[8:10], 16)
    qdma = f"/dev/xfpga/dma.qdma.u{int(user[:4], 16) * 65536 + bus * 256 + device * 8 + int(user[-1])}.0"
    facts = {
        f"{at['user']}/vendor": "0x10ee",
        f"{at['user']}/device": "0x5001",
        f"{at['user']}/numa_node": str(numa_node),
        f"{at['user']}/user_pf": "",
        f"{at['user']}/ready": "0x1",
        f"{at['user']}/dev_offline": "0",
        f"{at['user']}/rom.u.{bus}/VBNV": platform,
        f"{at['user']}/rom.u.{bus}/timestamp": timestamp,
        f"{at['user']}/dma.qdma.u.{bus}/uevent": "",
        f"{at['user']}/drm/renderD{render}/dev": f"226:{render}",
        f"{at['user']}/drm/card{render - 128}/dev": f"226:{render - 128}",
        f"{at['mgmt']}/vendor": "0x10ee",
        f"{at['mgmt']}/device": "0x5000",
        f"{at['mgmt']}/mgmt_pf": "",
        f"{at['mgmt']}/instance": str(bus * 256),
    }
    return {
        **{path: f"{value}\n" for path, value in facts.items()},
        f"/sys/bus/pci/devices/{user}": {"link": at["user"]},
        f"/sys/bus/pci/devices/{management}": {"link": at["mgmt"]},
        f"/dev/dri/renderD{render}": {"device": f"c 226:{render}"},
        f"/dev/xclmgmt{bus * 256}": {"device": "c 240:0"},
        qdma: {"device": "c 241:0"},
    }


class RecordedIoctls:
    """Stands in for the system calls that program a card: keeps what was asked for, and does to the simulated cards what hardware would.

    ``fail`` is an errno that the next ones end with, ``effect`` what they leave in ``afu_id`` in place of the function of the image. While ``gate``
    is not set they take as long as they like.
    """

    def __init__(self, fpgas: Fpgas) -> None:
        self.calls: list[tuple[str, int, bytes]] = []
        """Device file of the engine, number of the port, image."""
        self.opened: set[str] = set()
        """Ports that somebody has open."""
        self.fail = 0
        self.effect = ""
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self._fpgas = fpgas
        self._inside: set[str] = set()

    @contextlib.contextmanager
    def exclusive(self, node: str) -> Iterator[None]:
        if node in self.opened:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), node)
        self.opened.add(node)
        try:
            yield
        finally:
            self.opened.discard(node)

    def program(self, node: str, driver: object, port: int, image: memoryview) -> None:
        assert node not in self._inside, f"{node} programs two ports at a time"
        self._inside.add(node)
        try:
            self.entered.set()
            self.gate.wait(30)
            self.calls.append((node, port, bytes(image)))
            if self.fail:
                raise OSError(self.fail, os.strerror(self.fail), node)
            card = next(card for card in self._fpgas.cards if card.present and card.node == node)
            assert card.ports[port].node in self.opened, f"{card.ports[port].node} could be opened by others while it is programmed"
            card.ports[port].afu = self.effect or bytes(image[:16]).hex()
        finally:
            self._inside.discard(node)


def _hyphens(uuid: str) -> str:
    return "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])).upper()
