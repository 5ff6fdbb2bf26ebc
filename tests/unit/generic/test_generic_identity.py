# SPDX-License-Identifier: Apache-2.0
"""An id follows the hardware."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin import Skipped
from deviceplugin.checks import id_error
from deviceplugin.plugins.generic import identity
from tests.unit.generic.helpers import devices, discover
from tests.unit.sysfs.tree import XHCI, Tree

SERIAL = "devices: [{name: serial, groups: [{paths: [{path: '/dev/ttyUSB*'}]}]}]"
PORT = "devices: [{name: serial, groups: [{identity: port, paths: [{path: '/dev/ttyUSB*'}]}]}]"


def ids(tree: Tree, text: str) -> dict[str, str]:
    """The id of each device file."""
    return {device.nodes[0].path: device.id for device in devices(tree, text)}


def plugged(root: Path, sticks: list[tuple[str, str]]) -> Tree:
    """A machine into which adapters of these (port, serial number) were plugged one after the other: ttyUSB0, ttyUSB1, ..."""
    tree = Tree(root)
    for n, (port, serial) in enumerate(sticks):
        tree.tty_usb(f"ttyUSB{n}", tree.usb(port, "0403", "6001", serial, number=n + 2))
    return tree


@settings(max_examples=20)
@given(st.permutations(["A50285BI", "FT9KDW1R", "DN03XV22"]), st.permutations(["1", "2", "4"]))
def test_serial_numbers_name_adapters_in_whatever_order_and_port(
    tmp_path_factory: pytest.TempPathFactory, serials: list[str], ports: list[str]
) -> None:
    tree = plugged(tmp_path_factory.mktemp("machine"), list(zip(ports, serials, strict=True)))
    assert ids(tree, SERIAL) == {f"/dev/ttyUSB{n}": f"serial-usb-0403-6001-{serial}:1.0-ttyUSB.0" for n, serial in enumerate(serials)}


@settings(max_examples=20)
@given(st.permutations(["1", "2", "4"]))
def test_ports_name_adapters_without_serial_numbers_in_whatever_order(tmp_path_factory: pytest.TempPathFactory, ports: list[str]) -> None:
    tree = plugged(tmp_path_factory.mktemp("machine"), [(port, "") for port in ports])
    assert ids(tree, SERIAL) == {f"/dev/ttyUSB{n}": f"serial-0000:00:14.0-usb.0-{port}:1.0-ttyUSB.0" for n, port in enumerate(ports)}


def test_two_swap_names_after_a_replug_and_keep_their_ids(tmp_path: Path) -> None:
    before = ids(plugged(tmp_path / "before", [("1", "A50285BI"), ("2", "FT9KDW1R")]), SERIAL)
    after = ids(plugged(tmp_path / "after", [("2", "FT9KDW1R"), ("1", "A50285BI")]), SERIAL)
    assert (after["/dev/ttyUSB0"], after["/dev/ttyUSB1"]) == (before["/dev/ttyUSB1"], before["/dev/ttyUSB0"])


def test_the_port_counts_where_the_configuration_says_so(tmp_path: Path) -> None:
    tree = plugged(tmp_path, [("1", "A50285BI")])
    assert ids(tree, PORT) == {"/dev/ttyUSB0": "serial-0000:00:14.0-usb.0-1:1.0-ttyUSB.0"}


def test_the_path_counts_where_the_configuration_says_so(tmp_path: Path) -> None:
    tree = plugged(tmp_path, [("1", "A50285BI")])
    assert ids(tree, PORT.replace("port", "path")) == {"/dev/ttyUSB0": "serial-ttyUSB0"}


@pytest.mark.parametrize("serial", ["0", "00000000"])
def test_a_serial_number_of_one_digit_repeated_is_none(tmp_path: Path, serial: str) -> None:
    assert ids(plugged(tmp_path, [("2", serial)]), SERIAL) == {"/dev/ttyUSB0": "serial-0000:00:14.0-usb.0-2:1.0-ttyUSB.0"}


def test_twins_go_by_their_ports(tmp_path: Path) -> None:
    tree = plugged(tmp_path, [("2", "00000001"), ("1", "00000001")])
    assert sorted(ids(tree, SERIAL).values()) == [f"serial-0000:00:14.0-usb.0-{port}:1.0-ttyUSB.0" for port in "12"]


def test_the_ports_of_one_adapter_are_told_apart(tree: Tree) -> None:
    stick = tree.usb("2", "0403", "6011", "FT4232")
    for name in ("ttyUSB9", "ttyUSB10"):
        tree.tty_usb(name, stick)
    found = ids(tree, SERIAL)
    assert found["/dev/ttyUSB9"].endswith("-FT4232:1.0-ttyUSB.0")
    assert found["/dev/ttyUSB10"].endswith("-FT4232:1.0-ttyUSB.1")


def test_a_link_that_names_the_hardware_is_the_identity_and_what_the_container_is_given(tree: Tree) -> None:
    tree.tty_usb("ttyUSB3", tree.usb("2", "0403", "6001"))
    tree.link("/dev/serial/by-id/usb-Silicon_Labs_0001-if00", "/dev/ttyUSB3")
    (device,) = devices(tree, "devices: [{name: zigbee, groups: [{paths: [{path: /dev/serial/by-id/*, mountPath: /dev/zigbee}]}]}]")
    assert device.id == "zigbee-usb-Silicon_Labs_0001-if00"
    assert (device.nodes[0].path, device.nodes[0].container_path) == ("/dev/serial/by-id/usb-Silicon_Labs_0001-if00", "/dev/zigbee")
    assert device.numa_nodes == (0,)


def test_two_links_to_one_file_are_one_device(tree: Tree) -> None:
    tree.node("/dev/sda", "/sys/devices/virtual/block/sda", "b")
    for name in ("ata-disk", "wwn-0x5000"):
        tree.link(f"/dev/disk/by-id/{name}", "/dev/sda")
    found, skipped = discover(tree, "devices: [{name: disk, groups: [{paths: [{path: /dev/disk/by-id/*}]}]}]")
    assert [device.id for device in found] == ["disk-ata-disk"]
    assert skipped == [Skipped("/dev/disk/by-id/wwn-0x5000", "leads to /dev/sda, as /dev/disk/by-id/ata-disk does already")]


def test_a_link_to_nothing_is_told(tree: Tree) -> None:
    tree.link("/dev/serial/by-id/gone", "../../ttyUSB0")
    skipped = discover(tree, "devices: [{name: s, groups: [{paths: [{path: /dev/serial/by-id/*}]}]}]")[1]
    assert Skipped("/dev/serial/by-id/gone", "cannot be used: No such file or directory (/dev/ttyUSB0)") in skipped


def test_a_pci_device_goes_by_its_address(tree: Tree) -> None:
    bridge = tree.device("/sys/devices/pci0000:3a/0000:3a:00.0", "pci")
    card = tree.device(f"{bridge}/0000:3b:00.0", "pci", numa_node="1")
    for name in ("card1", "renderD129"):
        tree.node(f"/dev/dri/{name}", tree.device(f"{card}/drm/{name}"))
    (device,) = devices(tree, "devices: [{name: gpu, groups: [{paths: [{path: /dev/dri/renderD*}]}]}]")
    assert device.id == "gpu-0000:3b:00.0-renderD.0"
    assert device.numa_nodes == (1,)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (["0003:046D:C077.000A", "hidraw", "hidraw7"], "0003:046D:C077.0-hidraw.0"),
        (["host9", "target9:0:0", "9:0:0:0", "block", "sdq", "sdq1"], "host.0-target.0-0-sd.0-sd.0"),
        (["video4linux", "video4"], "video.0"),
    ],
)
def test_running_numbers_below_the_hardware_do_not_count(tree: Tree, chain: list[str], expected: str) -> None:
    interface = f"{tree.usb('2', '046d', 'c077', 'S1')}/1-2:1.0"
    directory = interface
    for name in chain:
        directory = f"{directory}/{name}"
        if name not in ("hidraw", "block", "video4linux"):  # the classes
            tree.device(directory)
    known = identity.serials([])
    assert identity.of_hardware(tree.host, directory, known) == f"usb-046d-c077-S1:1.0-{expected}"


def test_what_is_not_hardware_goes_by_its_path(tree: Tree) -> None:
    for name in ("net/tun", "kvm"):
        tree.node(f"/dev/{name}", f"/sys/devices/virtual/misc/{name.rpartition('/')[2]}")
    found = devices(tree, "devices: [{name: kvm, groups: [{paths: [{path: /dev/kvm}]}]}, {name: tun, groups: [{paths: [{path: /dev/net/tun}]}]}]")
    assert [device.id for device in found] == ["kvm", "tun-net-tun"]


def test_a_platform_device_goes_by_its_name(tree: Tree) -> None:
    owner = tree.device("/sys/devices/platform/soc/3f801000.csi", "platform")
    directory = tree.device(f"{owner}/video4linux/video3")
    assert identity.of_hardware(tree.host, directory, None) == "3f801000.csi-video.0"


def test_one_whose_identity_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    tree = plugged(tmp_path, [("1", "A50285BI"), ("2", "FT9KDW1R")])
    broken = f"{XHCI}/usb1/1-1"
    tree.remove(f"{broken}/idProduct")
    tree.link(f"{broken}/idProduct", "idProduct")
    found, skipped = discover(tree, SERIAL)
    assert [device.id for device in found] == ["serial-usb-0403-6001-FT9KDW1R:1.0-ttyUSB.0"]
    assert Skipped("/dev/ttyUSB0", f"{broken}/idProduct cannot be read: Too many levels of symbolic links") in skipped


def test_what_stands_beside_a_device_does_not_change_its_id(tree: Tree) -> None:
    for name in ("main0", "side0"):
        tree.node(f"/dev/{name}")
    text = "devices: [{name: pair, groups: [{paths: [{path: /dev/side*, limit: 2}, {path: /dev/main*}]}]}]"
    before = devices(tree, text)[0].id
    tree.remove("/dev/side0")
    tree.node("/dev/side9")
    assert devices(tree, text)[0].id == before == "pair-main0"


@given(st.text(min_size=1, max_size=120))
def test_an_id_is_one_that_the_kubelet_takes_and_leaves_room_for_slots(text: str) -> None:
    made = identity.slug("serial", text)
    assert id_error(made + "@99999") == ""
    assert len(made) <= 56
    assert "," not in made


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_different_hardware_has_different_ids(one: str, other: str) -> None:
    if one.replace("/", "-") != other.replace("/", "-"):
        assert identity.slug("serial", one) != identity.slug("serial", other)
