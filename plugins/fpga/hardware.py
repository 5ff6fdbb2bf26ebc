# SPDX-License-Identifier: Apache-2.0
"""What an FPGA card is to this plugin, whichever driver runs it: values, no I/O."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from functools import cached_property

from msgspec import Struct, field

UUID = re.compile(r"[0-9a-f]{32}")

DEAD = "f" * 32
"""What the driver reads as an AFU or interface id once the firmware has crashed or the card has fallen off the bus: reads of MMIO answer all ones."""


class Driver(enum.Enum):
    """Which kernel driver runs a card. They differ in paths, ioctls and in what can be told of a card's health."""

    DFL = "dfl"
    """The kernel's own, for Intel's Device Feature List cards: /sys/class/fpga_region."""
    OPAE = "opae"
    """Intel's driver out of the tree, which came before it: /sys/class/fpga."""
    XRT = "xrt"
    """xocl, of AMD's (Xilinx's) XRT: PCI functions with ``user_pf``."""
    MANAGER = "manager"
    """Any other driver that registers with the kernel's fpga_manager class."""


class Card(Struct, frozen=True):
    """What manages the ports of one FPGA: a management engine (FME) for DFL and OPAE."""

    id: str
    """Its PCI address, or what a device without one is called in the device tree: neither depends on the order in which drivers find hardware."""
    driver: Driver
    management: str = ""
    """The device file that can reprogram and release every port. Empty if there is none, or the plugin has no use for it."""
    unmanaged: str = ""
    """What is wrong with that file, empty if nothing is."""
    interface: str = ""
    """Which bitstreams fit: 32 hexadecimal digits, empty if that cannot be read."""
    state: str = ""
    """Of the card's FPGA manager, in its words: ``operating``, ``write error``."""
    registers: Mapping[str, int] = field(default_factory=dict)
    """Error registers, by name: a bit stays set until somebody clears it."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Error counters, by name: they only grow until the device is put in anew."""
    faults: tuple[str, ...] = ()
    """What is wrong now, each ``cause: detail``."""
    unread: tuple[str, ...] = ()
    """What must be known and cannot be read, in words."""


class Port(Struct, frozen=True, dict=True):
    """What a container can be given: a part of a card that holds one accelerator function and has device files of its own."""

    card: Card
    address: str
    """The PCI function that it is behind: the card's, or a virtual function."""
    number: int
    """Of the port within the card."""
    name: str
    """What the kernel calls it until the next reboot: ``dfl-port.0``."""
    nodes: tuple[str, ...]
    directory: str = ""
    """In sysfs."""
    afu: str = ""
    """The accelerator function that is programmed: 32 hexadecimal digits, empty if that cannot be read."""
    busy: bool = False
    """In reset or being programmed: the driver answers EBUSY. That passes."""
    kind: str = ""
    """What a pod selects hardware by, where there is no interface id: XRT's platform, or the manager's name."""
    numa: int | None = None
    registers: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        """The same after each reboot, replug and change of the kernel's numbering."""
        return f"{slug(self.address)}-p{self.number}"


def slug(address: str) -> str:
    """A PCI address, or a name, as a part of a device id."""
    return re.sub(r"[^-A-Za-z0-9_.]+", "-", address)
