# SPDX-License-Identifier: Apache-2.0
"""Everything else that registers with the kernel's fpga_manager class: the FPGA of a system on chip, cards of other vendors.

The class tells a name and a state (ABI/testing/sysfs-class-fpga-manager) and has no device file, so that there is nothing to hold a container to. The
configuration must say which device files belong to a manager; without that it is told, and not offered.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence

from msgspec import Struct, field

from deviceplugin import Skipped
from deviceplugin.plugins.fpga.config import ManagerFiles
from deviceplugin.plugins.fpga.hardware import Card, Driver, Port
from deviceplugin.plugins.fpga.snapshot import Reading, Snapshot, pci_directory

CLASS = "/sys/class/fpga_manager"


class Layout(Struct):
    """The directory of each manager that no other probe covers, and the directory of the device that it is a part of."""

    managers: dict[str, str] = field(default_factory=dict)


def survey(snapshot: Snapshot) -> Layout:
    """Finds the managers, less those of DFL engines."""
    snapshot.list((CLASS,))
    links = [f"{CLASS}/{name}" for name in snapshot.names[CLASS]]
    snapshot.follow(links)
    real = [snapshot.real[link] for link in links if link in snapshot.real]
    return Layout({one: one.partition("/fpga_manager/")[0] for one in real if "/dfl-fme." not in one and "/fpga_manager/" in one})


def attributes(layout: Layout) -> Iterator[str]:
    """All that is to be read."""
    for directory, parent in layout.managers.items():
        yield from (f"{directory}/{name}" for name in ("name", "state"))
        yield from (f"{one}/numa_node" for one in (parent, pci_directory(parent)) if one)


def nodes(files: Sequence[ManagerFiles]) -> Iterator[str]:
    """The device files to look at."""
    for one in files:
        yield from one.nodes


def build(snapshot: Snapshot, layout: Layout, files: Sequence[ManagerFiles]) -> Iterator[Port | Skipped]:
    """One port for each manager that the configuration has files for."""
    taken: dict[int, str] = {}
    for directory, parent in layout.managers.items():
        reading = Reading(snapshot)
        kernel_name, device = os.path.basename(directory), os.path.basename(parent)
        name = reading.text(f"{directory}/name")
        which = next((i for i, one in enumerate(files) if fnmatch.fnmatchcase(name, one.name) and fnmatch.fnmatchcase(device, one.device)), None)
        if which is None:
            yield Skipped(
                kernel_name, f"{name or device}: the class has no device files to hold a container to; say under managers which are its own"
            )
            continue
        if which in taken:
            yield Skipped(kernel_name, f"{name}: its device files are those of {taken[which]}: say with device which of the two has them")
            continue
        taken[which] = kernel_name
        chosen = files[which].nodes
        state = reading.text(f"{directory}/state")
        faults = [f"node: there is no device file {node}" for node in chosen if node not in snapshot.numbers]
        if not state and not reading.unread:
            reading.unread.append(f"there is no {directory}/state, or it is empty")
        yield Port(
            card=Card(id=device, driver=Driver.MANAGER, state=state, unread=tuple(reading.unread)),
            address=device,
            number=0,
            name=kernel_name,
            nodes=tuple(chosen),
            kind=files[which].resource,
            numa=reading.numa(parent, pci_directory(parent)),
            faults=tuple(faults),
        )
