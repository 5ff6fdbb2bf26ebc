# SPDX-License-Identifier: Apache-2.0
"""Whether what a container was promised is so: judged from the node's mounts, the container's, and its processes."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from msgspec import Struct

from deviceplugin import Host
from deviceplugin.plugins.pfs import clients, contents, mounts, processes
from deviceplugin.plugins.pfs.commands import CommandFailed
from deviceplugin.plugins.pfs.config import FileSystem, PfsConfig
from deviceplugin.plugins.pfs.mounts import Mount
from deviceplugin.plugins.pfs.private import PrivateMountError, PrivateMounts
from deviceplugin.plugins.pfs.processes import Container
from deviceplugin.sysfs import SysfsError

Finding = tuple[bool | None, str]
"""Whether it is enforced, None where that cannot be seen, and why not."""

UNSEEN = "no process of it is to be seen"


class Scene(Struct, frozen=True):
    """What was seen of the node in one look."""

    host: Host
    config: PfsConfig
    table: tuple[Mount, ...]
    containers: Sequence[Container]


def judge(scene: Scene, filesystem: FileSystem, slots: Sequence[int], private: PrivateMounts | None, shared: Mount | None) -> Finding:
    """What is to be said of a container that holds these slots. ``shared`` is the node's mount of the file system. Mends limits of private mounts."""
    if filesystem.tier == "T0":
        return None, "the slots are counted and nothing limits what a container uses"
    if filesystem.tier == "T4":
        return None, "the servers may cap the node as a whole; nothing limits one container"
    mark = contents.variable(filesystem, "SLOTS"), ",".join(contents.slot_id(filesystem, slot) for slot in slots)
    mine = [one for one in scene.containers if one.has(*mark)]
    if len(mine) > 1:
        return False, f"{len(mine)} containers say that they hold {mark[1]}"
    container = mine[0] if mine else None
    try:
        if filesystem.tier == "T1":
            return _tagged(scene, filesystem, slots, container)
        if private is not None:
            return _private(scene, filesystem, slots, container, private)
        return _directories(scene, filesystem, slots, container, shared)
    except (SysfsError, CommandFailed) as error:
        return None, f"cannot be verified: {error}"
    except PrivateMountError as error:
        return False, str(error)


def _tagged(scene: Scene, filesystem: FileSystem, slots: Sequence[int], container: Container | None) -> Finding:
    name, tag = contents.tag(scene.config, filesystem, slots, scene.host.node_name)
    variable = clients.jobid_var(scene.host)
    if variable != name:
        return False, f"jobid_var is {variable or 'not there'}, not {name}: type lctl set_param jobid_var={name} on the node"
    if container is None:
        return None, UNSEEN
    for process in container.processes:
        value = process.environ.get(name)
        if value != tag:
            return False, f"process {process.pid} runs with {name}={value!r}, not {tag}: its pod sets it" if value is not None else (
                f"process {process.pid} runs without {name}: something in the container has taken it away"
            )
    return True, f"all {len(container.processes)} processes carry {tag}; whether the servers have its rule cannot be seen from here"


def _private(scene: Scene, filesystem: FileSystem, slots: Sequence[int], container: Container | None, private: PrivateMounts) -> Finding:
    target = private.target(slots[0])
    mount = mounts.at(scene.table, target)
    if mount is None:
        return (False, f"{target} is not mounted any more") if container is not None else (None, UNSEEN)
    if other := next((one for one in scene.table if one.device == mount.device and one.target != target), None):
        return False, f"{target} is no client of its own: {other.target} is the same one; see that the mount options keep them apart"
    mended = private.mend(slots[0], len(slots))
    if mended is None:
        return None, "another container is being started with its slots"
    if container is None:
        return None, UNSEEN
    table = processes.table_of(scene.host, container)
    if table is None:
        return None, UNSEEN
    inside = mounts.at(table, filesystem.inside)
    if inside is None or inside.device != mount.device:
        return False, f"{filesystem.inside} in the container is not the mount of its slots, {target}"
    if other := next((one for one in table if one.device != mount.device and _same(filesystem, one, mount)), None):
        return False, f"the container has another way to the file system, which is not limited: {other.target}"
    if filesystem.type == "other":
        return _options(filesystem, len(slots), mount)
    return True, "a limit was not as it should be and was set again" if mended else ""


def _options(filesystem: FileSystem, slots: int, mount: Mount) -> Finding:
    """A file system that the plugin knows nothing of is held to the options that the kernel shows."""
    assert filesystem.private_mount is not None
    wanted = [one for one in filesystem.private_mount.options.replace("{slots}", str(slots)).split(",") if one]
    hidden = [one for one in wanted if one not in mount.options]
    if not wanted:
        return None, "the mount is the container's own and has no limit"
    return (None, f"the mount is the container's own; the kernel does not show {hidden[0]}") if hidden else (True, "")


def _directories(scene: Scene, filesystem: FileSystem, slots: Sequence[int], container: Container | None, shared: Mount | None) -> Finding:
    if container is None:
        return None, UNSEEN
    if shared is None:
        return None, "the file system is not mounted on the node any more"
    table = processes.table_of(scene.host, container)
    if table is None:
        return None, UNSEEN
    top, node = shared.root.rstrip("/"), scene.host.node_name
    roots = [posixpath.normpath(f"{top}/{filesystem.directory_of(slot, node)}") for slot in slots]
    for number, root in enumerate(roots):
        path = f"{filesystem.inside}/{number}"
        inside = mounts.at(table, path)
        if inside is None or (inside.device, inside.root) != (shared.device, root):
            return False, f"{path} in the container is not {root} of the file system"
    if wider := _wider(table, shared.device, roots):
        return False, f"the container has another way to the file system: {wider.target}"
    return True, "it sees no directory but its own; whether the servers limit that cannot be seen from here"


def _wider(table: Iterable[Mount], device: str, roots: Sequence[str]) -> Mount | None:
    mine = [one for one in table if one.device == device]
    return next((one for one in mine if not any(f"{one.root}/".startswith(f"{root}/") for root in roots)), None)


def _same(filesystem: FileSystem, one: Mount, private: Mount) -> bool:
    """Whether a mount is of the file system that the private one is of."""
    assert filesystem.private_mount is not None
    if one.fstype != private.fstype:
        return False
    if filesystem.type == "lustre":
        return clients.fsname(one.source) == clients.fsname(private.source)
    if filesystem.type == "beegfs":  # they all have the same source; the node's own runs with the file that ours are made from
        return one.option("cfgFile") == filesystem.private_mount.config
    return one.source == private.source and "/" in private.source  # "none" and "tmpfs" say nothing
