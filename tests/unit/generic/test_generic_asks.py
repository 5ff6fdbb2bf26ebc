# SPDX-License-Identifier: Apache-2.0
"""What users of such plugins ask for beyond that."""

from __future__ import annotations

import os

import pytest

from deviceplugin import Device, DeviceNode, Health, Skipped
from deviceplugin.events import Scope
from deviceplugin.plugins.generic.config import Check, Path
from deviceplugin.plugins.generic.health import judge
from deviceplugin.plugins.generic.matching import Match
from tests.unit.generic.helpers import devices, discover, paths, plugin
from tests.unit.sysfs.tree import Tree


class TestNaming:
    def test_each_device_its_own_resource(self, tree: Tree) -> None:
        tree.tty_usb("ttyUSB0", tree.usb("2", "0403", "6001", "A50285BI"))
        tree.node("/dev/ttyACM0")
        text = "devices: [{name: serial, naming: per-device, groups: [{paths: [{path: /dev/ttyUSB*}]}, {paths: [{path: /dev/ttyACM*}]}]}]"
        assert [device.resource for device in devices(tree, text)] == [
            "devices.local/serial-usb-0403-6001-A50285BI-1.0-ttyUSB.0",
            "devices.local/serial-ttyACM0",
        ]

    def test_by_a_template(self, tree: Tree) -> None:
        for name in ("video0", "video1"):
            tree.node(f"/dev/{name}")
        group = "{count: 2, paths: [{path: /dev/video*}]}"
        text = f"{{domain: smarter-devices, devices: [{{name: cam, naming: per-device, resourceName: '{{basename}}', groups: [{group}]}}]}}"
        assert [(d.id, d.resource) for d in devices(tree, text)] == [
            ("cam-video0", "smarter-devices/video0"),
            ("cam-video0@1", "smarter-devices/video0"),
            ("cam-video1", "smarter-devices/video1"),
            ("cam-video1@1", "smarter-devices/video1"),
        ]

    def test_a_template_that_names_two_alike_leaves_the_second_out(self, tree: Tree) -> None:
        for name in ("video0", "video1"):
            tree.node(f"/dev/{name}")
        found, skipped = discover(tree, "devices: [{name: cam, naming: per-device, resourceName: one, groups: [{paths: [{path: /dev/video*}]}]}]")
        assert [device.id for device in found] == ["cam-video0"]
        reason = "would be the resource devices.local/one, which is that of cam-video0: put {id} or another thing that differs into resourceName"
        assert skipped == [Skipped("cam-video1", reason)]

    def test_a_template_that_names_a_pool_is_left_out(self, tree: Tree) -> None:
        for name in ("video0", "fuse"):
            tree.node(f"/dev/{name}")
        found, skipped = discover(
            tree,
            "devices: [{name: cam, naming: per-device, resourceName: fuse, groups: [{paths: [{path: /dev/video*}]}]}, "
            "{name: fuse, groups: [{paths: [{path: /dev/fuse}]}]}]",
        )
        assert [device.id for device in found] == ["fuse"]
        assert skipped[0].reason.startswith("would be the resource devices.local/fuse, which is that of a pool: ")

    def test_a_name_that_is_too_long_is_told(self, tree: Tree) -> None:
        tree.node("/dev/video0")
        text = "devices: [{name: cam, naming: per-device, resourceName: '{id}-%s', groups: [{paths: [{path: /dev/video*}]}]}]" % ("x" * 60)
        (skipped,) = discover(tree, text)[1]
        assert skipped.reason.endswith("has 71 characters, 1 to 63 are allowed: give cam another resourceName")


