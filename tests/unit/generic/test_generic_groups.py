# SPDX-License-Identifier: Apache-2.0
"""What generic-device-plugin does as well."""

from __future__ import annotations

import os

import pytest

from deviceplugin import DeviceNode, Mount, Skipped
from tests.unit.generic.helpers import devices, discover, paths
from tests.unit.sysfs.tree import Tree


def test_one_device_file_is_one_device_named_after_it(tree: Tree) -> None:
    tree.node("/dev/fuse", "/sys/devices/virtual/misc/fuse")
    (fuse,) = devices(tree, "devices: [{name: fuse, groups: [{paths: [{path: /dev/fuse}]}]}]")
    assert (fuse.id, fuse.unit, fuse.resource) == ("fuse", "fuse", "devices.local/fuse")
    assert fuse.nodes == (DeviceNode("/dev/fuse", "/dev/fuse", "rw"),)


def test_the_domain_is_taken_from_the_configuration(tree: Tree) -> None:
    tree.node("/dev/fuse")
    (fuse,) = devices(tree, "{domain: squat.ai, devices: [{name: fuse, groups: [{paths: [{path: /dev/fuse}]}]}]}")
    assert fuse.resource == "squat.ai/fuse"


def test_each_match_of_a_glob_is_a_device(tree: Tree) -> None:
    for name in ("video1", "video0", "vide", "audio0"):
        tree.node(f"/dev/{name}")
    assert paths(tree, "devices: [{name: video, groups: [{paths: [{path: '/dev/video[0-9]'}]}]}]") == [("/dev/video0",), ("/dev/video1",)]


def test_a_root_with_wildcards_in_its_own_name_is_no_pattern(tree: Tree) -> None:
    odd = Tree(tree.root / "[a]*")
    odd.node("/dev/video0")
    assert paths(odd, "devices: [{name: video, groups: [{paths: [{path: /dev/video*}]}]}]") == [("/dev/video0",)]


def test_groups_are_one_pool(tree: Tree) -> None:
    for name in ("ttyUSB0", "ttyACM0"):
        tree.node(f"/dev/{name}")
    found = devices(tree, "devices: [{name: serial, groups: [{paths: [{path: /dev/ttyUSB*}]}, {paths: [{path: /dev/ttyACM*}]}]}]")
    assert {device.resource for device in found} == {"devices.local/serial"}
    assert [device.id for device in found] == ["serial-ttyUSB0", "serial-ttyACM0"]


def test_paths_of_a_group_go_together(tree: Tree) -> None:
    for card in "01":
        tree.node(f"/dev/snd/pcmC{card}D0c")
        tree.node(f"/dev/snd/controlC{card}")
    text = "devices: [{name: capture, groups: [{paths: [{path: /dev/snd/pcmC*D0c}, {path: /dev/snd/controlC*}]}]}]"
    assert paths(tree, text) == [("/dev/snd/pcmC0D0c", "/dev/snd/controlC0"), ("/dev/snd/pcmC1D0c", "/dev/snd/controlC1")]


def test_a_match_without_a_partner_is_told(tree: Tree) -> None:
    for name in ("a0", "a1", "b0"):
        tree.node(f"/dev/{name}")
    found, skipped = discover(tree, "devices: [{name: ab, groups: [{paths: [{path: /dev/a*}, {path: /dev/b*}]}]}]")
    assert len(found) == 1
    assert skipped == [Skipped("/dev/a1", "is left over: devices.local/ab, group 1 has no partner for it")]


def test_limit_lets_one_match_be_in_several_devices(tree: Tree) -> None:
    for name in ("render", "video0", "video1", "video2"):
        tree.node(f"/dev/{name}")
    text = "devices: [{name: pair, groups: [{paths: [{path: /dev/video*}, {path: /dev/render, limit: 10}]}]}]"
    assert paths(tree, text) == [(f"/dev/video{n}", "/dev/render") for n in range(3)]
    assert [device.id for device in devices(tree, text)] == ["pair-video0", "pair-video1", "pair-video2"]


def test_count_makes_slots_that_share_a_unit(tree: Tree) -> None:
    tree.node("/dev/fuse")
    found = devices(tree, "devices: [{name: fuse, groups: [{count: 3, paths: [{path: /dev/fuse}]}]}]")
    assert [device.id for device in found] == ["fuse", "fuse@1", "fuse@2"]
    assert {device.unit for device in found} == {"fuse"}


def test_raising_the_count_keeps_the_ids_that_were_there(tree: Tree) -> None:
    tree.node("/dev/fuse")
    text = "devices: [{name: fuse, groups: [{count: %d, paths: [{path: /dev/fuse}]}]}]"
    assert {d.id for d in devices(tree, text % 2)} < {d.id for d in devices(tree, text % 5)}


