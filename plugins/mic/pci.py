# SPDX-License-Identifier: Apache-2.0
"""Cards as the PCI bus knows them."""

from __future__ import annotations

import re

from deviceplugin import Host, sysfs

DEVICES = "/sys/bus/pci/devices"
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_MODALIAS = re.compile(r"pci:v0000([0-9A-F]{4})d0000([0-9A-F]{4})")

# Knights Corner (mpss-modules/host/linux.c, mic_pci_tbl) and Knights Landing as a card (mic_x200/mic_main.c).
_INTEL = 0x8086
_X100 = range(0x2250, 0x225F)
_X200 = frozenset({0x2260, 0x2262, 0x2263, 0x2264, 0x2265})


def is_address(name: str) -> bool:
    """Whether this is a PCI address as the kernel writes it, ``0000:05:00.0``."""
    return _ADDRESS.fullmatch(name) is not None


def address_of(directory: str) -> str:
    """The address of the PCI device at a directory of sysfs, or of the nearest above; empty if there is none."""
    for above in sysfs.parents(directory):
        name = above.rpartition("/")[2]
        if is_address(name):
            return name
    return ""


def family(modalias: str) -> str:
    """``x100`` (Knights Corner) or ``x200`` (Knights Landing) of a MIC's modalias; empty of any other device's."""
    found = _MODALIAS.match(modalias)
    if found is None or int(found[1], 16) != _INTEL:
        return ""
    device = int(found[2], 16)
    return "x100" if device in _X100 else "x200" if device in _X200 else ""


def cards(host: Host) -> dict[str, str]:
    """The families of the MICs on the bus by address, whatever driver they have. Raises SysfsError where the bus cannot be read."""
    addresses = [name for name in sysfs.entries(host, DEVICES) if is_address(name)]
    found = sysfs.read_many(host, [f"{DEVICES}/{address}/modalias" for address in addresses])
    named = {address: family(alias) for address, alias in zip(addresses, found, strict=True) if isinstance(alias, str)}
    return {address: name for address, name in named.items() if name}
