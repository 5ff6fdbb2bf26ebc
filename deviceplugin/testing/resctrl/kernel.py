# SPDX-License-Identifier: Apache-2.0
"""The kernel's state of a mounted resctrl, and what changes it (fs/resctrl/rdtgroup.c). Errors are OSError; why is in ``status``."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from deviceplugin.testing.resctrl.controls import Controls
from deviceplugin.testing.resctrl.groups import EXCLUSIVE, SHAREABLE, Group, Groups, LastCommand, refuse
from deviceplugin.testing.resctrl.monitor import Monitor, MonitorDomain, monitor_domains
from deviceplugin.testing.resctrl.parsing import Unreadable, cpu_list, cpu_mask, signed, strim
from deviceplugin.testing.resctrl.scenarios import Scenario
from deviceplugin.testing.resctrl.schemata import Schemata
from deviceplugin.testing.resctrl.tasks import Caller, Task, TaskTable

OPTIONS = frozenset({"cdp", "mba_MBps", "debug"})
"""Mount options. ``cdpl2`` is refused like an unknown one: no scenario has an L2 that can be divided."""


class Kernel:
    """State of one machine. Whoever calls sees to it that only one does at a time."""

    def __init__(self, scenario: Scenario, clock: Callable[[], float], tasks: TaskTable) -> None:
        self.scenario = scenario
        self.status = LastCommand()
        self.controls = Controls(scenario)
        self.monitor = Monitor(scenario, clock)
        self.tasks = tasks
        self.online: set[int] = set()
        self.options: frozenset[str] = frozenset()
        self.mounted = False
        self.groups = Groups(1)
        self.schemata = Schemata(self.controls, self.groups, self.status)
        for cpu in scenario.cpus:
            self.online_cpu(cpu)

    def monitor_domains(self) -> list[MonitorDomain]:
        """Those with a CPU online."""
        return [domain for domain in monitor_domains(self.scenario) if self.online.intersection(domain.cpus)]

    def online_cpu(self, cpu: int) -> None:
        """resctrl_arch_online_cpu(): the CPU is the root group's, and the first of a domain brings it back without any limits."""
        for resource in self.controls.resources:
            for domain, cpus in resource.members.items():
                if cpu in cpus and not self.online.intersection(cpus):
                    resource.add(domain)
        self.online.add(cpu)
        self.groups.root.cpus.add(cpu)

    def offline_cpu(self, cpu: int) -> None:
        """resctrl_arch_offline_cpu(): the last CPU of a domain takes it along."""
        for group in self.groups:
            group.cpus.discard(cpu)
            for child in group.monitors.values():
                child.cpus.discard(cpu)
        before = self.monitor_domains()
        self.online.remove(cpu)
        for gone in set(before) - set(self.monitor_domains()):
            self.monitor.forget(gone.id)
        for resource in self.controls.resources:
            for domain, cpus in resource.members.items():
                if cpu in cpus and not self.online.intersection(cpus):
                    resource.remove(domain)

    def mount(self, options: Iterable[str]) -> None:
        """rdt_parse_param() and rdt_get_tree()."""
        options = frozenset(options)
        cache, throttle = self.controls.cache, self.controls.throttle
        if options - OPTIONS:
            raise self.status.refuse(errno.EINVAL)
        if "mba_MBps" in options and not self._can_limit_mbps():
            raise self.status.refuse(errno.EINVAL)
        if self.mounted:
            self.status.clear()
            raise self.status.refuse(errno.EBUSY)
        if "cdp" in options and not (cache and cache.cdp_capable):
            self.status.clear()
            raise self.status.refuse(errno.EINVAL)
        if not cache and not throttle:
            raise self.status.refuse(errno.ENODEV)
        self.controls.mount(cdp="cdp" in options, mbps="mba_MBps" in options)
        root = self.groups.root
        self.groups = Groups(self.controls.closids)
        self.groups.root.cpus = root.cpus
        self.schemata = Schemata(self.controls, self.groups, self.status)
        self.options = options
        self.mounted = True
        self.status.clear()

    def _can_limit_mbps(self) -> bool:
        """supports_mba_mbps()."""
        throttle = self.controls.throttle
        measured = self.scenario.rmids and {"mbm_total_bytes", "mbm_local_bytes"} & set(self.scenario.events)
        return bool(measured and throttle and throttle.bandwidth.linear and not self.scenario.clusters)

    def umount(self) -> None:
        """rdt_kill_sb(): every task and CPU is the root group's again, and nothing is limited."""
        domains = [domain.id for domain in self.monitor_domains()]
        for task in self.tasks:
            task.closid = task.rmid = 0
        for group in self.groups:
            for gone in (*group.monitors.values(), group):
                self.monitor.give_back(gone.rmid, domains)
        self.groups = Groups(1)
        self.groups.root.cpus = set(self.online)
        self.controls.umount()
        self.options = frozenset()
        self.mounted = False

    def make_group(self, name: str) -> None:
        """rdtgroup_mkdir_ctrl_mon()."""
        self.status.clear()
        closid = self.groups.take_closid()
        if closid is None:
            raise self.status.refuse(errno.ENOSPC, "Out of CLOSIDs\n")
        group = Group(name, closid)
        try:
            group.rmid = self._take_rmid()
            try:
                self.schemata.initialize(group)
            except OSError:
                self._free_rmid(group)
                raise
        except OSError:
            self.groups.give_back(closid)
            raise
        self.groups.add(group)

    def remove_group(self, group: Group) -> None:
        """rdtgroup_rmdir_ctrl(): tasks and CPUs fall to the root group. The last command's status stays what it was."""
        for task in self.members(group):
            task.closid, task.rmid = self.groups.root.closid, self.groups.root.rmid
        self.groups.root.cpus |= group.cpus
        for gone in (group, *group.monitors.values()):
            self._free_rmid(gone)
        self.groups.remove(group)

    def make_monitor(self, parent: Group, name: str) -> None:
        """rdtgroup_mkdir_mon()."""
        self.status.clear()
        parent.monitors[name] = Group(name, parent.closid, self._take_rmid(), parent)

    def remove_monitor(self, group: Group) -> None:
        """rdtgroup_rmdir_mon()."""
        assert group.parent is not None
        for task in self.members(group):
            task.closid, task.rmid = group.parent.closid, group.parent.rmid
        self._free_rmid(group)
        del group.parent.monitors[group.name]

    def move_monitor(self, group: Group, parent: Group, name: str) -> None:
        """kernfs_rename() and mongrp_reparent(): the tasks come along and get the new parent's class."""
        assert group.parent is not None
        tasks = self.members(group)
        del group.parent.monitors[group.name]
        group.name, group.parent, group.closid = name, parent, parent.closid
        parent.monitors[name] = group
        for task in tasks:
            task.closid = parent.closid

    def _take_rmid(self) -> int:
        if not self.scenario.rmids:
            return 0
        rmid = self.monitor.take()
        if rmid is None:
            raise self.status.refuse(errno.EBUSY if self.monitor.waiting else errno.ENOSPC, "Out of RMIDs\n")
        return rmid

    def _free_rmid(self, group: Group) -> None:
        self.monitor.give_back(group.rmid, [domain.id for domain in self.monitor_domains()])

    def write_mode(self, group: Group, mode: str) -> None:
        """rdtgroup_mode_write() and rdtgroup_locksetup_enter()."""
        self.status.clear()
        if mode == group.mode:
            return
        if mode == SHAREABLE:
            group.mode = mode
        elif mode == EXCLUSIVE:
            self.schemata.test_exclusive(group)
            group.mode = mode
        elif mode == "pseudo-locksetup":
            if group is self.groups.root:
                raise self.status.refuse(errno.EINVAL, "Cannot pseudo-lock default group\n")
            if "cdp" in self.options:
                raise self.status.refuse(errno.EINVAL, "CDP enabled\n")
            raise self.status.refuse(errno.EINVAL, "Pseudo-locking not supported\n")
        else:
            raise self.status.refuse(errno.EINVAL, "Unknown or unsupported mode\n")

    def members(self, group: Group) -> list[Task]:
        """is_closid_match() and is_rmid_match(): the tasks of a group that monitors are its parent's too."""
        if group.controls:
            return [task for task in self.tasks if task.closid == group.closid]
        return [task for task in self.tasks if task.rmid == group.rmid]

    def show_tasks(self, group: Group, caller: Caller) -> str:
        """show_rdt_tasks(): by the numbers that the caller's PID namespace has for them, without those that it has none for."""
        numbers = (task.seen_from(caller.namespace) for task in self.members(group))
        return "".join(f"{number}\n" for number in numbers if number)

    def write_tasks(self, group: Group, text: str, caller: Caller) -> None:
        """rdtgroup_tasks_write(). What was moved before a mistake stays moved."""
        if not self.scenario.task_lists:  # one number, and a wrong one is refused before the command counts
            try:
                pid = signed(strim(text))
            except Unreadable:
                pid = -1
            if pid < 0:
                raise refuse(errno.EINVAL)
            self.status.clear()
            self._move_task(group, pid, caller)
            return
        self.status.clear()
        rest: str | None = text
        while rest and rest[0] != "\n":
            first, comma, rest = rest.partition(",")
            rest = rest if comma else None
            number = strim(first)
            try:
                pid = signed(number)
            except Unreadable:
                raise self.status.refuse(errno.EINVAL, f"Task list parsing error pid {number}\n") from None
            if pid < 0:
                raise self.status.refuse(errno.EINVAL, f"Invalid pid {pid}\n")
            try:
                self._move_task(group, pid, caller)
            except OSError:
                self.status.say(f"Error while processing task {pid}\n")
                raise

    def _move_task(self, group: Group, pid: int, caller: Caller) -> None:
        """rdtgroup_move_task() and __rdtgroup_move_task()."""
        task = self.tasks.find(pid, caller) if pid else self.tasks[caller.pid]
        if task is None:
            raise self.status.refuse(errno.ESRCH, f"No task {pid}\n")
        if group.parent and task.closid != group.parent.closid:
            raise self.status.refuse(errno.EINVAL, "Can't move task to different control group\n")
        task.closid, task.rmid = group.closid, group.rmid

    def group_of(self, task: Task) -> tuple[Group, Group | None]:
        """The groups a task is in: the one that controls it and the one that monitors it (proc_resctrl_show())."""
        group = self.groups.taken[task.closid]
        return group, next((child for child in group.monitors.values() if child.rmid == task.rmid), None)

    def write_cpus(self, group: Group, text: str, *, as_list: bool) -> None:
        """rdtgroup_cpus_write()."""
        self.status.clear()
        read = cpu_list if as_list else cpu_mask
        try:
            cpus = read(text, max(self.scenario.cpus) + 1)
        except Unreadable as error:
            raise self.status.refuse(error.number, "Bad CPU list/mask\n") from None
        if cpus - self.online:
            raise self.status.refuse(errno.EINVAL, "Can only assign online CPUs\n")
        if group.parent:
            self._monitor_cpus(group, group.parent, cpus)
        else:
            self._control_cpus(group, cpus)

    def _monitor_cpus(self, group: Group, parent: Group, cpus: set[int]) -> None:
        """cpus_mon_write()."""
        if cpus - parent.cpus:
            raise self.status.refuse(errno.EINVAL, "Can only add CPUs to mongroup that belong to parent\n")
        for sibling in parent.monitors.values():
            if sibling is not group:
                sibling.cpus -= cpus
        group.cpus = cpus

    def _control_cpus(self, group: Group, cpus: set[int]) -> None:
        """cpus_ctrl_write()."""
        dropped = group.cpus - cpus
        if dropped and group is self.groups.root:
            raise self.status.refuse(errno.EINVAL, "Can't drop CPUs from default group\n")
        self.groups.root.cpus |= dropped
        for other in self.groups:
            if other is not group:
                other.cpus -= cpus
                for child in other.monitors.values():
                    child.cpus -= cpus
        group.cpus = cpus
        for child in group.monitors.values():
            child.cpus = set()
