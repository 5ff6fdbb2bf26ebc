# SPDX-License-Identifier: Apache-2.0
"""Cards with a management engine (FME) and ports: those of the kernel's DFL driver, and of Intel's OPAE driver, which came before it.

Mirrors Documentation/fpga/dfl.rst and ABI/testing/sysfs-platform-dfl-{fme,port} of the kernel. A card is a PCI function with an engine and ports
below one base directory; a port that was given to a virtual function is below that function's and finds its engine through ``physfn``. DFL's engine
has a region of its own for each port, whose ``compat_id`` is the interface id (pr_mgmt_init, drivers/fpga/dfl-fme-pr.c); OPAE's has
``pr/interface_id``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from deviceplugin import Skipped
from deviceplugin.plugins.fpga.hardware import DEAD, Card, Driver, Port
from deviceplugin.plugins.fpga.snapshot import Reading, Snapshot, pci_directory

_AP6 = 6  # too hot: the card has shut its ports off (power_state_show, drivers/fpga/dfl-afu-main.c)
_DEAD = "dead: the {} id reads as all ones: the firmware has crashed, or the card is off the bus"
_ALARMS = {"temp1_crit_alarm": "temperature", "power1_crit_alarm": "power"}
_PORT_REGISTERS = ("power_state", "errors/errors")


class Dialect(Struct, frozen=True):
    """What two drivers for the same cards call things."""

    driver: Driver
    tops: tuple[str, ...]
    """Class directories: of the bases, then of what is below engines."""
    engine: re.Pattern[str]
    below: str
    """What every path below an engine has in it."""
    port: re.Pattern[str]
    engine_registers: Mapping[str, str]
    """Where in the engine's directory each register is."""
    interface: str = ""
    """Where in the engine's directory the interface id is, if not in its regions."""


DFL = Dialect(
    Driver.DFL,
    ("/sys/class/fpga_region", "/sys/class/fpga_manager"),
    re.compile(r"dfl-fme\.\d+"),
    "/dfl-fme.",
    re.compile(r"dfl-port\.\d+"),
    {"fme_errors": "errors/fme_errors", "catfatal_errors": "errors/catfatal_errors"},
)
OPAE = Dialect(
    Driver.OPAE,
    ("/sys/class/fpga",),
    re.compile(r"intel-fpga-fme\.\d+"),
    "/intel-fpga-fme.",
    re.compile(r"intel-fpga-port\.\d+"),
    {"fme_errors": "errors/fme-errors/errors"},
    "pr/interface_id",
)


class _Engine(Struct, frozen=True):
    directory: str
    pci: str
    interfaces: tuple[str, ...]
    """The files that hold the interface id."""
    managers: tuple[str, ...]
    sensors: tuple[str, ...]

    @property
    def node(self) -> str:
        return f"/dev/{os.path.basename(self.directory)}"


class Layout(Struct):
    """Where things are, before anything about them is read."""

    dialect: Dialect
    engines: dict[str, _Engine] = field(default_factory=dict)
    """By the directory of their PCI function."""
    ports: list[tuple[str, str]] = field(default_factory=list)
    """Directory of each port, and the PCI function that it is behind."""
    owners: dict[str, str] = field(default_factory=dict)
    """The physical function of each virtual one."""


def survey(snapshot: Snapshot, dialect: Dialect) -> Layout:
    """Lists the bases and what is in them."""
    layout = Layout(dialect)
    snapshot.list(dialect.tops)
    links = [f"{top}/{name}" for top in dialect.tops for name in snapshot.names[top]]
    snapshot.follow(links)
    found = [snapshot.real[one] for one in links if one in snapshot.real]
    top = f"/{os.path.basename(dialect.tops[0])}/"
    bases = [one for one in found if top in one and dialect.below not in one]
    snapshot.list(bases)
    engines = []
    for base in bases:
        pci = pci_directory(base)
        for name in snapshot.names[base]:
            if dialect.engine.fullmatch(name):
                engines.append((f"{base}/{name}", pci))
            elif dialect.port.fullmatch(name):
                layout.ports.append((f"{base}/{name}", pci))
    snapshot.list(f"{directory}/hwmon" for directory, _ in engines)
    below: dict[str, list[str]] = {}
    for one in found:
        above, part, rest = one.partition(dialect.below)
        if part:
            name, _, inside = rest.partition("/")
            below.setdefault(above + part + name, []).append(inside)
    for directory, pci in engines:
        inside_it = below.get(directory, [])
        regions = [f"{directory}/{one}/compat_id" for one in inside_it if "/fpga_region/" in one]
        layout.engines[pci or directory] = _Engine(
            directory,
            pci,
            (f"{directory}/{dialect.interface}",) if dialect.interface else tuple(regions),
            tuple(f"{directory}/{one}" for one in inside_it if "/fpga_manager/" in one),
            tuple(f"{directory}/hwmon/{name}" for name in snapshot.names[f"{directory}/hwmon"]),
        )
    orphans = sorted({pci for _, pci in layout.ports if pci and pci not in layout.engines})
    snapshot.follow(f"{pci}/physfn" for pci in orphans)
    layout.owners = {pci: owner for pci in orphans if (owner := snapshot.real.get(f"{pci}/physfn", "")) in layout.engines}
    return layout


