# SPDX-License-Identifier: Apache-2.0
"""What the file systems' clients in the kernel say of themselves."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping

from msgspec import Struct

from deviceplugin import Health, Host, sysfs
from deviceplugin.plugins.pfs.commands import CommandFailed, Runner
from deviceplugin.plugins.pfs.config import FileSystem
from deviceplugin.plugins.pfs.mounts import Mount

LUSTRE = "/sys/fs/lustre"
BEEGFS = "/proc/fs/beegfs"
MMGETSTATE = "/usr/lpp/mmfs/bin/mmgetstate"
COMMAND_SECONDS = 5.0

_SHOWN = 3
_FSTYPES = {"lustre": ("lustre",), "gpfs": ("gpfs", "mmfs"), "beegfs": ("beegfs",)}
_DEVICE = re.compile(r"(?P<fsname>.{1,8})-(?P<target>(OST|MDT)[0-9a-f]{4})-(?P<kind>osc|mdc)-(?P<instance>[0-9a-f]+)")
_STATE = re.compile(r"^ *state: *(\S+)", re.MULTILINE)
_TARGET = re.compile(r"\[Target ID: (\d+)\] @ (.*): (\S+) / (\S+)")

# Lustre keeps an import it has not used for idle_timeout seconds disconnected on purpose (IDLE, since 2.12).
_CONNECTED = ("FULL", "IDLE")
# Not ours to see: debugfs under kernel lockdown, a program that is not installed. That says nothing of the file system.
_NOT_SHOWN = (os.strerror(errno.EPERM), os.strerror(errno.EACCES))

Fault = tuple[Health, str]
"""What is wrong, unhealthy or unknown, and its cause."""


class Osc(Struct, frozen=True):
    """One connection of a Lustre client to a target. ``instance`` tells the mounts of one file system on one node apart."""

    name: str
    target: str
    instance: str

    @property
    def directory(self) -> str:
        """Where its settings are."""
        kind = "osc" if self.target.startswith("OST") else "mdc"
        return f"{LUSTRE}/{kind}/{self.name}"


def fits(filesystem: FileSystem, mount: Mount) -> bool:
    """Whether the mount is of the file system's type."""
    return mount.fstype in _FSTYPES.get(filesystem.type, (mount.fstype,))


def fsname(source: str) -> str:
    """A Lustre file system's name, from what it is mounted from: ``10.0.0.1@tcp:10.0.0.2@tcp:/scratch/sub``."""
    return source.partition(":/")[2].partition("/")[0]


def faults(host: Host, commands: Runner, filesystem: FileSystem, mount: Mount | None, source: str, lock: str) -> Iterator[Fault]:
    """Everything that the client says is wrong. ``mount`` is the node's own, if there is one; ``source`` what it is
    mounted from; ``lock`` is for :meth:`Runner.run`.
    """
    if filesystem.type == "lustre":
        yield from _lustre(host, fsname(source))
    elif filesystem.type == "beegfs" and mount is not None:
        yield from _beegfs(host, mount)
    elif filesystem.type == "gpfs":
        yield from _gpfs(commands, lock)


def oscs(host: Host, name: str) -> list[Osc]:
    """The connections of a Lustre file system's mounts to its targets. Raises SysfsError."""
    return list(_oscs(host, name, ("osc",)))


def jobid_var(host: Host) -> str | None:
    """What Lustre takes the JobID from; None if the client is not there. Raises SysfsError."""
    return sysfs.read(host, f"{LUSTRE}/jobid_var")


def beegfs_config(host: Host, cfg_file: str) -> Mapping[str, str] | None:
    """The configuration that the BeeGFS mount with this file runs with; None if there is no such mount. Raises SysfsError."""
    for client in sysfs.entries(host, BEEGFS):
        values = _pairs(sysfs.read(host, f"{BEEGFS}/{client}/config") or "")
        if values.get("cfgFile") == cfg_file:
            return {**values, "": client}
    return None


