# SPDX-License-Identifier: Apache-2.0
"""T3: a mount of its own for each container, with limits of its own, which no process in the container can reach past.

The node's mount table is the record of what there is. A mount is made before a container starts and taken away when nobody uses it any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator

from msgspec import Struct

from deviceplugin import Host, files, sysfs
from deviceplugin.plugins.pfs import clients, mounts
from deviceplugin.plugins.pfs.commands import CommandFailed, Runner
from deviceplugin.plugins.pfs.config import FileSystem, PrivateMount, amount
from deviceplugin.plugins.pfs.mounts import Mount

MOUNT_SECONDS = 15.0
"""A mount that takes longer fails the start of its container, which the kubelet tries again; prepare() has 25 s in all."""
COMMAND_SECONDS = 3.0
TIDY_SECONDS = 4.0
"""After so long no further mount is taken away in one look: reconcile() has 10 s."""

_SLOT = re.compile(r"slot-(\d+)")
_INSTANCE = re.compile(r"(\S+)-([0-9a-f]+)\s")


class PrivateMountError(Exception):
    """A private mount is not as it should be; the text says how."""


class Limit(Struct, frozen=True):
    """One setting of a client: its file, what it is and what it should be."""

    path: str
    found: str
    wanted: str


class PrivateMounts:
    """The private mounts of one file system, below ``directory``. prepare and reconcile call from threads of their own."""

    def __init__(self, host: Host, commands: Runner, filesystem: FileSystem, directory: str, process: str) -> None:
        assert filesystem.private_mount is not None
        self._host = host
        self._commands = commands
        self._filesystem = filesystem
        self._mount: PrivateMount = filesystem.private_mount
        self._directory = f"{directory}/{filesystem.name}"
        self._process = process
        self._locks: dict[int, threading.Lock] = {}
        self._guard = threading.Lock()
        self._prepared: dict[int, int] = {}
        """How many slots the last container had that each slot was prepared for."""
        self._instances: dict[int, tuple[str, tuple[str, str]]] = {}
        """The number and the name of each slot's Lustre client."""

    def target(self, slot: int) -> str:
        """Where the mount for a container is whose lowest slot this is."""
        return f"{self._directory}/slot-{slot:02}"

    def lock_file(self, slot: int) -> str:
        """For whatever touches it."""
        return f"{self._directory}/slot-{slot:02}.lock"

    def present(self, table: Iterable[Mount]) -> dict[int, Mount]:
        """The private mounts in a mount table, by slot."""
        found: dict[int, Mount] = {}
        for one in table:
            top, _, name = one.target.rpartition("/")
            if top == self._directory and (number := _SLOT.fullmatch(name)):
                found[int(number[1])] = one
        return found

    def ensure(self, slot: int, slots: int) -> None:
        """Sees to it that the mount for a container with ``slots`` slots, of which ``slot`` is the lowest, is there and has its limits.

        Raises PrivateMountError, CommandFailed, SysfsError and OSError.
        """
        with self._lock(slot):
            self._prepared[slot] = slots
            target = self.target(slot)
            present = mounts.at(mounts.read(self._host, self._process), target)
            if present is not None:
                if self._as_wanted(present, slot, slots):
                    answer = self._commands.statfs({target: self.lock_file(slot)}, COMMAND_SECONDS)[target]
                    if answer:
                        raise PrivateMountError(f"the mount for slot {slot} is there and useless: {answer}")
                    self._limit(slot, slots)
                    return
                self._unmount(slot)
            self._make(slot, slots)
            self._limit(slot, slots)

    def limits(self, slot: int, slots: int) -> list[Limit]:
        """What the mount is held to and what it should be. Raises PrivateMountError, CommandFailed and SysfsError where that cannot be read."""
        if self._filesystem.type == "lustre":
            return list(self._lustre_limits(slot, slots))
        if self._filesystem.type == "beegfs":
            config = clients.beegfs_config(self._host, self._config_file(slot))
            if config is None:
                raise PrivateMountError(f"no client in {clients.BEEGFS} runs with {self._config_file(slot)}")
            wanted = str(self._mount.in_flight * slots)
            return [Limit(f"{clients.BEEGFS}/{config['']}/config", config.get("connMaxInternodeNum", ""), wanted)]
        return []

    def mend(self, slot: int, slots: int) -> bool | None:
        """Sets whatever limit is not as it should be; whether there was any. Raises as :meth:`limits`.

        None where the slot is being prepared, or was for another number of slots: who asks has heard of a container that is gone.
        """
        lock = self._lock(slot)
        if not lock.acquire(blocking=False):
            return None
        try:
            return self._limit(slot, slots) if self._prepared.get(slot, slots) == slots else None
        finally:
            lock.release()

    def _limit(self, slot: int, slots: int) -> bool:
        """Sets whatever limit is not as it should be, and reads it back; whether there was any."""
        wrong = [one for one in self.limits(slot, slots) if one.found != one.wanted]
        if wrong and self._filesystem.type == "lustre":
            # lctl, and not a write to the files: it knows where each release has them, and /sys is read-only in a container.
            settings = {(one.path.rpartition("/")[2], one.wanted) for one in wrong}
            name, instance = self._instance(slot)
            self._commands.run(
                ["lctl", "set_param", *(f"osc.{name}-OST*-osc-{instance}.{key}={value}" for key, value in sorted(settings))], COMMAND_SECONDS
            )
            left = [one for one in self.limits(slot, slots) if one.found != one.wanted]
        else:
            left = wrong
        if left:
            raise PrivateMountError(f"{left[0].path} is {left[0].found!r}, not {left[0].wanted}")
        return bool(wrong)

    def remove_unused(self, keep: Iterable[int], used_devices: Iterable[str]) -> Iterator[str]:
        """Takes the mounts away that belong to no slot of ``keep`` and are in no container's namespace, where their ``device`` would be seen.

        Yields what could not be done. A slot that is being prepared is left alone. Raises SysfsError.
        """
        devices = set(used_devices)
        stay = set(keep)
        until = time.monotonic() + TIDY_SECONDS
        for slot, mount in self.present(mounts.read(self._host, self._process)).items():
            if slot in stay or mount.device in devices or time.monotonic() > until:
                continue
            lock = self._lock(slot)
            if not lock.acquire(blocking=False):
                continue
            try:
                self._unmount(slot)
            except (CommandFailed, PrivateMountError) as error:
                yield str(error)
            finally:
                lock.release()

    def uninstall(self, remove: bool) -> Iterator[str]:
        """The mounts and files that are left, each removed first if ``remove``. Raises what :meth:`ensure` does."""
        for slot, mount in self.present(mounts.read(self._host, self._process)).items():
            if remove:
                self._unmount(slot)
            yield f"mount {mount.target}"

    def _lock(self, slot: int) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(slot, threading.Lock())

    def _as_wanted(self, present: Mount, slot: int, slots: int) -> bool:
        """Whether a mount may stay and only needs its limits set, if any. BeeGFS and others take theirs when they are mounted."""
        if present.source != self._mount.source or not self._type_fits(present):
            return False
        if self._filesystem.type == "beegfs":
            with contextlib.suppress(PrivateMountError):
                return all(one.found == one.wanted for one in self.limits(slot, slots))
            return False
        if self._filesystem.type == "other" and "{slots}" in self._mount.options:
            return set(self._options(slots)) <= set(present.options)
        return True

    def _type_fits(self, mount: Mount) -> bool:
        return mount.fstype == self._mount.fstype if self._mount.fstype else clients.fits(self._filesystem, mount)

    def _options(self, slots: int) -> list[str]:
        return [one for one in self._mount.options.replace("{slots}", str(slots)).split(",") if one]

    def _make(self, slot: int, slots: int) -> None:
        target, options = self.target(slot), self._options(slots)
        os.makedirs(self._host.path(target), mode=0o755, exist_ok=True)
        fstype = self._mount.fstype or self._filesystem.type
        if self._filesystem.type == "beegfs":
            files.replace(self._host.path(self._config_file(slot)), self._beegfs_config(slot, slots).encode(), 0o600)
            options = [f"cfgFile={self._config_file(slot)}", *options]
        argv = ["mount", "-t", fstype, *(["-o", ",".join(options)] if options else []), "--", self._mount.source, target]
        self._commands.run(argv, MOUNT_SECONDS, self.lock_file(slot))
        self._instances.pop(slot, None)
        if mounts.at(mounts.read(self._host, self._process), target) is None:
            raise PrivateMountError(f"{target} was mounted and is not in {self._process}/mountinfo: is nodeProcess a process of the node's own?")

    def _unmount(self, slot: int) -> None:
        target = self.target(slot)
        # As often as something is mounted there; -c, since looking at the path could hang.
        for _ in range(8):
            if mounts.at(mounts.read(self._host, self._process), target) is None:
                return
            self._commands.run(["umount", "-c", target], COMMAND_SECONDS, self.lock_file(slot))
        raise PrivateMountError(f"{target} is still mounted after umount said it was not")

    def _config_file(self, slot: int) -> str:
        return f"{self._directory}/slot-{slot:02}.conf"

    def _beegfs_config(self, slot: int, slots: int) -> str:
        """The configured client's file with another limit, and a port of its own if need be."""
        own = {"connMaxInternodeNum": self._mount.in_flight * slots}
        if self._mount.client_port is not None:
            own["connClientPortUDP"] = self._mount.client_port + slot
        with open(self._host.path(self._mount.config), encoding="utf-8") as file:
            lines = [line for line in file.read().splitlines() if line.partition("=")[0].strip() not in own]
        return "\n".join([*lines, *(f"{key} = {value}" for key, value in own.items()), ""])

    def _instance(self, slot: int) -> tuple[str, str]:
        """The name of the file system and of the client behind a Lustre mount: ``lfs getname`` answers ``scratch-ffff8881 /mnt/scratch``.

        It is asked once for each mount, since that touches the mount, which may hang later.
        """
        target = self.target(slot)
        mount = mounts.at(mounts.read(self._host, self._process), target)
        if mount is None:
            raise PrivateMountError(f"{target} is not mounted")
        device, known = self._instances.get(slot, ("", ("", "")))
        if device == mount.device:
            return known
        text = self._commands.run(["lfs", "getname", target], COMMAND_SECONDS, self.lock_file(slot))
        found = _INSTANCE.match(text)
        if found is None:
            raise PrivateMountError(f"lfs getname {target} says {text[:60]!r}, not the name of a client")
        self._instances[slot] = mount.device, (found[1], found[2])
        return found[1], found[2]

    def _lustre_limits(self, slot: int, slots: int) -> Iterator[Limit]:
        name, instance = self._instance(slot)
        wanted = {"max_rpcs_in_flight": str(self._mount.in_flight * slots)}
        if self._mount.dirty is not None:
            wanted["max_dirty_mb"] = str((amount(self._mount.dirty) >> 20) * slots)
        mine = [one for one in clients.oscs(self._host, name) if one.instance == instance]
        paths = [(f"{one.directory}/{key}", value) for one in mine for key, value in wanted.items()]
        if not paths:
            self._instances.pop(slot, None)  # another client may have come by the same number
            raise PrivateMountError(f"{clients.LUSTRE}/osc has no {name}-OST*-osc-{instance}")
        for (path, value), found in zip(paths, sysfs.read_many(self._host, [path for path, _ in paths]), strict=True):
            if isinstance(found, sysfs.SysfsError):
                raise found
            yield Limit(path, "" if found is None else found, value)
