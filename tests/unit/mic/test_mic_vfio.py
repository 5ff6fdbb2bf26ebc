# SPDX-License-Identifier: Apache-2.0
"""Cards that are handed over whole, and those that are not."""

from __future__ import annotations

import pytest

from deviceplugin import Edits, Enforcement, Host, sysfs
from deviceplugin.model import DeviceNode
from deviceplugin.plugins.mic import pci
from tests.unit.mic.conftest import Make

RESOURCE = "intel.com/mic-vfio"


def test_the_fixture(make: Make) -> None:
    rig = make(fixture="vfio")
    assert rig.health() == {
        "mic-vfio-0000-05-00-0": "healthy",
        "mic-vfio-0000-08-00-0": "unhealthy:group: 0000:08:00.1 in IOMMU group 13 is bound to igb",
    }
    well = rig.by_id()["mic-vfio-0000-05-00-0"]
    assert (well.resource, well.enforcement, well.numa_nodes) == (RESOURCE, Enforcement.HARD, (1,))
    assert well.attributes == {"family": "x100", "pci_address": "0000:05:00.0", "iommu_group": "12", "cards": 1}
    assert rig.plugin.allocate([well]) == Edits(
        nodes=(DeviceNode("/dev/vfio/12", "/dev/vfio/12", "rw"), DeviceNode("/dev/vfio/vfio", "/dev/vfio/vfio", "rw")),
        envs={"PCI_RESOURCE_INTEL_COM_MIC_VFIO": "0000:05:00.0"},
    )
    assert rig.skipped() == {
        "0000:0a:00.0": "has no driver: load the driver of its MPSS, or bind it to vfio-pci to have it passed through",
        "0000:0b:00.0": "is used without an IOMMU (enable_unsafe_noiommu_mode): nothing would keep it from the host's memory",
    }


def test_a_card_goes_from_one_resource_to_the_other(make: Make) -> None:
    rig = make("mpss3")
    one, _two = rig.mics.add(), rig.mics.add()
    assert {device.resource for device in rig.devices()} == {"intel.com/mic"}
    node = rig.mics.give_to_vfio(one)
    found = {device.resource: device for device in rig.devices()}
    assert found[RESOURCE].nodes[0].path == node
    assert found["intel.com/mic"].enforcement is Enforcement.HARD  # it is the only one that SCIF reaches now
    assert len({device.id for device in found.values()}) == 2


def test_health_follows_the_group_and_the_nodes(make: Make) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    node = rig.mics.give_to_vfio(card)
    (before,) = rig.devices()
    rig.mics.neighbour(card, "0000:05:00.1", driver="snd_hda_intel", kind="0x040300")
    assert list(rig.health().values()) == ["unhealthy:group: 0000:05:00.1 in IOMMU group 5 is bound to snd_hda_intel"]
    rig.machine.link("/sys/devices/pci0000:00/0000:00:02.0/0000:05:00.1/driver", "/sys/bus/pci/drivers/vfio-pci")
    assert rig.devices() == [before]
    rig.machine.remove(node)
    assert list(rig.health().values()) == [f"unhealthy:node: {node} is not there"]
    rig.machine.device_file(node, major=511, minor=5)
    assert rig.devices() == [before]
    rig.machine.remove("/dev/vfio/vfio")
    assert list(rig.health().values()) == ["unhealthy:node: /dev/vfio/vfio is not there"]


@pytest.mark.parametrize(("driver", "kind"), [("", "0x020000"), ("pci-stub", "0x020000"), ("pcieport", "0x060400"), ("shpchp", "0x060400")])
def test_what_the_kernel_counts_as_harmless_in_a_group(make: Make, driver: str, kind: str) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    rig.mics.give_to_vfio(card)
    rig.mics.neighbour(card, "0000:00:03.0", driver=driver, kind=kind)
    assert list(rig.health().values()) == ["healthy"]


def test_a_strangers_device_is_not_given_away_with_a_card(make: Make) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    rig.mics.give_to_vfio(card)
    rig.mics.neighbour(card, "0000:07:00.0", driver="vfio-pci")
    assert rig.devices() == []
    assert rig.skipped() == {
        card.address: "shares IOMMU group 5 with 0000:07:00.0, which would be given away with it: unbind 0000:07:00.0 from vfio-pci"
    }


def test_two_cards_of_one_group_are_one_device(make: Make) -> None:
    rig = make("kernel")
    one, two = rig.mics.add(), rig.mics.add()
    for card in (one, two):
        rig.mics.give_to_vfio(card)
    rig.machine.link(f"{two.pci}/iommu_group", "/sys/kernel/iommu_groups/5")
    rig.machine.remove(f"/sys/kernel/iommu_groups/6/devices/{two.address}")
    rig.machine.link(f"/sys/kernel/iommu_groups/5/devices/{two.address}", two.pci)
    (both,) = rig.devices()
    assert both.id == "mic-vfio-0000-05-00-0"
    assert both.attributes["cards"] == 2
    assert rig.skipped() == {"0000:06:00.0": "comes with 0000:05:00.0: both are in IOMMU group 5, which has one holder"}


def test_a_card_without_a_group_and_one_with_a_strange_driver(make: Make) -> None:
    rig = make("kernel")
    one, two = rig.mics.add(), rig.mics.add()
    for card in (one, two):
        rig.mics.give_to_vfio(card)
    rig.machine.remove(f"{one.pci}/iommu_group")
    rig.machine.link(f"{two.pci}/driver", "/sys/bus/pci/drivers/uio_pci_generic")
    assert rig.devices() == []
    assert rig.skipped() == {
        one.address: "is in no IOMMU group: switch the IOMMU on (intel_iommu=on)",
        two.address: "is bound to uio_pci_generic, which shows no card in /sys/class/mic: load the driver of its MPSS, or bind it to vfio-pci "
        "to have it passed through",
    }


def test_what_cannot_be_read_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make("kernel")
    cards = [rig.mics.add() for _ in range(2)]
    for card in cards:
        rig.mics.give_to_vfio(card)
    real = sysfs.entries_many

    def entries_many(host: Host, paths: list[str]) -> list[list[str] | sysfs.SysfsError]:
        return [
            sysfs.SysfsError(path, "Input/output error") if "groups/5" in path else one for path, one in zip(paths, real(host, paths), strict=True)
        ]

    monkeypatch.setattr(sysfs, "entries_many", entries_many)
    assert list(rig.by_id()) == ["mic-vfio-0000-06-00-0"]
    assert rig.skipped() == {"0000:05:00.0": "/sys/kernel/iommu_groups/5/devices cannot be read: Input/output error"}


@pytest.mark.parametrize("device", [*range(0x2250, 0x225F), 0x2260, 0x2262, 0x2263, 0x2264, 0x2265])
def test_every_card_is_known_by_its_pci_id(device: int) -> None:
    assert pci.family(f"pci:v00008086d{device:08X}sv00008086sd00002500bc0Bsc40i00") == ("x100" if device < 0x2260 else "x200")


@pytest.mark.parametrize(
    "alias", ["", "pci:v00008086d0000224Fsv", "pci:v00008086d00002261sv", "pci:v000010DEd00002250sv", "usb:v8086p2250", "pci:v0000"]
)
def test_nothing_else_is(alias: str) -> None:
    assert pci.family(alias) == ""