def _oscs(host: Host, name: str, kinds: tuple[str, ...]) -> Iterator[Osc]:
    for kind in kinds:
        for entry in sysfs.entries(host, f"{LUSTRE}/{kind}"):
            found = _DEVICE.fullmatch(entry)
            if found and found["fsname"] == name and found["kind"] == kind:
                yield Osc(entry, found["target"], found["instance"])


def _lustre(host: Host, name: str) -> Iterator[Fault]:
    try:
        health = sysfs.read(host, f"{LUSTRE}/health_check")
        targets = list(_oscs(host, name, ("osc", "mdc")))
    except sysfs.SysfsError as error:
        yield Health.UNKNOWN, f"read: {error}"
        return
    if health is None:
        yield Health.UNHEALTHY, f"client: {LUSTRE}/health_check is not there: the module lustre is not loaded"
        return
    if health != "healthy":
        yield Health.UNHEALTHY, f"client: health_check is {health[:60]!r}"
    # debugfs has the imports; before 2.12 /proc did.
    paths = [f"{top}/{'mdc' if one.target.startswith('MDT') else 'osc'}/{one.name}/import" for top in _IMPORTS for one in targets]
    texts = sysfs.read_many(host, [*(f"{one.directory}/active" for one in targets), *paths])
    active, states = texts[: len(targets)], texts[len(targets) :]
    lost, unread = [], ""
    for number, one in enumerate(targets):
        if active[number] == "0":  # an administrator has taken the target out of use
            continue
        found = states[number] if states[number] is not None else states[number + len(targets)]
        if isinstance(found, sysfs.SysfsError):
            unread = unread or ("" if found.reason in _NOT_SHOWN else str(found))
        elif found is not None and (state := _STATE.search(found)):
            if state[1] not in _CONNECTED:
                lost.append(f"{one.target} is {state[1][:20]}")
        elif found is not None:
            unread = unread or f"no state in the import of {one.name}"
    if lost:
        yield Health.UNHEALTHY, f"import: {', '.join(lost[:_SHOWN])}" + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
    elif unread:
        yield Health.UNKNOWN, f"read: {unread}"


_IMPORTS = ("/sys/kernel/debug/lustre", "/proc/fs/lustre")


def _beegfs(host: Host, mount: Mount) -> Iterator[Fault]:
    try:
        config = beegfs_config(host, mount.option("cfgFile") or "")
        if config is None:
            return  # which of the clients belongs to the mount cannot be told: statfs speaks for it
        client = config[""]
        texts = [sysfs.read(host, f"{BEEGFS}/{client}/{kind}_target_state") or "" for kind in ("meta", "storage")]
    except sysfs.SysfsError as error:
        yield Health.UNKNOWN, f"read: {error}"
        return
    lost = [f"target {found[1]} of {found[2][:40]} is {found[3]}" for text in texts for found in _TARGET.finditer(text) if found[3] != "Online"]
    if lost:
        yield Health.UNHEALTHY, f"target: {', '.join(lost[:_SHOWN])}" + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")


def _gpfs(commands: Runner, lock: str) -> Iterator[Fault]:
    """What ``mmgetstate -Y`` answers is a header and a line of fields, separated by colons."""
    try:
        lines = [line.split(":") for line in commands.run([MMGETSTATE, "-Y"], COMMAND_SECONDS, lock).splitlines() if line.startswith("mmgetstate:")]
    except CommandFailed as error:
        yield Health.UNKNOWN, f"mmgetstate: {error}"
        return
    header = next((line for line in lines if "HEADER" in line), [])
    values = next((line for line in lines if "HEADER" not in line), [])
    state = dict(zip(header, values, strict=False)).get("state", "")
    if not state:
        yield Health.UNKNOWN, f"mmgetstate: no state in what {MMGETSTATE} -Y says"
    elif state != "active":
        yield Health.UNHEALTHY, f"mmgetstate: GPFS is {state[:40]} on this node"


def _pairs(text: str) -> dict[str, str]:
    return {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in text.splitlines()) if equals}
