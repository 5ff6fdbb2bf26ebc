# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from deviceplugin import Host, sysfs
from deviceplugin.testing import SimulatedHost


@pytest.fixture
def machine(tmp_path: Path) -> SimulatedHost:
    return SimulatedHost(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(str(tmp_path))


def test_a_device_file_leads_to_its_hardware(machine: SimulatedHost, host: Host) -> None:
    device = machine.device(
        "/dev/card0",
        "/sys/devices/pci0000:00/0000:01:00.0/card0",
        numa_node=1,
        attributes={"model": "X1"},
        by_id="/dev/by-id/card-17",
    )
    assert str(sysfs.device_number(host, "/dev/card0")) == device.number == "240:0"
    assert sysfs.device_dir(host, "/dev/by-id/card-17") == device.directory
    assert sysfs.numa_node(host, "/dev/card0") == 1
    assert sysfs.attribute(host, device.directory, "model") == "X1"
    assert sysfs.link(host, device.directory, "subsystem") == "misc"
    assert machine.read(f"{device.directory}/dev") == "240:0\n"


def test_each_device_gets_a_number_of_its_own(machine: SimulatedHost) -> None:
    numbers = [machine.device_file(f"/dev/x{n}").number for n in range(3)]
    assert numbers == ["240:0", "240:1", "240:2"]
    assert machine.device_file("/dev/y", major=10, minor=229).number == "10:229"
    assert machine.device_file("/dev/z", major=10).number == "10:230"


def test_a_usb_device_is_found_by_the_bus_and_comes_back_under_another_number(machine: SimulatedHost, host: Host) -> None:
    stick = machine.usb("1-2.3", "0403", "6001", serial="A7", numa_node=0)
    (seen,) = [usb for usb in sysfs.usb_devices(host) if isinstance(usb, sysfs.UsbDevice) and usb.serial]
    assert (seen.name, seen.vendor, seen.product, seen.serial, seen.node) == ("1-2.3", "0403", "6001", "A7", stick.node)
    assert sysfs.device_dir(host, stick.node) == stick.directory == "/sys/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2.3"
    assert sysfs.numa_node(host, stick.node) == 0
    machine.remove(stick)
    assert not [usb for usb in sysfs.usb_devices(host) if isinstance(usb, sysfs.UsbDevice) and usb.serial]
    assert machine.usb("1-2.3", "0403", "6001", serial="A7").node != stick.node


def test_removing_a_device_takes_everything_of_it_and_nothing_else(machine: SimulatedHost) -> None:
    device = machine.device("/dev/card0", "/sys/devices/card0")
    named = machine.name_by_id(device, "/dev/by-id/card")
    other = machine.device("/dev/card1", "/sys/devices/card1")
    machine.remove(named)
    for path in (device.node, device.directory, "/dev/by-id/card", "/sys/dev/char/240:0", "/sys/class/misc/card0"):
        assert not os.path.lexists(machine.path(path))
    for path in (other.node, other.directory, "/sys/dev/char/240:1", "/sys/class/misc/card1"):
        assert os.path.lexists(machine.path(path))
    machine.remove(named)  # once more does no harm


def test_attributes_change_and_links_move(machine: SimulatedHost) -> None:
    machine.write("/sys/devices/card0/state", "ok\n")
    machine.write("/sys/devices/card0/state", "failed\n")
    assert machine.read("/sys/devices/card0/state") == "failed\n"
    assert os.listdir(machine.path("/sys/devices/card0")) == ["state"]
    machine.link("/dev/current", "/dev/a")
    machine.link("/dev/current", "/dev/b")
    assert os.readlink(machine.path("/dev/current")) == "b"


def test_a_fifo_is_neither_device_nor_file(machine: SimulatedHost, host: Host) -> None:
    machine.fifo("/dev/pipe")
    assert stat.S_ISFIFO(os.stat(machine.path("/dev/pipe")).st_mode)
    assert sysfs.device_number(host, "/dev/pipe") is None


def test_block_devices_are_told_from_character_devices(machine: SimulatedHost, host: Host) -> None:
    machine.device("/dev/disk", "/sys/devices/disk", kind="b", major=8, minor=16, subsystem="class/block")
    number = sysfs.device_number(host, "/dev/disk")
    assert number == sysfs.DeviceNumber("block", 8, 16)
    assert sysfs.device_dir(host, "/dev/disk") == "/sys/devices/disk"


def test_real_device_files_are_made_where_that_is_allowed(tmp_path: Path) -> None:
    machine = SimulatedHost(tmp_path, mknod=True)
    try:
        machine.device_file("/dev/null", major=1, minor=3)
    except PermissionError:
        pytest.skip("this process may not make device files")
    assert os.stat(machine.path("/dev/null")).st_rdev == os.makedev(1, 3)
