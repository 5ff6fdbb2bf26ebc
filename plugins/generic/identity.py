# SPDX-License-Identifier: Apache-2.0
"""What a device is called for life. The kernel numbers device files in the order it finds the hardware, so their names are not it."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable

from deviceplugin import Host, sysfs

_ADDRESSED = frozenset({"usb", "pci", "platform", "pnp", "i2c", "spi", "amba", "ccw", "vmbus", "mdio_bus", "serio"})
"""Buses on which the name of a device says where it is, and not when it was found."""

_HID = re.compile(r"([0-9A-F]{4}:[0-9A-F]{4}:[0-9A-F]{4})\.[0-9A-F]{4}")  # bus, vendor, product, and a running number (hid_add_device)
_DISK = re.compile(r"(sd|vd|xvd)[a-z]+\d*")
_LINKS = re.compile(r"/dev/(?:.*/by-[a-z]+/)?")
_MAX_BYTES = 56  # of the 63 that the kubelet's API asks for, "@" and the number of a slot need some


Serials = Counter[tuple[str, str, str]]


def serials(devices: Iterable[sysfs.UsbDevice]) -> Serials:
    """How many USB devices there are of each vendor, product and serial number."""
    return Counter((device.vendor, device.product, device.serial) for device in devices)


def of_hardware(host: Host, directory: str, known: Serials | None) -> str:
    """What the hardware behind a device's sysfs directory is called: its USB serial number or where it is plugged in, and which part of it this is.

    Empty for what has no hardware of its own, such as /dev/fuse. Without ``known``, or where several sticks have one serial number, as cheap ones do,
    only the place counts. Raises SysfsError.
    """
    chain = list(sysfs.parents(directory))
    anchor = next((i for i, above in enumerate(chain) if sysfs.link(host, above, "subsystem") in _ADDRESSED), None)
    if anchor is None:
        return ""
    place = chain[anchor]
    usb = sysfs.link(host, place, "subsystem") == "usb"
    parts = [_usb(host, place, known) if usb else place.rpartition("/")[2]]
    seen = set()
    for below in reversed(chain[:anchor]):
        name = below.rpartition("/")[2]
        # A directory that is no device only says the class (video4linux); a device often has the name of the one it is of, ttyUSB0/tty/ttyUSB0.
        counted = _stem(name) != name and os.path.lexists(host.path(f"{below}/uevent"))
        if name not in seen and (counted or below == directory):
            parts.append(_rank(host, below))
        seen.add(name)
    return "-".join(parts)


def _usb(host: Host, place: str, known: Serials | None) -> str:
    """A USB device, and which of its interfaces if ``place`` is one (``1-2:1.0``)."""
    name = place.rpartition("/")[2]
    device, colon, interface = name.partition(":")
    directory = place.rpartition("/")[0] if colon else place
    values = [sysfs.read(host, f"{directory}/{attr}") or "" for attr in ("idVendor", "idProduct", "serial")]
    vendor, product, serial = values[0].lower(), values[1].lower(), values[2]
    if known is not None and len(set(serial)) > 1 and known[vendor, product, serial] < 2:
        base = f"usb-{vendor}-{product}-{serial}"
    else:
        # The number of a bus (usb1, and the 1 of 1-2) depends on which controller was found first; its address and the ports do not.
        bus = next((above for above in sysfs.parents(directory) if re.fullmatch(r"usb\d+", above.rpartition("/")[2])), "")
        controller = bus.split("/")[-2] if bus else ""
        base = f"{controller}-{_rank(host, bus) if bus else ''}-{device.partition('-')[2] or 'root'}"
    return base + colon + interface


def _rank(host: Host, directory: str) -> str:
    """A name with its numbers replaced by the place among its siblings, which the kernel finds in the same order each time."""
    above, _, name = directory.rpartition("/")
    stem = _stem(name)
    if stem == name:
        return name
    siblings = [other for other in sysfs.entries(host, above) if _stem(other) == stem]
    if name not in siblings:
        raise sysfs.SysfsError(directory, "it went away")
    return f"{stem.rstrip('.:')}.{siblings.index(name)}".lstrip(".")


def _stem(name: str) -> str:
    """A name without what the kernel counts up."""
    special = _HID.fullmatch(name) or _DISK.fullmatch(name)
    return special[1] if special else re.sub(r"\d+", "", name)


def of_path(path: str) -> str:
    """A path without what all have in common: ``/dev/`` and the directories of links that name hardware (``/dev/serial/by-id/``)."""
    return _LINKS.sub("", path, count=1).lstrip("/")


def slug(name: str, identity: str) -> str:
    """The id of a device of the resource ``name``: letters, digits and ``._:+-``; with a hash of the identity where some of it had to go."""
    clean = re.sub("::+", ":", re.sub(r"[^A-Za-z0-9._:+-]+", "-", identity)).strip("-")
    text = name if clean == name else f"{name}-{clean}"
    # Two slashes of a path, or two serial numbers that differ in a strange character only, must not become one.
    if clean == identity.replace("/", "-") and len(text) <= _MAX_BYTES:
        return text
    return f"{text[: _MAX_BYTES - 9]}-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
