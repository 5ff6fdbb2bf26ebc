# SPDX-License-Identifier: Apache-2.0
"""What is in a container that holds slots, and how strongly each tier keeps it to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from deviceplugin import Device, Edits, Enforcement, Mount
from deviceplugin.plugins.pfs import tags
from deviceplugin.plugins.pfs.config import FileSystem, PfsConfig

ENFORCEMENT = {
    "T0": Enforcement.NONE,
    "T1": Enforcement.TAGGED,
    # The directory is the container's only way, but what its files may use is up to the servers, which this node cannot ask.
    "T2": Enforcement.TAGGED,
    "T3": Enforcement.HARD,
    # The node is capped, if anything is: one container may use another's part.
    "T4": Enforcement.ADVISORY,
}


def enforcement(filesystem: FileSystem, *, tagging: bool) -> Enforcement:
    """How strongly an allocation is enforced. ``tagging`` is whether the node's Lustre client takes the JobID from our variable."""
    if filesystem.tier == "T1" and not tagging:
        return Enforcement.NONE
    if filesystem.private_mount is not None and filesystem.type == "other" and not filesystem.private_mount.options:
        return Enforcement.ADVISORY  # a mount of its own without a limit limits nothing
    return ENFORCEMENT[filesystem.tier]


def variable(filesystem: FileSystem, what: str) -> str:
    """The name of a variable that tells of one file system: two of them may be in one container."""
    return f"KDP_PFS_{filesystem.name.upper().replace('-', '_')}_{what}"


def slot_id(filesystem: FileSystem, slot: int) -> str:
    return f"pfs.{filesystem.name}.{slot:02}"


def slots_of(devices: Sequence[Device]) -> list[int]:
    """The numbers of the slots, from the lowest."""
    return sorted(int(device.attributes["slot"]) for device in devices)


def tag(config: PfsConfig, filesystem: FileSystem, slots: Sequence[int], node: str) -> tuple[str, str]:
    """The variable and the JobID of a container."""
    return config.jobid_variable, tags.tag(filesystem.tag_prefix, len(slots), node, slots[0])


def of(config: PfsConfig, filesystem: FileSystem, devices: Sequence[Device], node: str) -> Edits:
    """What a container needs to use its slots. ``devices`` are sorted by id; each carries the mount of its own slot."""
    devices = sorted(devices, key=lambda device: int(device.attributes["slot"]))
    slots = slots_of(devices)
    tiers = {str(device.attributes["tier"]) for device in devices}
    mounts = _mounts(filesystem, devices)
    envs = {
        variable(filesystem, "SLOTS"): ",".join(device.id for device in devices),
        variable(filesystem, "ENFORCEMENT"): min(tiers),
    }
    if filesystem.per_slot:
        envs[variable(filesystem, "BANDWIDTH")] = str(len(slots) * filesystem.per_slot)
    if mounts:
        envs[variable(filesystem, "PATH")] = ":".join(mount.container_path for mount in mounts)
    if filesystem.tier == "T1":
        name, value = tag(config, filesystem, slots, node)
        envs[name] = value
    return Edits(envs=envs, mounts=mounts)


def _mounts(filesystem: FileSystem, devices: Sequence[Device]) -> tuple[Mount, ...]:
    if not filesystem.inside:
        return ()
    if filesystem.tier == "T2":  # one directory for each slot: its limits are the directory's
        return tuple(
            dataclasses.replace(mount, container_path=f"{filesystem.inside}/{number}")
            for number, device in enumerate(devices)
            for mount in device.mounts
        )
    return devices[0].mounts  # T3: the lowest slot's, with the limits of them all
