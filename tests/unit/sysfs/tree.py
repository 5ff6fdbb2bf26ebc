# SPDX-License-Identifier: Apache-2.0
"""A machine made of plain files below a temporary root, with sysfs laid out as the kernel does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deviceplugin import Host

XHCI = "/sys/devices/pci0000:00/0000:00:14.0"


class Tree:
    """Files, links and devices below ``root``. Paths are the host's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Host(str(root))
        self._minor = 0

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def file(self, path: str, text: str = "") -> str:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text)
        return path

    def link(self, path: str, target: str) -> str:
        """A symbolic link; an absolute target is made relative, as the kernel and udev write them."""
        if target.startswith("/"):
            target = os.path.relpath(target, os.path.dirname(path))
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).symlink_to(target)
        return path

    def remove(self, path: str) -> None:
        if self.at(path).is_dir() and not self.at(path).is_symlink():
            shutil.rmtree(self.at(path))
        else:
            self.at(path).unlink()

    def device(self, directory: str, subsystem: str = "", driver: str = "", **attributes: str) -> str:
        """A device's sysfs directory, with its subsystem (of a bus), driver and attributes."""
        self.file(f"{directory}/uevent")
        if subsystem:
            self.link(f"{directory}/subsystem", f"/sys/bus/{subsystem}")
        if driver:
            self.link(f"{directory}/driver", f"/sys/bus/{subsystem}/drivers/{driver}")
        for name, value in attributes.items():
            self.file(f"{directory}/{name}", value + "\n")
        return directory

    def node(self, path: str, directory: str = "", kind: str = "c") -> str:
        """A device file, and with ``directory`` the way from its number to the hardware."""
        if not directory:
            return self.file(path)
        self._minor += 1
        self.link(f"/sys/dev/{'char' if kind == 'c' else 'block'}/188:{self._minor}", directory)
        self.device(directory) if not self.at(f"{directory}/uevent").exists() else None
        return self.file(path, f"{kind} 188:{self._minor}\n")

    def usb(self, port: str, vendor: str, product: str, serial: str = "", number: int = 4, numa: str = "0", driver: str = "ftdi_sio") -> str:
        """A USB device with one interface at a port (``2``, or ``2.3`` below a hub); its sysfs directory."""
        if not self.at(f"{XHCI}/usb1").exists():
            self.device(XHCI, "pci", "xhci_hcd", vendor="0x8086", device="0xa36d", numa_node=numa)
            self.device(f"{XHCI}/usb1", "usb", "usb", idVendor="1d6b", idProduct="0002", serial="0000:00:14.0", busnum="1", devnum="1")
            self.link("/sys/bus/usb/devices/usb1", f"{XHCI}/usb1")
            self.device(f"{XHCI}/usb2", "usb", "usb", idVendor="1d6b", idProduct="0003", serial="0000:00:14.0", busnum="2", devnum="1")
        directory = f"{XHCI}/usb1/1-{port}"
        more = {"serial": serial} if serial else {}
        self.device(directory, "usb", "usb", idVendor=vendor, idProduct=product, busnum="1", devnum=str(number), **more)
        self.device(f"{directory}/1-{port}:1.0", "usb", driver)
        self.link(f"/sys/bus/usb/devices/1-{port}", directory)
        self.link(f"/sys/bus/usb/devices/1-{port}:1.0", f"{directory}/1-{port}:1.0")
        self.node(f"/dev/bus/usb/001/{number:03}", directory)
        return directory

    def tty_usb(self, name: str, usb: str) -> str:
        """The serial port of a USB adapter, as usbserial makes it: /dev/<name>."""
        port = usb.rpartition("/")[2]
        owner = self.device(f"{usb}/{port}:1.0/{name}", "usb-serial", "ftdi_sio")
        directory = self.device(f"{owner}/tty/{name}")
        self.link(f"{directory}/subsystem", "/sys/class/tty")
        self.link(f"{directory}/device", owner)
        return self.node(f"/dev/{name}", directory)
