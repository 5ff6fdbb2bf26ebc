# SPDX-License-Identifier: Apache-2.0
"""One look at all FPGAs: sysfs in a few batches, then each driver's probe on what was read."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from deviceplugin import Host, Skipped, sysfs
from deviceplugin.plugins.fpga import intel, manager, xrt
from deviceplugin.plugins.fpga.config import ManagerFiles
from deviceplugin.plugins.fpga.hardware import Port
from deviceplugin.plugins.fpga.snapshot import Snapshot, Source


class Found(Struct, frozen=True):
    """What a look found. ``ports`` are sorted by id."""

    ports: tuple[Port, ...]
    skipped: tuple[Skipped, ...]


def look(host: Host, files: Sequence[ManagerFiles] = (), source: Source = sysfs) -> Found:
    """Everything that is there now. What cannot be read costs what it is about; raises nothing for it."""
    snapshot = Snapshot(host, source)
    engines = [intel.survey(snapshot, dialect) for dialect in (intel.DFL, intel.OPAE)]
    functions = xrt.survey(snapshot)
    managers = manager.survey(snapshot)
    snapshot.read(path for layout in engines for path in intel.attributes(layout))
    snapshot.read((*xrt.attributes(functions), *manager.attributes(managers)))
    snapshot.devices(node for layout in engines for node in intel.nodes(layout))
    snapshot.devices((*xrt.nodes(snapshot, functions), *manager.nodes(files)))
    items = [
        *(item for layout in engines for item in intel.build(snapshot, layout)),
        *xrt.build(snapshot, functions),
        *manager.build(snapshot, managers, files),
    ]
    skipped = [item for item in items if isinstance(item, Skipped)]
    skipped += [Skipped(path, str(error)) for path, error in snapshot.failed.items() if path in (*intel.DFL.tops, *intel.OPAE.tops, xrt.DEVICES)]
    ports: dict[str, Port] = {}
    for port in sorted((item for item in items if isinstance(item, Port)), key=lambda port: (port.id, port.name)):
        if port.id in ports:
            skipped.append(Skipped(port.name, f"is port {port.number} of {port.address}, as {ports[port.id].name} is: one of the two is mistaken"))
            continue
        ports[port.id] = port
    return Found(tuple(ports.values()), tuple(skipped))