class TestMatching:
    def test_by_a_regular_expression(self, tree: Tree) -> None:
        for name in ("video0", "video1", "video10", "avideo0"):
            tree.node(f"/dev/{name}")
        assert paths(tree, "devices: [{name: cam, groups: [{paths: [{regex: '/dev/video(0|[0-9]{2})'}]}]}]") == [("/dev/video0",), ("/dev/video10",)]

    @pytest.mark.parametrize(
        "match",
        [
            "{idVendor: '10C4'}",
            "{serial: 'sil*'}",
            "{driver: ftdi_sio, subsystem: tty}",
            "{vendor: '0x8086', idVendor: ['0403', 10c4]}",
        ],
    )
    def test_by_attributes_of_the_hardware(self, tree: Tree, match: str) -> None:
        tree.tty_usb("ttyUSB0", tree.usb("2", "10c4", "ea60", "SIL1"))
        tree.node("/dev/ttyUSB7", "/sys/devices/virtual/tty/ttyUSB7")
        text = f"devices: [{{name: zigbee, groups: [{{paths: [{{path: /dev/ttyUSB*, match: {match}}}]}}]}}]"
        assert paths(tree, text) == [("/dev/ttyUSB0",)]

    def test_what_does_not_match_is_told_with_the_value_that_it_has(self, tree: Tree) -> None:
        tree.tty_usb("ttyUSB0", tree.usb("2", "10c4", "ea60", "SIL1"))
        tree.node("/dev/ttyUSB7")
        found, skipped = discover(tree, "devices: [{name: z, groups: [{paths: [{path: /dev/ttyUSB*, match: {idVendor: ['0403', '1a86']}}]}]}]")
        assert found == []
        assert skipped == [
            Skipped("devices.local/z, group 1", "no file matches /dev/ttyUSB*"),
            Skipped("/dev/ttyUSB0", "does not match idVendor: 0403 or 1a86: it has '10c4'"),
            Skipped("/dev/ttyUSB7", "does not match idVendor: 0403 or 1a86: it has no attribute of that name"),
        ]

    def test_a_stick_without_serial_number_has_not_that_of_its_hub(self, tree: Tree) -> None:
        tree.tty_usb("ttyUSB0", tree.usb("2", "10c4", "ea60"))
        (device,) = devices(tree, "devices: [{name: z, groups: [{envs: {SERIAL: '{serial}'}, paths: [{path: /dev/ttyUSB*}]}]}]")
        assert device.envs == {"SERIAL": ""}

    def test_a_name_that_is_no_text_is_told(self, tree: Tree) -> None:
        tree.node("/dev/ok0")
        with open(os.fsencode(tree.at("/dev")) + b"/ok\xff", "wb"):
            pass
        found, skipped = discover(tree, "devices: [{name: ok, groups: [{paths: [{path: /dev/ok*}]}]}]")
        assert [device.id for device in found] == ["ok-ok0"]
        assert skipped == [Skipped("'/dev/ok\\udcff'", "has a character in its name that cannot be passed on")]


class TestTwice:
    def test_one_file_in_two_devices_goes_to_the_first_and_the_second_is_told(self, tree: Tree) -> None:
        tree.node("/dev/ttyUSB0")
        tree.link("/dev/serial/by-id/stick", "/dev/ttyUSB0")
        found, skipped = discover(
            tree,
            "devices: [{name: zigbee, groups: [{paths: [{path: /dev/serial/by-id/stick}]}]}, "
            "{name: serial, groups: [{paths: [{path: /dev/ttyUSB*}]}]}]",
        )
        assert [device.id for device in found] == ["zigbee-stick"]
        assert skipped == [
            Skipped(
                "serial-ttyUSB0",
                "/dev/ttyUSB0 is also in device zigbee-stick of devices.local/zigbee, group 1, and a device file can be in one device only: "
                "leave it out of device zigbee-stick of devices.local/zigbee, group 1 or of devices.local/serial, group 1, "
                "or say shared: true in both",
            )
        ]

    def test_one_file_twice_in_one_device_is_told(self, tree: Tree) -> None:
        tree.node("/dev/a0")
        found, skipped = discover(tree, "devices: [{name: a, groups: [{paths: [{path: /dev/a0}, {path: /dev/a*}]}]}]")
        assert found == []
        assert skipped[0].reason.startswith("/dev/a0 is also in device a-a0 of devices.local/a, group 1, and")

    @pytest.mark.parametrize(("first", "second", "count"), [("true", "true", 2), ("true", "false", 1), ("false", "true", 1)])
    def test_unless_both_say_shared(self, tree: Tree, first: str, second: str, count: int) -> None:
        for name in ("controlC0", "pcmC0D0c"):
            tree.node(f"/dev/snd/{name}")
        found, _ = discover(
            tree,
            f"devices: [{{name: audio, groups: [{{paths: [{{path: /dev/snd, shared: {first}}}]}}]}}, "
            "{name: capture, groups: [{paths: ["
            f"{{path: /dev/snd/pcmC0D0c, shared: {second}}}, {{path: /dev/snd/controlC0, shared: {second}}}]}}]}}]",
        )
        assert len(found) == count


