# SPDX-License-Identifier: Apache-2.0
"""Sysfs, read in batches: what the probes look at is a picture of it, so that they are functions of values."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct, field

from deviceplugin import Host, sysfs
from deviceplugin.plugins.fpga.hardware import UUID
from deviceplugin.sysfs import SysfsError

_BUSY = os.strerror(errno.EBUSY)
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]{1,16}|[0-9]{1,20}")
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Source(Protocol):
    """Where sysfs is read: ``deviceplugin.sysfs``, or a test's."""

    def read_many(self, host: Host, paths: Sequence[str], /) -> list[str | SysfsError | None]:
        """The text of each file, None where there is none."""

    def entries_many(self, host: Host, paths: Sequence[str], /) -> list[list[str] | SysfsError]:
        """The names in each directory."""

    def realpath_many(self, host: Host, paths: Sequence[str], /) -> list[str | SysfsError]:
        """Where each path leads."""


class Unreadable(Exception):
    """An attribute is there and makes no sense, or cannot be read. The text says which and why."""


class Busy(Unreadable):
    """The driver says EBUSY: the port is in reset or being programmed."""


class Snapshot(Struct):
    """A picture of parts of sysfs. What was not asked for is as if it were not there."""

    host: Host
    source: Source = sysfs
    names: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str | SysfsError | None] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    """Of device files, ``238:0``."""
    failed: dict[str, SysfsError] = field(default_factory=dict)
    """Directories, links and device files that could not be looked at."""

    def list(self, directories: Iterable[str]) -> None:
        """Adds what is in some directories; those that are not there are empty."""
        wanted = list(dict.fromkeys(directories))
        for directory, found in zip(wanted, self.source.entries_many(self.host, wanted), strict=True):
            if isinstance(found, SysfsError):
                self.failed[directory] = found
            self.names[directory] = [] if isinstance(found, SysfsError) else found

    def follow(self, paths: Iterable[str]) -> None:
        """Adds where some paths lead."""
        wanted = list(dict.fromkeys(paths))
        for path, found in zip(wanted, self.source.realpath_many(self.host, wanted), strict=True):
            if isinstance(found, SysfsError):
                self.failed[path] = found
            else:
                self.real[path] = found

    def read(self, paths: Iterable[str]) -> None:
        """Adds the text of some files."""
        wanted = list(dict.fromkeys(paths))
        self.texts.update(zip(wanted, self.source.read_many(self.host, wanted), strict=True))

    def devices(self, nodes: Iterable[str]) -> None:
        """Adds the numbers of some device files."""
        for node in nodes:
            try:
                status = os.lstat(self.host.path(node))
                if stat.S_ISCHR(status.st_mode):
                    self.numbers[node] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
                    continue
                number = sysfs.device_number(self.host, node)  # a link, or what stands in for a device file below another root
            except FileNotFoundError:
                continue
            except OSError as error:
                self.failed[node] = SysfsError(node, error.strerror or str(error))
                continue
            except SysfsError as error:
                self.failed[node] = error
                continue
            if number is not None and number.kind == "char":
                self.numbers[node] = str(number)

    def text(self, path: str) -> str | None:
        """The text of a file, None if there is no such file. Raises Unreadable, Busy."""
        found = self.texts.get(path)
        if isinstance(found, SysfsError):
            raise (Busy if found.reason == _BUSY else Unreadable)(str(found))
        return found

    def number(self, path: str) -> int | None:
        """The value of a register, ``0x...`` or decimal; None if there is no such file. Raises Unreadable, Busy."""
        text = self.text(path)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            raise Unreadable(f"{path} is {text[:40]!r}, not a number")
        return int(text, 16 if text[1:2] in ("x", "X") else 10)

    def counter(self, path: str, total: str) -> int | None:
        """The total that an AER counter file ends with (drivers/pci/pcie/aer.c); None without such a file. Raises Unreadable."""
        text = self.text(path)
        if text is None:
            return None
        name, _, value = text.rpartition("\n")[2].rpartition(" ")
        if name != total or not value.isdecimal() or len(value) > 20:
            raise Unreadable(f"{path} ends in {text[-40:]!r}, not in {total} and a number")
        return int(value)


class Reading(Struct):
    """Reads the attributes of one thing and keeps what went wrong on the way, so that one bad file costs that file."""

    snapshot: Snapshot
    unread: list[str] = field(default_factory=list)
    busy: bool = False

    def text(self, path: str) -> str:
        """The text of an attribute that need not be there; empty if it is not, or cannot be read."""
        try:
            return self.snapshot.text(path) or ""
        except Busy:
            self.busy = True
        except Unreadable as error:
            self.unread.append(str(error))
        return ""

    def uuid(self, path: str) -> str:
        """An id of 32 hexadecimal digits, empty if it cannot be had: that is a reason to know nothing, except while the port is busy."""
        try:
            text = self.snapshot.text(path)
        except Busy:
            self.busy = True
            return ""
        except Unreadable as error:
            self.unread.append(str(error))
            return ""
        if text is not None and UUID.fullmatch(text.lower()):
            return text.lower()
        self.unread.append(f"there is no {path}" if text is None else f"{path} is {text[:40]!r}, not 32 hexadecimal digits")
        return ""

    def registers(self, directory: str, names: Iterable[str]) -> dict[str, int]:
        """The registers of a directory that are there. A driver shows only those that the card has."""
        found = {}
        for name in names:
            try:
                value = self.snapshot.number(f"{directory}/{name}")
            except Busy:
                self.busy = True
                continue
            except Unreadable as error:
                self.unread.append(str(error))
                continue
            if value is not None:
                found[name] = value
        return found

    def counter(self, path: str, total: str) -> int | None:
        """A counter, None if there is none or it cannot be read."""
        try:
            return self.snapshot.counter(path, total)
        except Unreadable as error:
            self.unread.append(str(error))
            return None

    def node(self, path: str, number: str) -> str:
        """What is wrong with a device file, which must have the number that the driver tells; empty if nothing is."""
        if path in self.snapshot.failed:
            return f"node: {self.snapshot.failed[path]}"
        found = self.snapshot.numbers.get(path)
        if found is None:
            return f"node: there is no device file {path}"
        return "" if found == number else f"node: {path} is the device {found}, and the driver's is {number or 'not told'}"

    def numa(self, *directories: str) -> int | None:
        """The NUMA node that the first of these devices which knows tells; the kernel's -1 is not one."""
        for directory in directories:
            text = self.snapshot.texts.get(f"{directory}/numa_node")
            if isinstance(text, str) and text.isdecimal() and len(text) < 4:
                return int(text)
        return None


def pci_directory(directory: str) -> str:
    """The PCI function that a device is behind, as its directory in sysfs; empty if there is none."""
    while directory.startswith("/sys/devices/"):
        if ADDRESS.fullmatch(os.path.basename(directory)):
            return directory
        directory = os.path.dirname(directory)
    return ""
