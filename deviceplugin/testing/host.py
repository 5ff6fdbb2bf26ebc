# SPDX-License-Identifier: Apache-2.0
"""A machine made of files below a directory: device files, sysfs and links, to be plugged in and pulled out at will, without root.

A plugin finds it through ``Host(root)``, or however it is told of another root. Device files are regular files that hold their kind and number,
``c 188:0``, as ``deviceplugin.sysfs`` reads them below another root; with ``mknod=True`` they are real ones, for those who may make them.

All of it may change while a plugin runs. Every change to a file is one rename, so that nobody reads half a value, and whoever watches its directory
(``deviceplugin.events``) is told.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from deviceplugin.testing import trees

_USB_CONTROLLER = "/sys/devices/pci0000:00/0000:00:14.0"


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """Something that was plugged in. All paths are the host's. ``directory`` is its place in sysfs, empty if it has none."""

    directory: str = ""
    node: str = ""
    number: str = ""
    links: tuple[str, ...] = ()
    """Everything else that goes when the device goes: links to it by name, id, class and number."""


class SimulatedHost:
    """The machine below ``root``, which is made if need be. Paths are the host's own, absolute: ``/dev/fuse``, ``/sys/class/...``."""

    def __init__(self, root: str | os.PathLike[str], *, mknod: bool = False) -> None:
        self.root = os.path.abspath(root)
        self._mknod = mknod
        self._minors: dict[int, int] = {}
        self._usb_numbers: dict[int, int] = {}
        self._made = itertools.count()

    def path(self, path: str) -> str:
        """Where the host's ``path`` is for this process."""
        return self.root.rstrip("/") + "/" + path.lstrip("/")

    def populate(self, tree: Mapping[str, object] | str | os.PathLike[str]) -> None:
        """Makes what a tree says: a mapping from the host's paths to what is there, or the name of a YAML file that holds one.

        A value is the text of a file, or ``{"link": target}``, ``{"device": "c 188:0"}``, ``{"fifo": True}``, ``{"directory": True}``. What is there
        already is replaced, a directory kept. Nothing is made unless all of the tree is right.

        :raises TreeError: every mistake in it, with its place.
        """
        for path, entry in trees.load(tree).items():
            at = self.path(path)
            is_directory = os.path.isdir(at) and not os.path.islink(at)
            if os.path.lexists(at) and is_directory != isinstance(entry, trees.Directory):
                self.remove(path)
            match entry:
                case trees.Text(text):
                    self.write(path, text)
                case trees.Link(target):
                    self.link(path, target)
                case trees.DeviceFile(kind, major, minor):
                    self.device_file(path, kind=kind, major=major, minor=minor)
                case trees.Fifo():
                    self.fifo(path)
                case trees.Directory():
                    os.makedirs(at, exist_ok=True)

    def write(self, path: str, text: str = "") -> str:
        """Writes a file, whole at once whether or not it is there already, with the directories above it. Returns the host's path."""

        def make(at: str) -> None:
            with open(at, "w", encoding="utf-8") as file:
                file.write(text)

        return self._place(path, make)

    def read(self, path: str) -> str:
        with open(self.path(path), encoding="utf-8") as file:
            return file.read()

    def link(self, path: str, target: str) -> str:
        """Makes or changes a symbolic link. An absolute target becomes a relative one, as the kernel and udev write them."""
        if target.startswith("/"):
            target = os.path.relpath(target, os.path.dirname(path))
        return self._place(path, lambda at: os.symlink(target, at))

    def fifo(self, path: str) -> str:
        """A FIFO at a path: something that is neither a device nor a file, and blocks whoever opens it carelessly."""
        return self._place(path, os.mkfifo)

    def device_file(self, path: str, *, kind: str = "c", major: int = 240, minor: int | None = None) -> SimulatedDevice:
        """A device file without hardware behind it, such as ``/dev/fuse``. ``kind`` is ``c`` or ``b``; the minor is the next free one unless given.

        :raises PermissionError: real ones were asked for, and this process may not make them.
        """
        if minor is None:
            minor = self._minors.get(major, 0)
        self._minors[major] = max(self._minors.get(major, 0), minor + 1)
        number = f"{major}:{minor}"
        if self._mknod:
            mode = 0o660 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK)
            self._place(path, lambda at: os.mknod(at, mode, os.makedev(major, minor)))
        else:
            self.write(path, f"{kind} {number}\n")
        return SimulatedDevice(node=path, number=number)

    def sysfs_device(
        self,
        directory: str,
        *,
        subsystem: str = "",
        driver: str = "",
        numa_node: int | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> SimulatedDevice:
        """A device's directory below ``/sys/devices``. ``subsystem`` is a bus (``pci``) or a class (``class/misc``)."""
        home = subsystem if "/" in subsystem else f"bus/{subsystem}"
        links = []
        self.write(f"{directory}/uevent")
        if subsystem:
            self.link(f"{directory}/subsystem", f"/sys/{home}")
            place = home if home.startswith("class/") else f"{home}/devices"
            links.append(self.link(f"/sys/{place}/{os.path.basename(directory)}", directory))
        if driver:
            self.link(f"{directory}/driver", f"/sys/{home}/drivers/{driver}")
        if numa_node is not None:
            self.write(f"{directory}/numa_node", f"{numa_node}\n")
        for name, value in (attributes or {}).items():
            self.write(f"{directory}/{name}", value + "\n")
        return SimulatedDevice(directory=directory, links=tuple(links))

    def device(
        self,
        node: str,
        directory: str,
        *,
        kind: str = "c",
        major: int = 240,
        minor: int | None = None,
        subsystem: str = "class/misc",
        driver: str = "",
        numa_node: int | None = None,
        attributes: Mapping[str, str] | None = None,
        by_id: str = "",
    ) -> SimulatedDevice:
        """A device file with hardware behind it: ``/sys/dev/char/<number>`` leads to ``directory``, and ``by_id`` to the file, if given."""
        hardware = self.sysfs_device(directory, subsystem=subsystem, driver=driver, numa_node=numa_node, attributes=attributes)
        file = self.device_file(node, kind=kind, major=major, minor=minor)
        self.write(f"{directory}/dev", file.number + "\n")
        links = [*hardware.links, self.link(f"/sys/dev/{'char' if kind == 'c' else 'block'}/{file.number}", directory)]
        if by_id:
            links.append(self.link(by_id, node))
        return SimulatedDevice(directory, node, file.number, tuple(links))

    def usb(
        self,
        port: str,
        vendor: str,
        product: str,
        *,
        serial: str = "",
        driver: str = "usb",
        numa_node: int = -1,
        attributes: Mapping[str, str] | None = None,
    ) -> SimulatedDevice:
        """A USB device at ``port``, ``1-2`` or ``1-2.3`` below a hub, with its file in ``/dev/bus/usb``. ``vendor`` and ``product`` are hexadecimal.

        Each time one is plugged in it gets the bus's next number, as from the kernel: a device that comes back has another file.
        """
        bus = int(port.partition("-")[0])
        root_hub = f"{_USB_CONTROLLER}/usb{bus}"
        if not os.path.exists(self.path(root_hub)):
            self.sysfs_device(_USB_CONTROLLER, subsystem="pci", driver="xhci_hcd", numa_node=numa_node)
            hub = {"idVendor": "1d6b", "idProduct": "0002", "busnum": str(bus), "devnum": "1"}
            self.sysfs_device(root_hub, subsystem="usb", driver="usb", attributes=hub)
            self._usb_numbers[bus] = 1
        number = self._usb_numbers[bus] = self._usb_numbers[bus] + 1
        facts = {"idVendor": vendor, "idProduct": product, "busnum": str(bus), "devnum": str(number)} | ({"serial": serial} if serial else {})
        steps = port.split(".")
        above = "".join(f"/{'.'.join(steps[:upto])}" for upto in range(1, len(steps) + 1))
        return self.device(
            f"/dev/bus/usb/{bus:03}/{number:03}",
            root_hub + above,
            major=189,
            minor=(bus - 1) * 128 + number - 1,  # as the kernel numbers them (drivers/usb/core/usb.c)
            subsystem="usb",
            driver=driver,
            attributes={**facts, **(attributes or {})},
        )

    def name_by_id(self, device: SimulatedDevice, path: str) -> SimulatedDevice:
        """Gives the device a link such as ``/dev/serial/by-id/usb-...``, which goes with it when it is removed."""
        return replace(device, links=(*device.links, self.link(path, device.node)))

    def rename(self, path: str, to: str) -> str:
        """Moves a file, a link or a directory with all that is in it, at once; a file that is at ``to`` is replaced. Returns ``to``."""
        os.makedirs(os.path.dirname(self.path(to)), exist_ok=True)
        os.rename(self.path(path), self.path(to))
        return to

    def remove(self, what: SimulatedDevice | str) -> None:
        """Pulls a device out: its file, its links and its place in sysfs go, and with that everything below it in sysfs. Once more does no harm.

        Of a path, the file, the link or the directory with all that is in it.

        :raises FileNotFoundError: nothing is at that path.
        """
        if isinstance(what, str):
            at = self.path(what)
            if os.path.isdir(at) and not os.path.islink(at):
                shutil.rmtree(at)
            else:
                os.unlink(at)
            return
        for path in (what.node, *what.links):
            if path and os.path.lexists(self.path(path)):
                os.unlink(self.path(path))
        if what.directory:
            shutil.rmtree(self.path(what.directory), ignore_errors=True)

    def _place(self, path: str, make: Callable[[str], None]) -> str:
        """Puts what ``make`` makes at a path, in place of what is there, with the directories above it. Returns the path."""
        at = self.path(path)
        os.makedirs(os.path.dirname(at), exist_ok=True)
        # Not beside it: whoever lists that directory would see a file that no machine has.
        new = f"{self.root}/.{os.getpid()}-{next(self._made)}.new"
        make(new)
        try:
            os.rename(new, at)
        except OSError:
            os.unlink(new)
            raise
        return path
