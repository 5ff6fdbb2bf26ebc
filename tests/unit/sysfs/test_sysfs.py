# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import Host, Skipped, sysfs
from tests.unit.sysfs.tree import XHCI, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class TestRead:
    def test_gives_the_text_without_the_newline(self, tree: Tree) -> None:
        assert sysfs.read(tree.host, tree.file("/sys/a", " online \n")) == " online"

    @pytest.mark.parametrize("path", ["/sys/nothing", "/sys/a/below-a-file", "/sys/directory"])
    def test_what_is_no_file_is_none(self, tree: Tree, path: str) -> None:
        tree.file("/sys/a")
        tree.file("/sys/directory/x")
        assert sysfs.read(tree.host, path) is None

    def test_stops_at_a_page(self, tree: Tree) -> None:
        text = sysfs.read(tree.host, tree.file("/sys/long", "x" * 10_000))
        assert text == "x" * 4096

    def test_bytes_that_are_no_text_are_replaced(self, tree: Tree) -> None:
        tree.file("/sys/raw")
        tree.at("/sys/raw").write_bytes(b"ok\xff\n\0")
        assert sysfs.read(tree.host, "/sys/raw") == "ok\ufffd"

    def test_a_fifo_does_not_block(self, tree: Tree) -> None:
        tree.file("/sys/x")
        os.mkfifo(tree.at("/sys/fifo"))
        assert sysfs.read(tree.host, "/sys/fifo") == ""

    def test_what_cannot_be_read_is_an_error_that_names_it(self, tree: Tree) -> None:
        tree.link("/sys/loop", "loop")
        with pytest.raises(sysfs.SysfsError, match=r"^/sys/loop cannot be read: Too many levels of symbolic links$") as caught:
            sysfs.read(tree.host, "/sys/loop")
        assert caught.value.path == "/sys/loop"


