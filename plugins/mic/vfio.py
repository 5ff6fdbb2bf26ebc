# SPDX-License-Identifier: Apache-2.0
"""Cards that are bound to vfio-pci, to be handed to one container whole: the IOMMU keeps them from everything else.

What a container gets is an IOMMU group, so all devices of the group count: it is given to nobody while a driver of the host's has one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from deviceplugin import Health, Host, Skipped, sysfs
from deviceplugin.plugins.mic import pci
from deviceplugin.plugins.mic.cards import slot_id
from deviceplugin.plugins.mic.state import WELL, Finding

NODES = "/dev/vfio"
CONTROL = f"{NODES}/vfio"
"""Through it a program makes the address space that groups are put in. It opens nothing by itself."""

_GROUPS = "/sys/kernel/iommu_groups"
_DRIVER = "vfio-pci"
# The kernel counts a group as safe with these beside vfio's own drivers, and with bridges (drivers/vfio/vfio.c, vfio_dev_viable).
_HARMLESS = ("pci-stub", "pcieport")
_BRIDGE = "0x0604"


class Passed(Struct, frozen=True, kw_only=True):
    """A card to be passed through. ``cards`` are the addresses of all that come with its group, itself the first."""

    address: str
    family: str
    group: str
    cards: tuple[str, ...]
    finding: Finding
    numa: int | None

    @property
    def id(self) -> str:
        return slot_id(self.address, "mic-vfio")

    @property
    def node(self) -> str:
        return f"{NODES}/{self.group}"


def look(host: Host, families: Mapping[str, str]) -> Iterator[Passed | Skipped]:
    """What can be passed through of the cards on the bus, by address, and why the others cannot."""
    taken: dict[str, str] = {}
    for address in sorted(families):
        try:
            one = _look(host, address, families)
        except sysfs.SysfsError as error:
            one = Skipped(address, str(error))
        if isinstance(one, Passed):
            first = taken.setdefault(one.group, address)
            if first != address:
                one = Skipped(address, f"comes with {first}: both are in IOMMU group {one.group}, which has one holder")
        yield one


def _look(host: Host, address: str, families: Mapping[str, str]) -> Passed | Skipped:
    place = sysfs.realpath(host, f"{pci.DEVICES}/{address}")
    driver = sysfs.link(host, place, "driver")
    if driver != _DRIVER:
        has = f"is bound to {driver}, which shows no card in /sys/class/mic" if driver else "has no driver"
        return Skipped(address, f"{has}: load the driver of its MPSS, or bind it to {_DRIVER} to have it passed through")
    group = sysfs.link(host, place, "iommu_group")
    if group is None:
        return Skipped(address, "is in no IOMMU group: switch the IOMMU on (intel_iommu=on)")
    if sysfs.read(host, f"{_GROUPS}/{group}/name") == "vfio-noiommu":
        return Skipped(address, "is used without an IOMMU (enable_unsafe_noiommu_mode): nothing would keep it from the host's memory")
    others = [one for one in sysfs.entries(host, f"{_GROUPS}/{group}/devices") if one != address]
    cards, finding = [address], WELL
    for other in others:
        at = sysfs.realpath(host, f"{pci.DEVICES}/{other}")
        its = sysfs.link(host, at, "driver")
        if its == _DRIVER and other in families:
            cards.append(other)
        elif its == _DRIVER and not _same_slot(address, other):
            return Skipped(address, f"shares IOMMU group {group} with {other}, which would be given away with it: unbind {other} from {_DRIVER}")
        elif its not in (None, _DRIVER, *_HARMLESS) and not (sysfs.read(host, f"{at}/class") or "").startswith(_BRIDGE):
            finding = Finding(Health.UNHEALTHY, f"group: {other} in IOMMU group {group} is bound to {its}")
    if finding is WELL:
        gone = [node for node in (CONTROL, f"{NODES}/{group}") if sysfs.device_number(host, node) is None]
        finding = Finding(Health.UNHEALTHY, f"node: {gone[0]} is not there") if gone else WELL
    return Passed(address=address, family=families[address], group=group, cards=tuple(cards), finding=finding, numa=sysfs.numa_node_of(host, place))


def _same_slot(one: str, other: str) -> bool:
    return one.rpartition(".")[0] == other.rpartition(".")[0]