class TestHealth:
    TEXT = "devices: [{name: dev, groups: [{paths: [{path: /dev/dev0, health: [%s]}]}]}]"

    def judged(self, tree: Tree, check: str) -> tuple[Health, str]:
        (device,) = devices(tree, self.TEXT % check)
        return device.health, device.cause

    @pytest.fixture(autouse=True)
    def device(self, tree: Tree) -> None:
        card = tree.device("/sys/devices/pci0000:3a/0000:3b:00.0", "pci", state="online", temp="85000", errors="0x10", text="warm")
        tree.node("/dev/dev0", tree.device(f"{card}/misc/dev0"))

    def test_a_device_without_checks_is_healthy(self, tree: Tree) -> None:
        assert self.judged(tree, "") == (Health.HEALTHY, "")

    def test_exists(self, tree: Tree) -> None:
        check = "{exists: /run/firmware.ready}"
        assert self.judged(tree, check) == (Health.UNHEALTHY, "exists: there is no /run/firmware.ready")
        tree.file("/run/firmware.ready")
        assert self.judged(tree, check) == (Health.HEALTHY, "")

    def test_openable(self, tree: Tree) -> None:
        assert self.judged(tree, "{openable: true}") == (Health.HEALTHY, "")

    @pytest.mark.parametrize(
        ("number", "health", "text"),
        [
            (16, Health.HEALTHY, ""),
            (5, Health.UNHEALTHY, "openable: /dev/dev0: Input/output error"),
            (6, Health.UNHEALTHY, "openable: /dev/dev0: No such device or address"),
            (1, Health.UNKNOWN, "openable: /dev/dev0: Operation not permitted"),
            (13, Health.UNKNOWN, "openable: /dev/dev0: Permission denied"),
        ],
    )
    def test_openable_by_what_the_driver_answers(self, tree: Tree, monkeypatch: pytest.MonkeyPatch, number: int, health: Health, text: str) -> None:
        match = Match(Path(path="/dev/dev0", health=[Check(openable=True)]), "/dev/dev0", nodes=(DeviceNode("/dev/dev0"),))

        def answer(path: str, flags: int) -> int:
            assert path == str(tree.at("/dev/dev0"))
            assert flags & os.O_NONBLOCK
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", answer)
            verdict = judge(tree.host, match)
        assert verdict == (health, text)

    @pytest.mark.parametrize(
        ("check", "health", "cause"),
        [
            ("{attribute: state, equals: online}", Health.HEALTHY, ""),
            ("{attribute: state, in: [ready, online]}", Health.HEALTHY, ""),
            ("{attribute: temp, equals: 85000}", Health.HEALTHY, ""),
            ("{attribute: temp, min: 0, max: 90000}", Health.HEALTHY, ""),
            ("{attribute: errors, max: 16}", Health.HEALTHY, ""),
            ("{attribute: state, equals: ready}", Health.UNHEALTHY, "attribute: state of /dev/dev0 is 'online', not 'ready'"),
            ("{attribute: state, in: [a, b]}", Health.UNHEALTHY, "attribute: state of /dev/dev0 is 'online', not 'a' or 'b'"),
            ("{attribute: temp, max: 80000}", Health.UNHEALTHY, "attribute: temp of /dev/dev0 is '85000', above 80000"),
            ("{attribute: temp, min: 90000}", Health.UNHEALTHY, "attribute: temp of /dev/dev0 is '85000', below 90000"),
            ("{attribute: text, max: 1}", Health.UNKNOWN, "attribute: text of /dev/dev0 is 'warm', not a number"),
            ("{attribute: nothing, max: 1}", Health.UNKNOWN, "attribute: /dev/dev0 has no nothing"),
            ("{attribute: nothing, max: 1}, {attribute: state, equals: x}", Health.UNHEALTHY, "attribute: state of /dev/dev0 is 'online', not 'x'"),
        ],
    )
    def test_attributes(self, tree: Tree, check: str, health: Health, cause: str) -> None:
        assert self.judged(tree, check) == (health, cause)

    def test_an_attribute_that_cannot_be_read_is_unknown(self, tree: Tree) -> None:
        tree.link("/sys/devices/pci0000:3a/0000:3b:00.0/loop", "loop")
        assert self.judged(tree, "{attribute: loop, equals: x}") == (
            Health.UNKNOWN,
            "attribute: /sys/devices/pci0000:3a/0000:3b:00.0/loop cannot be read: Too many levels of symbolic links",
        )

    def test_the_worst_member_decides_for_all_slots(self, tree: Tree) -> None:
        tree.node("/dev/well")
        found = devices(
            tree,
            "devices: [{name: dev, groups: [{count: 2, paths: [{path: /dev/well}, {path: /dev/dev0, health: [{attribute: state, equals: x}]}]}]}]",
        )
        assert [(d.health, d.unit) for d in found] == [(Health.UNHEALTHY, "dev-well")] * 2