class TestRealpath:
    def test_follows_relative_links(self, tree: Tree) -> None:
        tree.link("/dev/serial/by-id/stick", "../../ttyUSB0")
        assert sysfs.realpath(tree.host, "/dev/serial/by-id/stick") == "/dev/ttyUSB0"

    def test_an_absolute_link_stays_below_the_root(self, tree: Tree) -> None:
        tree.at("/dev").mkdir()
        os.symlink("/dev/ttyUSB0", tree.at("/dev/zigbee"))
        assert sysfs.realpath(tree.host, "/dev/zigbee") == "/dev/ttyUSB0"

    def test_does_not_climb_above_the_root(self, tree: Tree) -> None:
        assert sysfs.realpath(tree.host, "/dev/../../../etc/./x") == "/etc/x"

    def test_a_loop_is_an_error(self, tree: Tree) -> None:
        tree.link("/dev/a", "/dev/b")
        tree.link("/dev/b", "/dev/a")
        with pytest.raises(sysfs.SysfsError, match=r"^/dev/a cannot be read: Too many levels of symbolic links$"):
            sysfs.realpath(tree.host, "/dev/a")

    @given(st.lists(st.sampled_from(["a", "b", "c", "..", ".", ""]), min_size=1, max_size=8))
    def test_agrees_with_the_system_on_the_real_root(self, tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
        base = tmp_path_factory.getbasetemp() / "agree"
        if not base.exists():
            (base / "a" / "b").mkdir(parents=True)
            (base / "c").symlink_to("a/b")
            (base / "a" / "a").symlink_to(base / "c")
        path = f"{base}/{'/'.join(parts)}"
        assert sysfs.realpath(Host(), path) == os.path.realpath(path)


class TestDevices:
    def test_a_real_device_file_has_its_number_and_directory(self) -> None:
        assert sysfs.device_number(Host(), "/dev/null") == sysfs.DeviceNumber("char", 1, 3)
        if os.path.exists("/sys/dev/char/1:3"):
            assert sysfs.device_dir(Host(), "/dev/null") == "/sys/devices/virtual/mem/null"

    def test_a_plain_file_stands_for_a_device_below_another_root_only(self, tree: Tree) -> None:
        tree.file("/dev/sda", "b 8:0\n")
        assert sysfs.device_number(tree.host, "/dev/sda") == sysfs.DeviceNumber("block", 8, 0)
        assert sysfs.device_number(Host(), str(tree.at("/dev/sda"))) is None

    @pytest.mark.parametrize("path", ["/dev/absent", "/dev/empty", "/dev/directory"])
    def test_what_is_no_device_file_has_no_number_and_no_directory(self, tree: Tree, path: str) -> None:
        tree.file("/dev/empty")
        tree.file("/dev/directory/x")
        assert sysfs.device_number(tree.host, path) is None
        assert sysfs.device_dir(tree.host, path) is None
        assert sysfs.numa_node(tree.host, path) is None

    def test_the_directory_is_found_by_number_through_a_link(self, tree: Tree) -> None:
        directory = tree.device("/sys/devices/virtual/misc/fuse")
        tree.node("/dev/fuse", directory)
        tree.link("/dev/also", "fuse")
        assert sysfs.device_dir(tree.host, "/dev/also") == directory

    def test_a_number_without_hardware_has_no_directory(self, tree: Tree) -> None:
        assert sysfs.device_dir(tree.host, tree.file("/dev/old", "c 99:1")) is None


class TestAttributes:
    def test_the_nearest_one_above_counts(self, tree: Tree) -> None:
        usb = tree.usb("2", "0403", "6001", "A50285BI")
        tree.tty_usb("ttyUSB0", usb)
        directory = sysfs.device_dir(tree.host, "/dev/ttyUSB0")
        assert directory == f"{usb}/1-2:1.0/ttyUSB0/tty/ttyUSB0"
        found = {
            name: sysfs.attribute(tree.host, directory, name) for name in ("idVendor", "serial", "vendor", "driver", "subsystem", "device", "nothing")
        }
        assert found == {
            "idVendor": "0403",
            "serial": "A50285BI",
            "vendor": "0x8086",
            "driver": "ftdi_sio",
            "subsystem": "tty",
            "device": "0xa36d",  # the controller's; the tty's own "device" is a link to what is above it
            "nothing": None,
        }

    def test_what_lies_outside_of_the_devices_is_not_looked_at(self, tree: Tree) -> None:
        tree.file("/sys/secret", "x")
        tree.file("/sys/devices/secret", "x")
        assert sysfs.attribute(tree.host, tree.device("/sys/devices/virtual/misc/a"), "secret") is None
        assert list(sysfs.parents("/etc/passwd")) == []


class TestNuma:
    @pytest.mark.parametrize(("own", "above", "node"), [("1", "0", 1), ("-1", "0", 0), ("-1", "-1", None), ("", "", None), ("x", "0", 0)])
    def test_the_nearest_that_is_known(self, tree: Tree, own: str, above: str, node: int | None) -> None:
        bridge = tree.device("/sys/devices/pci0000:3a/0000:3a:00.0", "pci", numa_node=above)
        card = tree.device(f"{bridge}/0000:3b:00.0", "pci", numa_node=own)
        assert sysfs.numa_node(tree.host, tree.node("/dev/card", tree.device(f"{card}/misc/card"))) == node


class TestUsb:
    def test_lists_devices_and_no_interfaces_by_port(self, tree: Tree) -> None:
        tree.usb("10", "0BDA", "2838", "00000001", number=12)
        tree.usb("2", "0403", "6001", number=4)
        sticks = [one for one in sysfs.usb_devices(tree.host) if isinstance(one, sysfs.UsbDevice) and not one.name.startswith("usb")]
        assert [(s.name, s.vendor, s.product, s.serial, s.node) for s in sticks] == [
            ("1-2", "0403", "6001", "", "/dev/bus/usb/001/004"),
            ("1-10", "0bda", "2838", "00000001", "/dev/bus/usb/001/012"),
        ]
        assert sticks[0].directory == f"{XHCI}/usb1/1-2"

    def test_one_that_cannot_be_read_leaves_the_others(self, tree: Tree) -> None:
        broken = tree.usb("1", "0403", "6001", number=3)
        tree.usb("2", "0403", "6001", number=4)
        tree.remove(f"{broken}/idVendor")
        tree.link(f"{broken}/idVendor", "idVendor")
        odd = tree.usb("3", "0403", "6001", number=5)
        tree.file(f"{odd}/devnum", "five")
        found = [one for one in sysfs.usb_devices(tree.host) if not (isinstance(one, sysfs.UsbDevice) and one.name.startswith("usb"))]
        assert [one.name for one in found if isinstance(one, sysfs.UsbDevice)] == ["1-2"]
        assert [one for one in found if isinstance(one, Skipped)] == [
            Skipped("USB device 1-1", f"{broken}/idVendor cannot be read: Too many levels of symbolic links"),
            Skipped("USB device 1-3", f"busnum '1' and devnum 'five' in {odd} must be numbers"),
        ]

    def test_a_machine_without_usb_has_none(self, tree: Tree) -> None:
        assert list(sysfs.usb_devices(tree.host)) == []


def test_names_are_ordered_by_their_numbers(tree: Tree) -> None:
    for name in ("1-10", "1-2", "usb1", "1-2.3"):
        tree.file(f"/sys/x/{name}")
    assert sysfs.entries(tree.host, "/sys/x") == ["1-2", "1-2.3", "1-10", "usb1"]
    assert sysfs.entries(tree.host, "/sys/none") == []
