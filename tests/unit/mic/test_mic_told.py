# SPDX-License-Identifier: Apache-2.0
"""What containers were told, what became of it, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from deviceplugin import Allocation, Device, Host, Verdict
from deviceplugin.config import ConfigError
from deviceplugin.labels import DIRECTORY
from deviceplugin.plugins.mic.boot import NotReady
from deviceplugin.plugins.mic.told import Told
from deviceplugin.testing.mic import self_boot
from tests.unit.mic.conftest import Make
from tests.unit.mic.rig import Rig

RECORD = "/var/lib/deviceplugin/mic-told.json"


def allocation(*devices: Device) -> Allocation:
    return Allocation("default", "pod", "main", devices[0].resource, devices)


def verdict(rig: Rig, *devices: Device) -> Verdict:
    asked = allocation(*devices)
    (one,) = rig.plugin.reconcile([asked])
    assert one.allocation is asked
    return one


def told(rig: Rig, devices: Sequence[Device]) -> None:
    rig.plugin.allocate(devices)


def test_a_container_that_was_told_another_number_does_not_start(make: Make) -> None:
    rig = make("mpss3")
    first, second = rig.mics.add(), rig.mics.add()
    held = rig.devices()
    told(rig, held[:1])
    rig.plugin.prepare(held[:1])
    assert verdict(rig, held[0]) == Verdict(allocation(held[0]), None, "the SCIF node reaches all 2 cards: OFFLOAD_DEVICES is advice")
    rig.mics.renumber(1, 0)
    rig.configure()  # a reboot
    now = {device.attributes["pci_address"]: device for device in rig.devices()}
    with pytest.raises(NotReady, match="is mic1 now, and its container was told of mic0, which may be another card"):
        rig.plugin.prepare([now[first.address]])
    found = verdict(rig, now[first.address])
    assert found.enforced is False
    assert "delete the pod" in found.detail
    rig.plugin.prepare([now[second.address]])  # nobody was ever told of it
    told(rig, [now[first.address]])  # a new pod
    rig.plugin.prepare([now[first.address]])
    assert verdict(rig, now[first.address]).enforced is None


def test_a_group_that_has_another_number_is_noticed_too(make: Make) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    rig.mics.give_to_vfio(card)
    (device,) = rig.devices()
    assert verdict(rig, device) == Verdict(
        allocation(device), None, "what the container was told is not known: it was admitted before there was a record"
    )
    told(rig, [device])
    assert verdict(rig, device) == Verdict(allocation(device), True)
    rig.mics.neighbour(card, "0000:05:00.1", driver="igb")
    assert rig.devices()
    assert verdict(rig, device).enforced is False
    rig.machine.remove("/sys/kernel/iommu_groups/5/devices/0000:05:00.1")
    rig.machine.link(f"{card.pci}/iommu_group", "/sys/kernel/iommu_groups/9")
    rig.machine.device_file("/dev/vfio/9", major=511)
    (moved,) = rig.devices()
    assert moved.id == device.id
    with pytest.raises(NotReady, match="is /dev/vfio/9 now, and its container was told of /dev/vfio/5"):
        rig.plugin.prepare([moved])


def test_a_lone_card_is_verified_and_one_that_is_gone_is_not(make: Make) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    (device,) = rig.devices()
    told(rig, [device])
    assert verdict(rig, device) == Verdict(allocation(device), True)
    rig.mics.remove(card)
    assert rig.devices() == []
    assert verdict(rig, device) == Verdict(allocation(device), None, "mic-0000-05-00-0 is not there any more")


def test_the_host_as_a_device_is_only_counted(make: Make) -> None:
    rig = make("kernel", hostResource="intel.com/xeon-phi")
    self_boot(rig.machine)
    (device,) = rig.devices()
    told(rig, [device])
    assert verdict(rig, device) == Verdict(allocation(device), None, "it is counted, and nothing else")
    assert not os.path.exists(rig.machine.path(RECORD))


def test_the_record_is_written_once_and_read_again(tmp_path: Path) -> None:
    host = Host(str(tmp_path))
    one = Told(host, RECORD)
    one.tell({"mic-a": "mic0", "mic-b": "mic1"})
    path = tmp_path / RECORD[1:]
    assert json.loads(path.read_text()) == {"mic-a": "mic0", "mic-b": "mic1"}
    assert path.stat().st_mode & 0o777 == 0o600
    inode = path.stat().st_ino
    one.tell({"mic-a": "mic0"})
    assert path.stat().st_ino == inode
    assert (Told(host, RECORD).handle("mic-b"), Told(host, RECORD).handle("mic-c")) == ("mic1", "")


def test_what_another_instance_told_is_known(tmp_path: Path) -> None:
    host = Host(str(tmp_path))
    one, other = Told(host, RECORD), Told(host, RECORD)
    one.tell({"mic-a": "mic0"})
    assert other.handle("mic-a") == "mic0"
    one.tell({"mic-a": "mic1", "mic-b": "mic0"})
    other.tell({"mic-c": "mic2"})
    assert [one.handle(device) for device in ("mic-a", "mic-b", "mic-c")] == ["mic1", "mic0", "mic2"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"mic-a": 3}', "\x00" * 100, '{"mic-a": {"b": 1}}'])
def test_a_broken_record_is_begun_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / RECORD[1:]
    path.parent.mkdir(parents=True)
    path.write_text(content)
    one = Told(Host(str(tmp_path)), RECORD)
    assert one.handle("mic-a") == ""
    one.tell({"mic-a": "mic4"})
    assert Told(Host(str(tmp_path)), RECORD).handle("mic-a") == "mic4"


def test_a_record_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "var").write_text("not a directory")
    one = Told(Host(str(tmp_path)), RECORD)
    for number in range(3):
        one.tell({"mic-a": f"mic{number}"})
    assert one.handle("mic-a") == "mic2"
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


def test_labels(make: Make) -> None:
    rig = make("mpss3", labels=True)
    path = rig.machine.path(f"{DIRECTORY}/mic")
    rig.look()
    assert not os.path.exists(path)
    one = rig.mics.add()
    rig.mics.add()
    rig.look()
    text = "intel.com/mic.count=2\nintel.com/mic.driver=mpss3\nintel.com/mic.family=x100\nintel.com/mic.sku=C0-7120-PAXD\n"
    assert rig.machine.read(f"{DIRECTORY}/mic") == text
    rig.mics.give_to_vfio(one)
    self_boot(rig.machine, clusters=4)
    rig.look()
    assert rig.machine.read(f"{DIRECTORY}/mic").splitlines() == [
        "intel.com/mic-vfio.count=1",
        "intel.com/mic-vfio.family=x100",
        "intel.com/mic.count=1",
        "intel.com/mic.driver=mpss3",
        "intel.com/mic.family=x100",
        "intel.com/mic.sku=C0-7120-PAXD",
        "intel.com/xeon-phi.cluster-mode=snc-4",
        "intel.com/xeon-phi.mcdram-mib=16384",
        "intel.com/xeon-phi.memory-mode=flat",
        "intel.com/xeon-phi.model=knights-landing",
    ]
    rig.configure()
    labels = f"label file {rig.machine.path(DIRECTORY)}/mic"
    assert list(rig.plugin.uninstall(False)) == [labels]
    told(rig, rig.devices())
    assert list(rig.plugin.uninstall(True)) == [labels, f"file {RECORD}"]
    assert list(rig.plugin.uninstall(True)) == []


def test_labels_go_with_the_last_card_and_a_missing_mount_is_said_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    rig = make("kernel", labels=True)
    card = rig.mics.add()
    rig.look()
    rig.mics.remove(card)
    rig.look()
    assert not os.path.exists(rig.machine.path(f"{DIRECTORY}/mic"))
    rig.machine.remove("/etc")
    rig.machine.write("/etc", "")
    rig.mics.add()
    for _ in range(3):
        assert len(rig.devices()) == 1
    assert len([record for record in caplog.records if "is the directory mounted?" in record.message]) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resource": "mic"}, "must be a resource name"),
        ({"resource": "intel.com/a", "vfioResource": "intel.com/a"}, "must differ"),
        ({"hostResource": "intel.com/mic"}, "must differ"),
        ({"prepare": "restart"}, "prepare"),
        ({"prepareTimeout": 25}, "prepareTimeout"),
        ({"prepare_timeout": 20}, "prepareTimeout"),
        ({"identity": "bus"}, "identity"),
        ({"boot": {"initramfs": "/a"}}, "goes with image"),
        ({"boot": {"image": "relative"}}, "absolute path"),
        ({"boot": {"image": "/a:b"}}, "without ':'"),
        ({"boot": {"timeout": 0}}, "timeout"),
        ({"libraries": [{"path": "/a/../b"}]}, "absolute path"),
        ({"libraries": [{}]}, "path"),
        ({"envPrefix": "1X"}, "start of a variable's name"),
        ({"record": "x"}, "absolute path"),
    ],
)
def test_options_that_are_refused(make: Make, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make("kernel", **options)
