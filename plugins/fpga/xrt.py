# SPDX-License-Identifier: Apache-2.0
"""Cards of AMD's (Xilinx's) XRT. The user function of a card is what a container is given; the management function can reprogram the whole card and
is never passed on.

XRT's driver says by an attribute, ``user_pf`` or ``mgmt_pf``, which of the two a PCI function is; the function's number does not tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from msgspec import Struct, field

from deviceplugin import Skipped
from deviceplugin.plugins.fpga.hardware import Card, Driver, Port
from deviceplugin.plugins.fpga.snapshot import Reading, Snapshot

DEVICES = "/sys/bus/pci/devices"
VENDORS = frozenset({"0x10ee", "0x1d0f", "0x13fe", "0x3475"})
"""Xilinx, and who sells cards with XRT under numbers of their own: Amazon, Advantech, Arista."""

_RENDER = re.compile(r"renderD\d+")


class Layout(Struct):
    """The user functions: PCI address, and what is in the directory."""

    functions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: list[Skipped] = field(default_factory=list)


def survey(snapshot: Snapshot) -> Layout:
    """Finds the user functions. That the vendor of some other PCI device cannot be read hides none of them."""
    layout = Layout()
    snapshot.list((DEVICES,))
    addresses = snapshot.names[DEVICES]
    snapshot.read(f"{DEVICES}/{address}/vendor" for address in addresses)
    ours = [address for address in addresses if snapshot.texts[f"{DEVICES}/{address}/vendor"] in VENDORS]
    snapshot.list(f"{DEVICES}/{address}" for address in ours)
    users = []
    for address in ours:
        directory = f"{DEVICES}/{address}"
        if error := snapshot.failed.get(directory):
            layout.unread.append(Skipped(address, str(error)))
        elif "user_pf" in snapshot.names[directory]:
            users.append(address)
            layout.functions[address] = tuple(snapshot.names[directory])
    snapshot.list(f"{DEVICES}/{address}/drm" for address in users)
    return layout


def attributes(layout: Layout) -> Iterator[str]:
    """All that is to be read."""
    for address, names in layout.functions.items():
        yield from (f"{DEVICES}/{address}/{name}" for name in ("numa_node", "ready", "dev_offline", "aer_dev_fatal"))
        yield from (f"{DEVICES}/{address}/{rom}/{name}" for rom in _roms(names) for name in ("VBNV", "timestamp"))


def nodes(snapshot: Snapshot, layout: Layout) -> Iterator[str]:
    """The device files to look at."""
    for address, names in layout.functions.items():
        yield from _nodes(snapshot, address, names)


def build(snapshot: Snapshot, layout: Layout) -> Iterator[Port | Skipped]:
    """One port for each user function."""
    yield from layout.unread
    for address, names in layout.functions.items():
        yield _port(snapshot, address, names)


def _roms(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.startswith("rom")]


def _nodes(snapshot: Snapshot, address: str, names: tuple[str, ...]) -> list[str]:
    """The render node, and where the card has QDMA its file, which XRT numbers by the PCI address."""
    found = [f"/dev/dri/{name}" for name in snapshot.names.get(f"{DEVICES}/{address}/drm", ()) if _RENDER.fullmatch(name)]
    if any(name.startswith("dma.qdma.u.") for name in names):
        domain, bus, device, function = (int(part, 16) for part in re.split("[:.]", address))
        found.append(f"/dev/xfpga/dma.qdma.u{domain * 65536 + bus * 256 + device * 8 + function}.0")
    return found


def _port(snapshot: Snapshot, address: str, names: tuple[str, ...]) -> Port | Skipped:
    directory = f"{DEVICES}/{address}"
    reading = Reading(snapshot)
    platform, made = ([reading.text(f"{directory}/{rom}/{name}") for rom in _roms(names)] for name in ("VBNV", "timestamp"))
    if not platform or not platform[0]:
        why = "; ".join(reading.unread) or f"{directory} has no rom*/VBNV; the driver may not have finished with the card"
        return Skipped(address, f"its platform is not known: {why}")
    files = _nodes(snapshot, address, names)
    if not any(_RENDER.fullmatch(os.path.basename(file)) for file in files):
        return Skipped(address, f"{directory}/drm has no render node: there is nothing to give to a container")
    faults = [f"node: there is no device file {file}" for file in files if file not in snapshot.numbers]
    flags = reading.registers(directory, ("ready", "dev_offline"))
    if flags.get("ready", 1) == 0:
        faults.append("not-ready: the driver says that the card is not ready")
    if flags.get("dev_offline", 0):
        faults.append("offline: the driver says that the card is offline")
    fatal = reading.counter(f"{directory}/aer_dev_fatal", "TOTAL_ERR_FATAL")
    card = Card(id=address, driver=Driver.XRT, counters={} if fatal is None else {"aer_fatal": fatal})
    return Port(
        card=card,
        address=address,
        number=0,
        name=os.path.basename(files[0]),
        nodes=tuple(files),
        kind="-".join(part[0] for part in (platform, made) if part and part[0]),
        numa=reading.numa(directory),
        faults=tuple(faults),
        unread=tuple(reading.unread),
    )
