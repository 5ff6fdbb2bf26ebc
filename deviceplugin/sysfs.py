# SPDX-License-Identifier: Apache-2.0
"""What the kernel says in sysfs about the hardware behind a device file.

Every function takes the :class:`~deviceplugin.Host` and the host's own paths, ``/dev/...`` and ``/sys/...``, and answers with such paths, so that a
test can put a tree of plain files below another root. There, a regular file that holds ``c 188:0`` (or ``b 8:0``) stands for a device file of that
number.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import TypeVar

from msgspec import Struct

from deviceplugin._native import sysfs as native
from deviceplugin.model import Host, Skipped

T = TypeVar("T")

MAX_BYTES = 4096
"""At most so much of a file is read. The kernel gives an attribute one page (sysfs_kf_seq_show, fs/sysfs/file.c), and a page is seldom larger."""

_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_FILE = _NO_DIRECTORY | {errno.EISDIR}
_TOP = "/sys/devices"
_STAND_IN = re.compile(r"([cb]) (\d+):(\d+)")


class SysfsError(Exception):
    """Something is there and cannot be read. ``path`` is the host's; the text names it and says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.path = path
        self.reason = reason


def read(host: Host, path: str) -> str | None:
    """The text of a small file, such as a sysfs attribute, without the white space at its end; None if there is no such file.

    A directory is no such file. Reads at most :data:`MAX_BYTES`; bytes that are not UTF-8 become U+FFFD. Raises SysfsError.
    """
    return _or_raise(read_many(host, (path,))[0])


def read_many(host: Host, paths: Sequence[str]) -> list[str | SysfsError | None]:
    """What :func:`read` says of each path, in their order; an error is returned in its place, not raised.

    They are all read in one call into native code, without the interpreter's lock.
    """
    return [
        found if isinstance(found, str) else None if found in _NO_FILE else _error(path, found)
        for path, found in zip(paths, native.read(host.path(""), paths, MAX_BYTES), strict=True)
    ]


def entries(host: Host, path: str) -> list[str]:
    """The names in a directory, in order, with numbers by value (``1-2`` before ``1-10``); none if there is no such directory. Raises SysfsError."""
    return _or_raise(entries_many(host, (path,))[0])


def entries_many(host: Host, paths: Sequence[str]) -> list[list[str] | SysfsError]:
    """What :func:`entries` says of each directory, in their order; an error is returned in its place, not raised."""
    return [
        found if isinstance(found, list) else [] if found in _NO_DIRECTORY else _error(path, found)
        for path, found in zip(paths, native.names(host.path(""), paths), strict=True)
    ]


def realpath(host: Host, path: str) -> str:
    """Where the host's ``path`` leads once every symbolic link is followed, also an absolute one below another root. The end need not exist.

    Raises SysfsError for a loop of links, and where the path becomes longer than the kernel allows.
    """
    return _or_raise(realpath_many(host, (path,))[0])


def realpath_many(host: Host, paths: Sequence[str]) -> list[str | SysfsError]:
    """What :func:`realpath` says of each path, in their order; an error is returned in its place, not raised."""
    return [found if isinstance(found, str) else _error(path, found) for path, found in zip(paths, native.resolve(host.path(""), paths), strict=True)]