def attributes(layout: Layout) -> Iterator[str]:
    """All that is to be read."""
    for engine in layout.engines.values():
        yield f"{engine.directory}/dev"
        yield from engine.interfaces
        yield from (f"{engine.directory}/{path}" for path in layout.dialect.engine_registers.values())
        yield from (f"{manager}/state" for manager in engine.managers)
        yield from (f"{sensor}/{name}" for sensor in engine.sensors for name in _ALARMS)
        yield f"{engine.pci}/aer_dev_fatal"
    for directory, pci in layout.ports:
        yield from (f"{directory}/{name}" for name in ("id", "dev", "afu_id", *_PORT_REGISTERS))
        yield f"{pci}/numa_node"
    yield from (f"{owner}/numa_node" for owner in layout.owners.values())


def nodes(layout: Layout) -> Iterator[str]:
    """The device files to look at."""
    yield from (engine.node for engine in layout.engines.values())
    yield from (f"/dev/{os.path.basename(directory)}" for directory, _ in layout.ports)


def build(snapshot: Snapshot, layout: Layout) -> Iterator[Port | Skipped]:
    """The ports, each with its card."""
    cards = {key: _card(snapshot, engine, layout.dialect) for key, engine in layout.engines.items()}
    for directory, pci in layout.ports:
        name = os.path.basename(directory)
        if not pci:
            yield Skipped(name, f"{directory} is behind no PCI device, so nothing about it stays the same after a reboot")
            continue
        key = pci if pci in cards else layout.owners.get(pci, "")
        if key not in cards:
            yield Skipped(name, f"{os.path.basename(pci)} has no management engine, nor has its physical function: what fits its port is not known")
            continue
        yield _port(snapshot, directory, pci, layout.owners.get(pci, pci), cards[key])


def _card(snapshot: Snapshot, engine: _Engine, dialect: Dialect) -> Card:
    reading = Reading(snapshot)
    file = Reading(snapshot)  # what is wrong with the engine's file is no matter to those who do not need it
    faults = []
    where = {path: name for name, path in dialect.engine_registers.items()}
    registers = {where[path]: value for path, value in reading.registers(engine.directory, where).items()}
    if fatal := registers.pop("catfatal_errors", 0):
        faults.append(f"catfatal: the card tells of catastrophic or fatal errors, {fatal:#x}")
    for sensor in engine.sensors:
        faults += [f"{_ALARMS[name]}: {sensor}/{name} is set" for name, value in reading.registers(sensor, _ALARMS).items() if value]
    interfaces = sorted({found for path in engine.interfaces if (found := reading.uuid(path))})
    if len(interfaces) > 1:
        reading.unread.append(f"the regions of {engine.directory} have different interface ids: {', '.join(interfaces)}")
    elif not engine.interfaces:
        reading.unread.append(f"{engine.directory} has no region, so its interface is not known")
    if DEAD in interfaces:
        faults.append(_DEAD.format("interface"))
    states = [reading.text(f"{manager}/state") for manager in engine.managers]
    fatal_total = reading.counter(f"{engine.pci}/aer_dev_fatal", "TOTAL_ERR_FATAL")
    return Card(
        id=os.path.basename(engine.pci or engine.directory),
        driver=dialect.driver,
        management=engine.node,
        unmanaged=file.node(engine.node, file.text(f"{engine.directory}/dev")),
        interface=interfaces[0] if len(interfaces) == 1 else "",
        state=next((state for state in states if "error" in state), states[0] if states else ""),
        registers=registers,
        counters={} if fatal_total is None else {"aer_fatal": fatal_total},
        faults=tuple(faults),
        unread=tuple(reading.unread),
    )


def _port(snapshot: Snapshot, directory: str, pci: str, owner: str, card: Card) -> Port | Skipped:
    name = os.path.basename(directory)
    reading = Reading(snapshot)
    number = reading.text(f"{directory}/id")
    if not number.isdecimal() or len(number) > 4:
        why = "; ".join(reading.unread) or f"{directory}/id is {number[:40]!r}, not a number"
        return Skipped(name, f"it cannot be told which port of {os.path.basename(owner)} it is: {why}")
    node = f"/dev/{name}"
    afu = reading.uuid(f"{directory}/afu_id")
    registers = reading.registers(directory, _PORT_REGISTERS)
    faults = []
    if afu == DEAD:
        faults.append(_DEAD.format("AFU"))
    if registers.pop("power_state", 0) == _AP6:
        faults.append("power: the port is shut off (AP6)")
    if wrong := reading.node(node, reading.text(f"{directory}/dev")):
        faults.append(wrong)
    return Port(
        card=card,
        address=os.path.basename(pci),
        number=int(number),
        name=name,
        nodes=(node,),
        directory=directory,
        afu=afu,
        busy=reading.busy,
        numa=reading.numa(pci, owner),
        registers={os.path.basename(key): value for key, value in registers.items()},
        faults=tuple(faults),
        unread=tuple(reading.unread),
    )