@pytest.mark.parametrize("kvm", [True, False])
def test_an_optional_member_may_be_missing(tree: Tree, kvm: bool) -> None:
    tree.node("/dev/fuse")
    if kvm:
        tree.node("/dev/kvm")
    (device,) = devices(tree, "devices: [{name: vm, groups: [{paths: [{path: /dev/fuse}, {path: /dev/kvm, optional: true}]}]}]")
    assert device.id == "vm-fuse"
    assert [node.path for node in device.nodes] == ["/dev/fuse", "/dev/kvm"][: 1 + kvm]


@pytest.mark.parametrize("there", [["ttyS0"], ["ttyUSB1"], ["ttyS0", "ttyUSB1"]])
def test_a_group_of_optional_paths_is_whatever_is_there_under_one_id(tree: Tree, there: list[str]) -> None:
    for name in there:
        tree.node(f"/dev/{name}")
    text = "devices: [{name: any, groups: [{paths: [{path: /dev/ttyS0, optional: true}, {path: /dev/ttyUSB1, optional: true}]}]}]"
    (device,) = devices(tree, text)
    assert [node.path for node in device.nodes] == [f"/dev/{name}" for name in there]
    assert device.id == "any-any-ttyS0"


def test_what_is_missing_is_told_and_no_error(tree: Tree) -> None:
    found, skipped = discover(tree, "devices: [{name: foo, groups: [{paths: [{path: /dev/foo*}]}, {paths: [{path: /dev/x, optional: true}]}]}]")
    assert found == []
    assert skipped == [
        Skipped("devices.local/foo, group 1", "no file matches /dev/foo*"),
        Skipped("devices.local/foo, group 2", "no file matches /dev/x"),
    ]


@pytest.mark.parametrize(("mount_path", "inside"), [("", "/dev/ttyUSB7"), ("/dev/modem", "/dev/modem"), ("/ports/", "/ports/ttyUSB7")])
def test_mount_path_says_where_the_container_sees_it(tree: Tree, mount_path: str, inside: str) -> None:
    tree.node("/dev/ttyUSB7")
    (device,) = devices(tree, f"devices: [{{name: tty, groups: [{{paths: [{{path: /dev/ttyUSB*, mountPath: '{mount_path}'}}]}}]}}]")
    assert device.nodes == (DeviceNode("/dev/ttyUSB7", inside),)


def test_permissions_are_passed_on(tree: Tree) -> None:
    tree.node("/dev/mem")
    (device,) = devices(tree, "devices: [{name: mem, groups: [{paths: [{path: /dev/mem, permissions: r}]}]}]")
    assert device.nodes[0].permissions == "r"


def test_mounts_are_files_or_directories_and_may_be_in_many_devices(tree: Tree) -> None:
    tree.file("/opt/firmware/blob")
    for n in "01":
        tree.node(f"/dev/card{n}")
    found = devices(
        tree,
        "devices: [{name: card, groups: [{paths: ["
        "{path: /dev/card*}, {path: /opt/firmware, type: Mount, mountPath: /firmware, readOnly: true, limit: 9}]}]}]",
    )
    assert [device.mounts for device in found] == [(Mount("/opt/firmware", "/firmware", True),)] * 2
    assert [device.id for device in found] == ["card-card0", "card-card1"]


def test_a_mount_that_comes_first_does_not_name_the_device(tree: Tree) -> None:
    tree.file("/opt/a0")
    tree.node("/dev/b0")
    (device,) = devices(tree, "devices: [{name: ab, groups: [{paths: [{path: /opt/a0, type: Mount}, {path: /dev/b0}]}]}]")
    assert device.id == "ab-b0"


def test_a_mount_is_writable_unless_told_otherwise(tree: Tree) -> None:
    tree.file("/run/app.sock")
    (device,) = devices(tree, "devices: [{name: app, groups: [{paths: [{path: /run/app.sock, type: Mount}]}]}]")
    assert device.mounts == (Mount("/run/app.sock", "/run/app.sock", False),)


def test_a_directory_of_device_files_is_all_of_them(tree: Tree) -> None:
    for name in ("controlC0", "by/pcmC0D0p", "pts/0"):
        tree.node(f"/dev/snd/{name}")
    tree.link("/dev/snd/link", "controlC0")
    (device,) = devices(tree, "devices: [{name: audio, groups: [{paths: [{path: /dev/snd, mountPath: /snd}]}]}]")
    assert device.nodes == (DeviceNode("/dev/snd/by/pcmC0D0p", "/snd/by/pcmC0D0p"), DeviceNode("/dev/snd/controlC0", "/snd/controlC0"))