class TestTopology:
    def test_numa_nodes_of_all_members(self, tree: Tree) -> None:
        for n in (0, 1):
            card = tree.device(f"/sys/devices/pci0000:{n}a/0000:{n}b:00.0", "pci", numa_node=str(n))
            tree.node(f"/dev/dev{n}", tree.device(f"{card}/misc/dev{n}"))
        (device,) = devices(tree, "devices: [{name: dev, groups: [{paths: [{path: /dev/dev1}, {path: /dev/dev0}]}]}]")
        assert device.numa_nodes == (0, 1)

    def test_minus_one_is_no_node(self, tree: Tree) -> None:
        card = tree.device("/sys/devices/pci0000:0a/0000:0b:00.0", "pci", numa_node="-1")
        tree.node("/dev/dev0", tree.device(f"{card}/misc/dev0"))
        (device,) = devices(tree, "devices: [{name: dev, groups: [{paths: [{path: /dev/dev0}]}]}]")
        assert device.numa_nodes == ()

    def test_a_node_that_cannot_be_read_is_left_out_and_not_the_device(self, tree: Tree) -> None:
        card = tree.device("/sys/devices/pci0000:0a/0000:0b:00.0", "pci")
        tree.link(f"{card}/numa_node", "numa_node")
        tree.node("/dev/dev0", tree.device(f"{card}/misc/dev0"))
        (device,) = devices(tree, "devices: [{name: dev, groups: [{paths: [{path: /dev/dev0}]}]}]")
        assert device.numa_nodes == ()


def test_templates_fill_variables_annotations_and_cdi_names(tree: Tree) -> None:
    tree.tty_usb("ttyUSB0", tree.usb("2", "0403", "6001", "A5"))
    first, second = devices(
        tree,
        """
        devices:
        - name: modem
          groups:
          - count: 2
            identity: path
            envs: {MODEM: "{containerPath}", WHERE: "{path} {basename} {{}}", ID: "{id}"}
            annotations: {vendor.example/serial: "{name}:{serial}"}
            cdi: ["vendor.example/modem={serial}"]
            paths: [{path: /dev/ttyUSB*, mountPath: /dev/modem}]
        """,
    )
    assert first.envs == {"MODEM": "/dev/modem", "WHERE": "/dev/ttyUSB0 ttyUSB0 {}", "ID": "modem-ttyUSB0"}
    assert first.annotations == {"vendor.example/serial": "modem:A5"}
    assert first.cdi == ("vendor.example/modem=A5",)
    assert first.attributes == {"path": "/dev/ttyUSB0", "serial": "A5"}
    assert second.envs["ID"] == second.id == "modem-ttyUSB0@1"


class TestWatch:
    TEXT = "devices: [{name: serial, groups: [{paths: [{path: /dev/serial/by-id/*}]}]}]"

    def test_hot_plug_is_seen_also_in_a_directory_that_was_not_there(self, tree: Tree) -> None:
        tree.at("/dev").mkdir()
        it = plugin(tree, self.TEXT)
        with Scope() as scope:  # as the framework holds one
            events = it.watch()
        tree.node("/dev/ttyUSB0")
        tree.link("/dev/serial/by-id/stick", "/dev/ttyUSB0")
        next(events)
        assert [one.id for one in it.discover() if isinstance(one, Device)] == ["serial-stick"]
        scope.close()
        assert list(events) == []

    def test_a_usb_stick_is_seen_where_there_are_no_uevents(self, tree: Tree) -> None:
        tree.usb("1", "0403", "6001", number=2)
        it = plugin(tree, "devices: [{name: sdr, groups: [{usb: [{vendor: 0bda, product: '2838'}]}]}]")
        with Scope() as scope:
            events = it.watch()
        tree.usb("2", "0bda", "2838", "adsb", number=3)
        next(events)
        assert [one.id for one in it.discover() if isinstance(one, Device)] == ["sdr-usb-0bda-2838-adsb"]
        scope.close()

    @pytest.mark.parametrize(
        ("path", "watched"),
        [
            ("path: /dev/fuse", "/dev/fuse"),
            ("path: /dev/video*", "/dev"),
            ("path: '/dev/bus/[0-9]*/x'", "/dev/bus"),
            ("regex: '/dev/snd/pcm.*'", "/dev/snd"),
        ],
    )
    def test_what_is_watched_is_what_decides(self, tree: Tree, path: str, watched: str) -> None:
        (spec,) = plugin(tree, f"devices: [{{name: some, groups: [{{paths: [{{{path}}}]}}]}}]").config.devices
        assert spec.groups[0].paths[0].watched == watched