class DeviceNumber(Struct, frozen=True):
    """What the kernel knows a device file by. ``kind`` is ``char`` or ``block``."""

    kind: str
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def device_number(host: Host, node: str) -> DeviceNumber | None:
    """The number of the device file at the host's path ``node``, links followed; None if it is not there or no device file. Raises SysfsError."""
    path = realpath(host, node)
    try:
        status = os.stat(host.path(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SysfsError(node, error.strerror or str(error)) from error
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return DeviceNumber("char" if stat.S_ISCHR(status.st_mode) else "block", os.major(status.st_rdev), os.minor(status.st_rdev))
    if host.root != "/" and stat.S_ISREG(status.st_mode):
        found = _STAND_IN.fullmatch(read(host, path) or "")
        if found:
            return DeviceNumber("char" if found[1] == "c" else "block", int(found[2]), int(found[3]))
    return None


def device_dir(host: Host, node: str) -> str | None:
    """The sysfs directory of the device behind a device file, ``/sys/devices/...``; None if there is none. Raises SysfsError."""
    number = device_number(host, node)
    if number is None:
        return None
    directory = realpath(host, f"/sys/dev/{number.kind}/{number}")
    return directory if directory.startswith(f"{_TOP}/") and os.path.isdir(host.path(directory)) else None


def parents(directory: str) -> Iterator[str]:
    """``directory`` and the directories above it, up to and without ``/sys/devices``."""
    while directory.startswith(f"{_TOP}/"):
        yield directory
        directory = os.path.dirname(directory)


def link(host: Host, directory: str, name: str) -> str | None:
    """The last part of what the link ``name`` in a directory points to, as in ``driver`` or ``subsystem``; None without such a link."""
    try:
        return os.path.basename(os.readlink(host.path(f"{directory}/{name}")))
    except OSError:
        return None


def attribute(host: Host, directory: str, name: str) -> str | None:
    """The value of the attribute ``name`` of a device, or of the nearest device above it that has one; None if none has.

    For ``driver``, ``subsystem`` and other links to directories it is the name of what they point to, except ``device``, which class directories have
    as a link to the device above. Raises SysfsError.
    """
    for above in parents(directory):
        value = read(host, f"{above}/{name}")
        if value is None and name != "device":
            value = link(host, above, name)
        if value is not None:
            return value
    return None


def numa_node(host: Host, node: str) -> int | None:
    """The NUMA node that the hardware behind a device file is attached to; None if that is not known. Raises SysfsError."""
    directory = device_dir(host, node)
    return None if directory is None else numa_node_of(host, directory)


def numa_node_of(host: Host, directory: str) -> int | None:
    """As :func:`numa_node`, for a device's sysfs directory."""
    for above in parents(directory):
        value = read(host, f"{above}/numa_node")
        # -1 is the kernel's NUMA_NO_NODE: the firmware did not say. What is above may know.
        if value is not None and value.isdecimal():
            return int(value)
    return None


class UsbDevice(Struct, frozen=True):
    """One USB device. ``vendor`` and ``product`` are four lower-case hexadecimal digits, ``serial`` may be empty.

    ``name`` says where it is plugged in (``1-2.3``: bus 1, port 2, port 3 of the hub there). ``number`` changes each time it is.
    """

    name: str
    directory: str
    vendor: str
    product: str
    serial: str
    bus: int
    number: int

    @property
    def node(self) -> str:
        """Its device file."""
        return f"/dev/bus/usb/{self.bus:03}/{self.number:03}"


_USB_DEVICES = "/sys/bus/usb/devices"


def usb_devices(host: Host) -> Iterator[UsbDevice | Skipped]:
    """The USB devices of the host, hubs too, by where they are plugged in. One that cannot be read is Skipped, the others stay. Raises SysfsError."""
    for name in entries(host, _USB_DEVICES):
        if ":" in name:  # an interface of a device
            continue
        try:
            directory = realpath(host, f"{_USB_DEVICES}/{name}")
            values = [read(host, f"{directory}/{attr}") for attr in ("idVendor", "idProduct", "busnum", "devnum")]
            serial = read(host, f"{directory}/serial") or ""
        except SysfsError as error:
            yield Skipped(f"USB device {name}", str(error))
            continue
        vendor, product, bus, number = (value or "" for value in values)
        if not vendor:  # unplugged while we looked
            continue
        if not (bus.isdecimal() and number.isdecimal()):
            yield Skipped(f"USB device {name}", f"busnum {bus!r} and devnum {number!r} in {directory} must be numbers")
            continue
        yield UsbDevice(name, directory, vendor.lower(), product.lower(), serial, int(bus), int(number))


def _error(path: str, number: int) -> SysfsError:
    return SysfsError(path, os.strerror(number))


def _or_raise(found: T | SysfsError) -> T:
    if isinstance(found, SysfsError):
        raise found
    return found