def test_an_empty_directory_is_no_device(tree: Tree) -> None:
    tree.at("/dev/dri").mkdir(parents=True)
    reason = "is a directory without device files; to mount the directory itself write type: Mount"
    assert Skipped("/dev/dri", reason) in discover(tree, "devices: [{name: dri, groups: [{paths: [{path: /dev/dri}]}]}]")[1]


def test_a_fifo_stands_for_a_device_file_below_another_root(tree: Tree) -> None:
    tree.at("/dev").mkdir()
    os.mkfifo(tree.at("/dev/fake"))
    assert paths(tree, "devices: [{name: fake, groups: [{paths: [{path: /dev/fake}]}]}]") == [("/dev/fake",)]


def test_on_the_real_root_a_plain_file_is_no_device(tree: Tree) -> None:
    real = Tree(tree.root)
    real.host = type(tree.host)()
    path = str(tree.at(tree.file("/plain")))
    found, skipped = discover(real, f"devices: [{{name: plain, groups: [{{paths: [{{path: {path}}}, {{path: /dev/null}}]}}]}}]")
    assert found == []
    assert Skipped(path, "is not a device file; for an ordinary file or directory write type: Mount") in skipped


def test_on_the_real_root_dev_null_is_a_device(tree: Tree) -> None:
    real = Tree(tree.root)
    real.host = type(tree.host)()
    assert paths(real, "devices: [{name: bin, groups: [{paths: [{path: /dev/null}]}]}]") == [("/dev/null",)]


class TestUsb:
    def test_by_vendor_and_product(self, tree: Tree) -> None:
        tree.usb("2", "1a86", "7523", number=7)
        tree.usb("3", "0403", "6001", number=8)
        (device,) = devices(tree, "devices: [{name: ch340, groups: [{usb: [{vendor: '1A86', product: '7523'}]}]}]")
        assert device.nodes == (DeviceNode("/dev/bus/usb/001/007", "/dev/bus/usb/001/007", "rw"),)

    def test_by_serial_number(self, tree: Tree) -> None:
        tree.usb("2", "0bda", "2838", "airband", number=7)
        tree.usb("3", "0bda", "2838", "adsb", number=8)
        (device,) = devices(tree, "devices: [{name: sdr, groups: [{usb: [{vendor: 0bda, product: '2838', serial: adsb}]}]}]")
        assert device.nodes[0].path == "/dev/bus/usb/001/008"
        assert device.id == "sdr-usb-0bda-2838-adsb"

    def test_two_alike_are_two_devices(self, tree: Tree) -> None:
        tree.usb("2", "0bda", "2838", "00000001", number=7)
        tree.usb("3", "0bda", "2838", "00000001", number=8)
        found = devices(tree, "devices: [{name: sdr, groups: [{usb: [{vendor: 0bda, product: '2838'}]}]}]")
        assert [device.id for device in found] == ["sdr-0000:00:14.0-usb.0-2", "sdr-0000:00:14.0-usb.0-3"]

    def test_entries_of_a_group_go_together(self, tree: Tree) -> None:
        tree.usb("2", "1209", "000f", "left", number=7)
        tree.usb("3", "1209", "0010", "right", number=8)
        text = "devices: [{name: rig, groups: [{usb: [{vendor: '1209', product: 000F}, {vendor: '1209', product: '0010', mountPath: /dev/right}]}]}]"
        (device,) = devices(tree, text)
        assert [node.container_path for node in device.nodes] == ["/dev/bus/usb/001/007", "/dev/right"]
        tree.remove("/sys/bus/usb/devices/1-3")
        found, skipped = discover(tree, text)
        assert found == []
        assert Skipped("devices.local/rig, group 1", "there is no USB device 1209:0010") in skipped

    def test_a_stick_that_cannot_be_read_hides_no_other(self, tree: Tree) -> None:
        broken = tree.usb("2", "0bda", "2838", "a1", number=7)
        tree.usb("3", "0bda", "2838", "a2", number=8)
        tree.remove(f"{broken}/serial")
        tree.link(f"{broken}/serial", "serial")
        found, skipped = discover(tree, "devices: [{name: sdr, groups: [{usb: [{vendor: 0bda, product: '2838'}]}]}]")
        assert [device.id for device in found] == ["sdr-usb-0bda-2838-a2"]
        assert skipped == [Skipped("USB device 1-2", f"{broken}/serial cannot be read: Too many levels of symbolic links")]
