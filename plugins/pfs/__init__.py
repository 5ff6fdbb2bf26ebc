# SPDX-License-Identifier: Apache-2.0
"""Slots for bandwidth to a parallel file system: Lustre, Spectrum Scale, BeeGFS and others. See docs/pfs.md."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from deviceplugin import Allocation, Device, Edits, Health, Host, Plugin, Skipped, Verdict, sysfs
from deviceplugin import Mount as BindMount
from deviceplugin.events import Watch
from deviceplugin.plugins.pfs import advice, audit, clients, contents, mounts, processes
from deviceplugin.plugins.pfs.commands import NOT_ASKED, Commands, Runner
from deviceplugin.plugins.pfs.config import FileSystem, PfsConfig
from deviceplugin.plugins.pfs.debounce import Debounce
from deviceplugin.plugins.pfs.mounts import Mount
from deviceplugin.plugins.pfs.private import PrivateMounts
from deviceplugin.plugins.pfs.slots import Recent, Slots

__all__ = ["Pfs", "PfsConfig"]

LOOK_AGAIN = 2.0
"""Seconds to the next look while it is not settled whether a file system is well."""


class SlotDirectoryError(Exception):
    """A slot's directory is not there, or its file system does not answer; the text says which."""


class Pfs(Plugin):
    """Slots of the file systems in the configuration. One instance serves them all."""

    Config = PfsConfig
    config: PfsConfig

    def __init__(
        self,
        config: PfsConfig | None = None,
        host: Host | None = None,
        commands: Runner | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config or PfsConfig(), host)
        directory = self.config.directory
        self.commands = commands or Commands(self.host, self.config.node_process)
        self._by_resource = {self.config.resource(one): one for one in self.config.filesystems}
        self._slots = {one.name: Slots(self.host, one, f"{directory}/{one.name}/slots.json", clock) for one in self.config.filesystems}
        self._private = {
            one.name: PrivateMounts(self.host, self.commands, one, directory, self.config.node_process)
            for one in self.config.filesystems
            if one.private_mount is not None
        }
        self._in_use = {name: Recent(clock) for name in self._private}
        """The private mounts that containers have, by their lowest slot."""
        self._debounce = Debounce()
        self._tagging: bool | None = None
        self._problems: dict[str, str] = {}
        self._targets: dict[str, str] = {}
        """Where the file systems were mounted when last seen, by name."""
        self._watching: Watch | None = None
        self._changed = False
        self._stopped = False

    def discover(self) -> Iterator[Device | Skipped]:
        """The slots of every file system. A file system that is ill or not mounted has unhealthy ones."""
        table = mounts.read(self.host, self.config.node_process)
        tagging = self._look_at_tags()
        answers = self._ask(table)
        seen: set[str] = set()
        for filesystem in self.config.filesystems:
            resource = self.config.resource(filesystem)
            sharing = self.sharing.get(resource)
            if sharing is not None and sharing.replicas > 1:
                yield Skipped(resource, f"{sharing.replicas} containers would share a slot: take replicas out of resources, raise slots")
                continue
            numbers, problem = self._slots[filesystem.name].numbers()
            self._say(filesystem.name, problem)
            if problem:
                yield Skipped(f"slots of {filesystem.name}", problem)
            yield from self._devices(filesystem, table, numbers, answers, tagging, seen)
        self._debounce.keep(seen)
        self._wake_watch()

    def allocate(self, devices: Sequence[Device]) -> Edits:
        """The variables that name the slots, the JobID for T1, and the mounts."""
        filesystem = self._of(devices)
        self._slots[filesystem.name].give(contents.slots_of(devices))
        return contents.of(self.config, filesystem, devices, self.host.node_name)

    def prepare(self, devices: Sequence[Device]) -> None:
        """T3: sees to it that the private mount is there, with the limits of all the slots, before the container starts.

        T2: that the directories are there: the runtime would make those that are not, without a limit.
        """
        filesystem = self._of(devices)
        slots = contents.slots_of(devices)
        self._slots[filesystem.name].give(slots)
        if private := self._private.get(filesystem.name):
            self._in_use[filesystem.name].give(slots[:1])
            private.ensure(slots[0], len(slots))
        elif filesystem.tier == "T2":
            places = {mount.path: self._lock_file(filesystem) for device in devices for mount in device.mounts}
            for path, lock in places.items():  # one after the other: they have one lock
                if answer := self.commands.statfs({path: lock}, filesystem.health.statfs_seconds)[path]:
                    raise SlotDirectoryError(f"the directory of a slot of {filesystem.name} cannot be used: {answer}")

    def reconcile(self, allocations: Sequence[Allocation]) -> Iterator[Verdict]:
        """Judges every allocation, and takes away what is used no more: private mounts, slots that are too many."""
        table = mounts.read(self.host, self.config.node_process)
        scene = audit.Scene(self.host, self.config, table, processes.containers(self.host) if allocations else ())
        held: dict[str, list[list[int]]] = {one.name: [] for one in self.config.filesystems}
        for allocation in allocations:
            filesystem = self._of(allocation.devices)
            slots = contents.slots_of(allocation.devices)
            held[filesystem.name].append(slots)
            private = self._private.get(filesystem.name)
            yield Verdict(allocation, *audit.judge(scene, filesystem, slots, private, self._mount_of(filesystem, table)))
        for name, containers in held.items():
            self._changed |= self._slots[name].view(slot for slots in containers for slot in slots)
            if private := self._private.get(name):
                self._in_use[name].view((slots[0] for slots in containers), private.present(table))
        self._tidy(table)
        if self._changed:
            self._wake_watch()

    def watch(self) -> Iterator[object]:
        """Each time the mount table or a file with a number of slots changes, and soon while a file system is neither well nor ill for sure."""
        paths = [one.slots_file for one in self.config.filesystems if one.slots_file]
        with contextlib.ExitStack() as stack:
            poller = stack.enter_context(select.epoll())
            fd = os.open(self.host.path(f"{self.config.node_process}/mountinfo"), os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            try:
                # The kernel flags a change of the table as an exceptional condition (mounts_poll, fs/proc_namespace.c).
                poller.register(fd, select.EPOLLPRI | select.EPOLLERR)
            except PermissionError:  # a plain file stands in for the table
                paths.append(f"{self.config.node_process}/mountinfo")
            self._watching = watch = Watch(self.host.path(path) for path in paths)
            stack.callback(watch.close)
            if self._stopped:
                return
            yield "watching"  # what happened before was not told
            while True:
                began, pause = time.monotonic(), LOOK_AGAIN if self._debounce.unsettled else None
                if (changes := watch.wait(pause, poller.fileno())) is None:
                    return
                # A wait that ends early was woken to take another pause: what was unsettled may not be any more.
                due = pause is not None and time.monotonic() - began >= pause
                if changes or poller.poll(0) or self._changed or due:
                    self._changed = False
                    yield changes

    def stop(self) -> None:
        """Ends watch(). Private mounts stay: containers use them."""
        self._stopped = True
        if self._watching is not None:
            self._watching.close()

    def advice(self) -> Iterator[str]:
        """What must be set on the servers for the slots to mean what they say."""
        for filesystem in self.config.filesystems:
            yield from advice.of(self.config, filesystem, len(self._slots[filesystem.name].numbers()[0]), self.host.node_name)

    def uninstall(self, remove: bool) -> Iterator[str]:
        """Private mounts, then the plugin's own files."""
        for private in self._private.values():
            yield from private.uninstall(remove)
        top = self.host.path(self.config.directory)
        # Only names that are ours, and directories that are empty: below a mount that is left there would be other people's files.
        for filesystem in self.config.filesystems:
            directory = os.path.join(top, filesystem.name)
            with contextlib.suppress(FileNotFoundError):
                yield from self._uninstall_files(directory, f"{self.config.directory}/{filesystem.name}", remove)

    def _uninstall_files(self, directory: str, shown: str, remove: bool) -> Iterator[str]:
        for entry in sorted(os.scandir(directory), key=lambda one: one.name):
            if entry.name.startswith("slot"):
                if remove:
                    os.rmdir(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
                yield f"{'directory' if entry.is_dir(follow_symlinks=False) else 'file'} {shown}/{entry.name}"
        if remove:
            os.rmdir(directory)
        yield f"directory {shown}"

    def _devices(
        self,
        filesystem: FileSystem,
        table: Sequence[Mount],
        numbers: Iterable[int],
        answers: dict[str, str],
        tagging: bool,
        seen: set[str],
    ) -> Iterator[Device]:
        private = self._private.get(filesystem.name)
        mount = self._mount_of(filesystem, table)
        if mount is not None:
            self._targets[filesystem.name] = mount.target
        whole = self._believe(filesystem, f"pfs.{filesystem.name}", self._fault(filesystem, mount, answers), seen)
        present = private.present(table) if private is not None else {}
        strength = contents.enforcement(filesystem, tagging=tagging)
        facts = {"filesystem": filesystem.name, "type": filesystem.type, "tier": "T0" if filesystem.tier == "T1" and not tagging else filesystem.tier}
        for slot in numbers:
            device_id = contents.slot_id(filesystem, slot)
            verdict = whole
            if private is not None and slot in present and whole[0] is Health.HEALTHY:
                verdict = self._believe(filesystem, device_id, _said(answers.get(present[slot].target, "")), seen)
            yield Device(
                device_id,
                unit=device_id if private is not None else f"pfs.{filesystem.name}",
                resource=self.config.resource(filesystem),
                health=verdict[0],
                cause=verdict[1],
                mounts=self._bind(filesystem, slot),
                attributes={**facts, "slot": slot},
                capacity={"bandwidth": filesystem.per_slot} if filesystem.per_slot else {},
                enforcement=strength,
            )

    def _bind(self, filesystem: FileSystem, slot: int) -> list[BindMount]:
        """What of the host a slot brings into a container."""
        if not filesystem.inside:
            return []
        if private := self._private.get(filesystem.name):
            return [BindMount(private.target(slot), filesystem.inside, filesystem.read_only)]
        target = filesystem.mount_point or self._targets.get(filesystem.name, "")
        if not target:
            return []
        below = f"/{filesystem.directory_of(slot, self.host.node_name)}" if filesystem.slot_directory else ""
        return [BindMount(target + below, filesystem.inside, filesystem.read_only)]

    def _fault(self, filesystem: FileSystem, mount: Mount | None, answers: dict[str, str]) -> tuple[Health, str]:
        """The gravest thing that is wrong with a file system as such, or that it is well."""
        source = mount.source if mount is not None else filesystem.source
        if filesystem.private_mount is not None:
            source = filesystem.private_mount.source
        elif mount is None:
            return Health.UNHEALTHY, f"mount: {filesystem.mount_point or filesystem.source} is not mounted"
        elif not clients.fits(filesystem, mount):
            return Health.UNHEALTHY, f"mount: {mount.target} is {mount.fstype}, not {filesystem.type}"
        elif answer := answers.get(mount.target):
            return _said(answer)
        faults = list(clients.faults(self.host, self.commands, filesystem, mount, source, self._lock_file(filesystem)))
        return next((one for one in faults if one[0] is Health.UNHEALTHY), next(iter(faults), (Health.HEALTHY, "")))

    def _believe(self, filesystem: FileSystem, name: str, fault: tuple[Health, str], seen: set[str]) -> tuple[Health, str]:
        seen.add(name)
        belief = self._debounce.see(name, *fault, failures=filesystem.health.failures, successes=filesystem.health.successes)
        return belief.health, belief.cause

    def _ask(self, table: Sequence[Mount]) -> dict[str, str]:
        """Whether each mount answers, with the longest of the limits."""
        locks: dict[str, str] = {}
        for filesystem in self.config.filesystems:
            if private := self._private.get(filesystem.name):
                locks |= {mount.target: private.lock_file(slot) for slot, mount in private.present(table).items()}
            elif mount := self._mount_of(filesystem, table):
                locks[mount.target] = self._lock_file(filesystem)
        limit = max((one.health.statfs_seconds for one in self.config.filesystems), default=0.0)
        return self.commands.statfs(locks, limit)

    def _lock_file(self, filesystem: FileSystem) -> str:
        """For what touches the file system outside of private mounts."""
        return f"{self.config.directory}/{filesystem.name}/slots.lock"

    def _mount_of(self, filesystem: FileSystem, table: Sequence[Mount]) -> Mount | None:
        """The node's own mount of a file system."""
        if filesystem.mount_point:
            return mounts.at(table, filesystem.mount_point)
        if not filesystem.source:
            return None
        return next((one for one in table if one.source == filesystem.source and clients.fits(filesystem, one) and one.root == "/"), None)

    def _look_at_tags(self) -> bool:
        """Whether Lustre takes the JobID from our variable; says so in the log when that changes."""
        if not any(one.tier == "T1" for one in self.config.filesystems):
            return False
        name = self.config.jobid_variable
        try:
            found = clients.jobid_var(self.host)
        except sysfs.SysfsError as error:
            found = str(error)
        if (found == name) is not self._tagging:
            self._tagging = found == name
            if not self._tagging:
                self.log.warning("jobid_var is %s, not %s: tier T1 is only T0 until lctl set_param jobid_var=%s", found or "not there", name, name)
        return found == name

    def _tidy(self, table: Sequence[Mount]) -> None:
        """Takes away the private mounts that nobody uses. Before the kubelet has said who holds what, there are none."""
        for name, private in self._private.items():
            busy = self._in_use[name].busy()
            if busy is None or not set(private.present(table)) - busy:
                continue
            for problem in private.remove_unused(busy, processes.devices_in_use(self.host, self.config.node_process)):
                self.log.warning("%s", problem)

    def _say(self, name: str, problem: str) -> None:
        """One line in the log when a problem comes up."""
        if problem and self._problems.get(name) != problem:
            self.log.warning("file system %s: %s", name, problem)
        self._problems[name] = problem

    def _of(self, devices: Sequence[Device]) -> FileSystem:
        return self._by_resource[devices[0].resource]

    def _wake_watch(self) -> None:
        if self._watching is not None and not self._watching.closed:
            self._watching.wake()


def _said(answer: str) -> tuple[Health, str]:
    """What an answer of statfs says of a file system's health."""
    if not answer:
        return Health.HEALTHY, ""
    return Health.UNKNOWN if answer.startswith(NOT_ASKED) else Health.UNHEALTHY, answer
