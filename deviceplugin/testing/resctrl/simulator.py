# SPDX-License-Identifier: Apache-2.0
"""resctrl without the hardware: what the kernel would answer, with its error numbers and its words.

Mirrors fs/resctrl/ and arch/x86/kernel/cpu/resctrl/ of Linux 6.16 and later, and kernfs below them. Not there: CDP of L2, SMBA, pseudo-locking
(refused, as on any CPU but Broadwell server and Goldmont), event configuration, counter assignment, io_alloc.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from deviceplugin.testing.resctrl.controls import Kind
from deviceplugin.testing.resctrl.files import MONITORS, Directory, File, Files, Node
from deviceplugin.testing.resctrl.groups import Group, refuse
from deviceplugin.testing.resctrl.kernel import Kernel
from deviceplugin.testing.resctrl.processes import RealTasks
from deviceplugin.testing.resctrl.scenarios import Scenario
from deviceplugin.testing.resctrl.tasks import Caller, Tasks

_PAGE = 4096
_HOST = Caller()


class SimResctrl:
    """A machine's resctrl, mounted unless ``mounted`` says otherwise. Without a mount its directory is there and empty.

    Paths are relative to /sys/fs/resctrl, ``""`` is its top. Errors are OSError with the kernel's number, and ``info/last_cmd_status`` says what the
    kernel says there. ``clock`` is what RMIDs in limbo go by. Any thread may call; each call is one step, as under the kernel's rdtgroup_mutex.

    The machine's tasks are made with :meth:`spawn`; with ``real`` they are those of the machine that this runs on (see :class:`RealTasks`).
    """

    def __init__(self, scenario: Scenario, *, mounted: bool = True, clock: Callable[[], float] = time.monotonic, real: bool = False) -> None:
        self.scenario = scenario
        self._simulated = Tasks()
        self._kernel = Kernel(scenario, clock, RealTasks() if real else self._simulated)
        self._files = Files(self._kernel)
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        if mounted:
            self.mount(scenario.options)

    def list(self, path: str) -> list[str]:
        """The names in a directory."""
        with self._lock:
            return list(self._directory(path).entries())

    def read(self, path: str, caller: Caller = _HOST) -> bytes:
        """All of a file."""
        with self._lock:
            return self._file(path).show(caller).encode("utf-8", "surrogateescape")

    def write(self, path: str, data: bytes, caller: Caller = _HOST) -> None:
        """Opens the file and writes once."""
        with self._lock:
            file = self._file(path)
            if file.store is None:  # KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK: root is refused as well
                raise refuse(errno.EACCES)
            if len(data) > _PAGE:  # atomic_write_len
                raise refuse(errno.E2BIG)
            file.store(data.decode("utf-8", "surrogateescape"), caller)

    def stat(self, path: str) -> os.stat_result:
        """Type, permissions and the number of links; kernfs says 0 bytes of every file."""
        with self._lock:
            node = self._node(path)
            if isinstance(node, File):
                mode, links = stat.S_IFREG | (0o644 if node.store else 0o444), 1
            else:
                mode, links = stat.S_IFDIR | 0o755, 2 + sum(isinstance(entry, Directory) for entry in node.entries().values())
            return os.stat_result((mode, 0, 0, links, 0, 0, 0, 0, 0, 0))

    def mkdir(self, path: str) -> None:
        """Makes a group, or one that monitors (rdtgroup_mkdir())."""
        with self._lock:
            if not path:
                raise refuse(errno.EEXIST)
            above, name = self._above(path)
            if name in above.entries():
                raise refuse(errno.EEXIST)
            if not self._kernel.mounted:  # sysfs has no mkdir
                raise refuse(errno.EPERM)
            if "\n" in name:
                raise refuse(errno.EINVAL)
            if above.group is self._kernel.groups.root and above.is_group:
                self._kernel.make_group(name)
            elif not self.scenario.rmids:
                raise refuse(errno.EPERM)
            elif above.group is None:  # in info
                raise refuse(errno.ENODEV)
            elif not self._is_monitors(os.path.dirname(path), name):
                self._kernel.status.clear()
                raise refuse(errno.EPERM)
            else:
                self._kernel.make_monitor(above.group, name)

    def rmdir(self, path: str) -> None:
        """Removes a group, whatever is in it (rdtgroup_rmdir())."""
        with self._lock:
            if not path:  # a mount point
                raise refuse(errno.EBUSY)
            node = self._node(path)
            if isinstance(node, File):
                raise refuse(errno.ENOTDIR)
            group = node.group
            if group is None or not node.is_group:
                raise refuse(errno.EPERM)
            if group.parent:
                self._kernel.remove_monitor(group)
            else:
                self._kernel.remove_group(group)

    def rename(self, old: str, new: str) -> None:
        """Moves a group that monitors (rdtgroup_rename()); no other can be."""
        status = self._kernel.status
        with self._lock:
            if not self.scenario.renames:
                raise refuse(errno.EPERM)
            node = self._node(old)
            above, name = self._above(new)
            group = self._above(old)[0].group if isinstance(node, File) else node.group
            if group is None or above.group is None:
                raise refuse(errno.ENOENT)
            status.clear()
            if isinstance(node, File):
                raise status.refuse(errno.EPERM, "Source and destination must be directories")
            if not group.parent or not node.is_group:
                raise status.refuse(errno.EPERM, "Source must be a MON group\n")
            if not self._is_monitors(os.path.dirname(new), name):
                raise status.refuse(errno.EPERM, "Destination must be a mon_groups subdirectory\n")
            if group.cpus and group.parent is not above.group:
                raise status.refuse(errno.EPERM, "Cannot move a MON group that monitors CPUs\n")
            if name in above.entries():
                raise refuse(errno.EEXIST)
            self._kernel.move_monitor(group, above.group, name)

    def seen_by(self, caller: Caller) -> View:
        """The same files for another reader and writer, such as one in a container's PID namespace."""
        return View(self, caller)

    @property
    def mounted(self) -> bool:
        return self._kernel.mounted

    @property
    def options(self) -> str:
        """As in mountinfo, after ``rw``: ``,cdp,debug`` or nothing (rdtgroup_show_options())."""
        return "".join(f",{option}" for option in ("cdp", "mba_MBps", "debug") if option in self._kernel.options)

    @property
    def online(self) -> frozenset[int]:
        """The CPUs."""
        with self._lock:
            return frozenset(self._kernel.online)

    def mount(self, options: str = "") -> None:
        """Mounts resctrl. ``options`` are those of the file system, ``cdp,debug``.

        :raises OSError: EBUSY if it is mounted, EINVAL for what the machine cannot do.
        """
        with self._lock:
            self._kernel.mount(option for option in options.split(",") if option)
        self._tell()

    def umount(self) -> None:
        """All groups go and nothing is limited any more."""
        with self._lock:
            if not self._kernel.mounted:
                raise refuse(errno.EINVAL)
            self._kernel.umount()
        self._tell()

    def offline(self, *cpus: int) -> None:
        """Takes CPUs away. A cache without any is no domain any more."""
        with self._lock:
            for cpu in cpus:
                self._kernel.offline_cpu(cpu)
        self._tell()

    def bring_online(self, *cpus: int) -> None:
        """Brings CPUs back. A domain that comes back gives everything to every group."""
        with self._lock:
            for cpu in cpus:
                if cpu not in self._kernel.online:
                    self._kernel.online_cpu(cpu)
        self._tell()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls it after each mount, umount and hotplug."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def spawn(self, parent: int = 1, *, pid: int = 0, namespace: str | None = None, thread: bool = False) -> int:
        """Forks a process, or makes a thread of it; it is in its parent's groups. Returns its number on the host. See :class:`Tasks`."""
        with self._lock:
            return self._simulated.spawn(parent, pid=pid, namespace=namespace, thread=thread)

    def exit(self, pid: int) -> None:
        """A process ends, or a thread."""
        with self._lock:
            self._simulated.exit(pid)

    def pid_in(self, namespace: str, pid: int) -> int:
        """The number in a PID namespace of the task that the host knows as ``pid``; 0 if it cannot be seen there."""
        with self._lock:
            return self._kernel.tasks[pid].seen_from(namespace)

    def cpu_resctrl_groups(self, pid: int) -> str:
        """/proc/<pid>/cpu_resctrl_groups (proc_resctrl_show()): a slash stands before the root group alone."""
        with self._lock:
            if not self._kernel.mounted:
                return "res:\nmon:\n"
            group, monitor = self._kernel.group_of(self._kernel.tasks[pid])
            return f"res:{group.name or '/'}\nmon:{monitor.name if monitor else ''}\n"

    def effective(self, group: str, domain: int) -> int:
        """The ways of a cache that the CPU lets a group fill; resctrl shows the mask that was written. With CDP, those for data."""
        with self._lock:
            kernel = self._kernel
            cache = kernel.controls.cache
            if cache is None:
                raise ValueError("this machine's L3 cannot be allocated")
            kind = Kind.DATA if cache.cdp else Kind.NONE
            return cache.effective(cache.get(cache.domains[domain], self._group(group).closid, kind))

    def count(self, group: str, domain: int, event: str, value: int) -> None:
        """Sets what the hardware has counted for a group: bytes of ``llc_occupancy`` or another event. A domain is a cache, or a node of one."""
        with self._lock:
            self._kernel.monitor.count(self._group(group), domain, event, value)

    def _group(self, path: str) -> Group:
        found = self._directory(path)
        if found.group is None or not found.is_group:
            raise ValueError(f"{path!r} is no group")
        return found.group

    def _is_monitors(self, directory: str, name: str) -> bool:
        """is_mon_groups()."""
        return os.path.basename(directory) == MONITORS and name != MONITORS

    def _node(self, path: str) -> Node:
        node: Node = self._files.top() if self._kernel.mounted else Directory(dict)
        for part in path.split("/") if path else ():
            if isinstance(node, File):
                raise refuse(errno.ENOTDIR)
            entries = node.entries()
            if part not in entries:
                raise refuse(errno.ENOENT)
            node = entries[part]
        return node

    def _directory(self, path: str) -> Directory:
        node = self._node(path)
        if isinstance(node, File):
            raise refuse(errno.ENOTDIR)
        return node

    def _file(self, path: str) -> File:
        node = self._node(path)
        if isinstance(node, Directory):
            raise refuse(errno.EISDIR)
        return node

    def _above(self, path: str) -> tuple[Directory, str]:
        directory, _, name = path.rpartition("/")
        return self._directory(directory), name


@dataclass(frozen=True, slots=True)
class View:
    """A simulated resctrl as one caller sees it. Methods as of :class:`SimResctrl`."""

    sim: SimResctrl
    caller: Caller

    def list(self, path: str) -> list[str]:
        return self.sim.list(path)

    def read(self, path: str) -> bytes:
        return self.sim.read(path, self.caller)

    def write(self, path: str, data: bytes) -> None:
        self.sim.write(path, data, self.caller)

    def stat(self, path: str) -> os.stat_result:
        return self.sim.stat(path)

    def mkdir(self, path: str) -> None:
        self.sim.mkdir(path)

    def rmdir(self, path: str) -> None:
        self.sim.rmdir(path)

    def rename(self, old: str, new: str) -> None:
        self.sim.rename(old, new)
