# SPDX-License-Identifier: Apache-2.0
"""What of the host fits an entry of the configuration."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import re
import stat
from functools import cached_property

from msgspec import Struct, field

from deviceplugin import DeviceNode, Host, Mount, Skipped, sysfs
from deviceplugin.plugins.generic import identity
from deviceplugin.plugins.generic.config import Entry, Path, Usb

log = logging.getLogger(__name__)

_NOT_DEVICES = frozenset({"fd", "mqueue", "pts", "shm"})  # below a directory: what a runtime leaves out as well


class Match(Struct, frozen=True):
    """One file (or directory of device files, or USB device) that fits an entry.

    ``files`` are the device files behind it with all links followed; ``directory`` is the hardware's in sysfs, empty where there is none.
    """

    entry: Entry
    path: str
    files: tuple[str, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    identity: str = ""
    directory: str = ""
    serial: str = ""
    numa: int | None = None

    @property
    def container_path(self) -> str:
        return (self.nodes or self.mounts)[0].container_path


class Finder(Struct, dict=True):
    """One look at the host. ``skipped`` gathers what was seen and left out; what is true of the whole host is read once."""

    host: Host
    skipped: list[Skipped] = field(default_factory=list)

    def find(self, entry: Entry, mode: str) -> list[Match]:
        """What fits, in the order of the paths, each file once. One that cannot be looked at is left out, with the reason."""
        candidates = self._usb_candidates(entry) if isinstance(entry, Usb) else self._paths(entry)
        found: dict[tuple[str, ...], Match] = {}
        for path, directory in candidates:
            try:
                match = self._look(entry, path, directory, mode)
            except sysfs.SysfsError as error:
                self.skipped.append(Skipped(path, str(error)))
                continue
            if match is None:
                continue
            first = found.setdefault(match.files or (path,), match)
            if first is not match:
                self.skipped.append(Skipped(path, f"leads to {', '.join(match.files)}, as {first.path} does already"))
        return list(found.values())

    @cached_property
    def usb_devices(self) -> list[sysfs.UsbDevice]:
        try:
            seen = list(sysfs.usb_devices(self.host))
        except sysfs.SysfsError as error:
            seen = [Skipped("USB devices", str(error))]
        self.skipped += [one for one in seen if isinstance(one, Skipped)]
        return [one for one in seen if isinstance(one, sysfs.UsbDevice)]

    @cached_property
    def serials(self) -> identity.Serials:
        return identity.serials(self.usb_devices)

    def _paths(self, entry: Path) -> list[tuple[str, str]]:
        root = "" if self.host.root == "/" else self.host.root.rstrip("/")
        if entry.path:
            return [(path[len(root) :], "") for path in sorted(glob.glob(glob.escape(root) + entry.path))]
        directory, _, expression = entry.regex.rpartition("/")
        try:
            names = sorted(sysfs.entries(self.host, directory))
        except sysfs.SysfsError as error:
            self.skipped.append(Skipped(entry.regex, str(error)))
            return []
        return [(f"{directory}/{name}", "") for name in names if re.fullmatch(expression, name)]

    def _usb_candidates(self, usb: Usb) -> list[tuple[str, str]]:
        wanted = (str(usb.vendor).lower(), str(usb.product).lower())
        fits = [d for d in self.usb_devices if (d.vendor, d.product) == wanted and usb.serial in ("", d.serial)]
        return [(device.node, device.directory) for device in fits]

    def _look(self, entry: Entry, path: str, directory: str, mode: str) -> Match | None:
        if not path.isprintable():  # which an undecodable byte is not either: nothing that is sent to the kubelet could hold it
            self.skipped.append(Skipped(ascii(path), "has a character in its name that cannot be passed on"))
            return None
        target = sysfs.realpath(self.host, path)
        try:
            status = os.stat(self.host.path(target))
        except OSError as error:
            self.skipped.append(Skipped(path, f"cannot be used: {error.strerror}" + (f" ({target})" if target != path else "")))
            return None
        if isinstance(entry, Path) and entry.type == "Mount":
            return Match(entry, path, mounts=(Mount(path, _inside(entry, path), entry.read_only),), identity=identity.of_path(path))
        files = [""]
        if stat.S_ISDIR(status.st_mode):
            files = self._device_files(target)
        elif not self._is_device(status.st_mode):
            self.skipped.append(Skipped(path, "is not a device file; for an ordinary file or directory write type: Mount"))
            return None
        if not files:
            self.skipped.append(Skipped(path, "is a directory without device files; to mount the directory itself write type: Mount"))
            return None
        directory = directory or sysfs.device_dir(self.host, target) or ""
        if isinstance(entry, Path) and not self._fits(entry, path, directory):
            return None
        permissions = "rw" if entry.permissions is None else entry.permissions
        where = _inside(entry, path)
        return Match(
            entry,
            path,
            files=tuple(target + file for file in files),
            nodes=tuple(DeviceNode(path + file, where + file, permissions) for file in files),
            identity=self._identity(path, target, directory, mode),
            directory=directory,
            serial=self._serial(directory),
            numa=self._numa(directory),
        )

    def _serial(self, directory: str) -> str:
        for above in sysfs.parents(directory):
            value = sysfs.read(self.host, f"{above}/serial")
            # A stick without one must not get that of the hub above it: root hubs have the address of their controller there.
            if value or sysfs.read(self.host, f"{above}/idVendor") is not None:
                return value or ""
        return ""

    def _numa(self, directory: str) -> int | None:
        try:
            return sysfs.numa_node_of(self.host, directory)
        except sysfs.SysfsError as error:
            log.debug("a NUMA node is left out: %s", error)
            return None

    def _is_device(self, mode: int) -> bool:
        """Below another root, where tests run, ordinary files and FIFOs stand for device files."""
        return stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or (self.host.root != "/" and (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)))

    def _device_files(self, directory: str, below: str = "") -> list[str]:
        """The device files in a directory and those below, as ``/card0``. A container that is given /dev/snd is given all of them."""
        files: list[str] = []
        for name in sorted(sysfs.entries(self.host, directory + below)):
            try:
                mode = os.lstat(self.host.path(f"{directory}{below}/{name}")).st_mode
            except OSError:  # gone since it was listed
                continue
            if stat.S_ISDIR(mode) and name not in _NOT_DEVICES:
                files += self._device_files(directory, f"{below}/{name}")
            elif self._is_device(mode):
                files.append(f"{below}/{name}")
        return files

    def _fits(self, entry: Path, path: str, directory: str) -> bool:
        for name, wanted in entry.match.items():
            value = sysfs.attribute(self.host, directory, name) if directory else None
            patterns = [str(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
            if value is None or not any(fnmatch.fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns):
                has = "has no attribute of that name" if value is None else f"has {value!r}"
                self.skipped.append(Skipped(path, f"does not match {name}: {' or '.join(patterns)}: it {has}"))
                return False
        return True

    def _identity(self, path: str, target: str, directory: str, mode: str) -> str:
        if mode == "path" or not directory:
            return identity.of_path(path)
        if mode == "hardware" and target != path:
            # A link that udev or the administrator made: its name is chosen to last.
            return identity.of_path(path)
        return identity.of_hardware(self.host, directory, self.serials if mode == "hardware" else None) or identity.of_path(path)


def _inside(entry: Entry, path: str) -> str:
    if entry.mount_path.endswith("/"):
        return entry.mount_path + path.rpartition("/")[2]
    return entry.mount_path or path
