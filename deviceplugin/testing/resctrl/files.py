# SPDX-License-Identifier: Apache-2.0
"""The files and directories of a mounted resctrl: what is where, and what reading and writing each of them does."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from deviceplugin.testing.resctrl.controls import Cache, Schema, Throttle
from deviceplugin.testing.resctrl.groups import Group, refuse
from deviceplugin.testing.resctrl.kernel import Kernel
from deviceplugin.testing.resctrl.monitor import MonitorDomain
from deviceplugin.testing.resctrl.parsing import Unreadable, show_cpu_list, show_cpu_mask, unsigned
from deviceplugin.testing.resctrl.tasks import Caller

MONITORS = "mon_groups"


@dataclass(frozen=True, slots=True)
class File:
    """``show`` and ``store`` are told who calls; without ``store`` it is read-only."""

    show: Callable[[Caller], str]
    store: Callable[[str, Caller], None] | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """``group`` is the group that kernfs_to_rdtgroup() finds for it, None in ``info``; ``is_group`` whether it is that group's own directory."""

    entries: Callable[[], Mapping[str, Node]]
    group: Group | None = None
    is_group: bool = False


Node = File | Directory
Entries = dict[str, Node]


class Files:
    """The tree that belongs to a kernel's state."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def top(self) -> Directory:
        root = self._kernel.groups.root
        return Directory(self._top, root, is_group=True)

    def _top(self) -> Entries:
        entries = self._control_group(self._kernel.groups.root)
        entries["info"] = Directory(self._info)
        for name in self._kernel.groups.names:
            group = self._kernel.groups[name]
            entries[name] = Directory(partial(self._control_group, group), group, is_group=True)
        return entries

    def _control_group(self, group: Group) -> Entries:
        kernel = self._kernel
        entries = self._any_group(group)
        entries["schemata"] = File(lambda _: self._schemata(group), self._line(lambda text: self._write_schemata(group, text)))
        entries["mode"] = File(lambda _: group.mode + "\n", self._line(lambda text: kernel.write_mode(group, text)))
        entries["size"] = File(lambda _: "".join(kernel.controls.show_size(schema, group.closid) for schema in kernel.controls.schemas))
        if "debug" in kernel.options:
            entries["ctrl_hw_id"] = _constant(group.closid)
        if kernel.scenario.rmids:
            entries[MONITORS] = Directory(partial(self._monitors, group), group)
        return entries

    def _any_group(self, group: Group) -> Entries:
        """RFTYPE_BASE and RFTYPE_MON_BASE."""
        kernel = self._kernel
        total = max(kernel.scenario.cpus) + 1
        entries: Entries = {
            "cpus": File(lambda _: show_cpu_mask(group.cpus, total) + "\n", lambda text, _: kernel.write_cpus(group, text, as_list=False)),
            "cpus_list": File(lambda _: show_cpu_list(group.cpus) + "\n", lambda text, _: kernel.write_cpus(group, text, as_list=True)),
            "tasks": File(lambda caller: kernel.show_tasks(group, caller), lambda text, caller: kernel.write_tasks(group, text, caller)),
        }
        if kernel.scenario.rmids:
            entries["mon_data"] = Directory(partial(self._mon_data, group), group)
            if "debug" in kernel.options:
                entries["mon_hw_id"] = _constant(group.rmid)
            if "mba_MBps" in kernel.options:
                entries["mba_MBps_event"] = File(lambda _: group.event + "\n", self._line(lambda text: self._write_event(group, text)))
        return entries

    def _monitors(self, group: Group) -> Entries:
        return {name: Directory(partial(self._any_group, child), child, is_group=True) for name, child in group.monitors.items()}

    def _line(self, write: Callable[[str], None]) -> Callable[[str, Caller], None]:
        """For files whose lines must end: EINVAL without a word, and the status of the command before stays."""

        def store(text: str, _: Caller) -> None:
            if not text.endswith("\n"):
                raise refuse(errno.EINVAL)
            write(text[:-1].partition("\0")[0])

        return store

    def _schemata(self, group: Group) -> str:
        controls = self._kernel.controls
        return "".join(controls.show(schema, group.closid) for schema in controls.schemas if group.closid < schema.closids)

    def _write_schemata(self, group: Group, text: str) -> None:
        self._kernel.status.clear()
        self._kernel.schemata.write(group, text)

    def _write_event(self, group: Group, text: str) -> None:
        """rdtgroup_mba_mbps_event_write()."""
        status = self._kernel.status
        status.clear()
        if text not in ("mbm_local_bytes", "mbm_total_bytes") or text not in self._kernel.scenario.events:
            raise status.refuse(errno.EINVAL, f"Unsupported event id '{text}'\n")
        group.event = text

    def _mon_data(self, group: Group) -> Entries:
        """mkdir_mondata_subdir(): a directory for each L3, and below it with sub-NUMA clusters one for each node."""
        by_cache: dict[int, list[MonitorDomain]] = {}
        for domain in self._kernel.monitor_domains():
            by_cache.setdefault(domain.cache, []).append(domain)
        return {f"mon_L3_{cache:02}": Directory(partial(self._mon_domains, group, domains), group) for cache, domains in sorted(by_cache.items())}

    def _mon_domains(self, group: Group, domains: list[MonitorDomain]) -> Entries:
        entries = self._events(group, domains)
        if self._kernel.scenario.clusters:
            for domain in domains:
                entries[f"mon_sub_L3_{domain.id:02}"] = Directory(partial(self._events, group, [domain]), group)
        return entries

    def _events(self, group: Group, domains: list[MonitorDomain]) -> Entries:
        ids = [domain.id for domain in domains]
        return {event: self._counter(group, ids, event) for event in self._kernel.scenario.events}

    def _counter(self, group: Group, ids: list[int], event: str) -> File:
        return File(lambda _: f"{self._kernel.monitor.read(group, ids, event)}\n")

    def _info(self) -> Entries:
        """rdtgroup_create_info_dir()."""
        kernel = self._kernel
        entries: Entries = {"last_cmd_status": File(lambda _: str(kernel.status))}
        for schema in kernel.controls.schemas:
            entries[schema.name] = Directory(partial(self._schema, schema))
        if kernel.scenario.rmids:
            entries["L3_MON"] = Directory(self._mon_info)
        return entries

    def _schema(self, schema: Schema) -> Entries:
        resource = schema.resource
        entries: Entries = {"num_closids": _constant(schema.closids)}
        if isinstance(resource, Cache):
            entries |= {
                "cbm_mask": _constant(f"{resource.default:x}"),
                "min_cbm_bits": _constant(resource.min_ways),
                "shareable_bits": _constant(f"{resource.shareable:x}"),
                "bit_usage": File(lambda _: self._kernel.schemata.bit_usage(schema)),
            }
            if self._kernel.scenario.tells_sparse:
                entries["sparse_masks"] = _constant(int(resource.sparse))
        elif isinstance(resource, Throttle):
            entries |= {
                "min_bandwidth": _constant(resource.bandwidth.minimum),
                "bandwidth_gran": _constant(resource.bandwidth.granularity),
                "delay_linear": _constant(int(resource.bandwidth.linear)),
            }
            if resource.bandwidth.throttle:
                entries["thread_throttle_mode"] = _constant(resource.bandwidth.throttle)
        return entries

    def _mon_info(self) -> Entries:
        kernel = self._kernel
        return {
            "num_rmids": _constant(kernel.scenario.rmids),
            "mon_features": _constant("\n".join(kernel.scenario.events)),
            "max_threshold_occupancy": File(lambda _: f"{kernel.monitor.threshold}\n", lambda text, _: self._write_threshold(text)),
        }

    def _write_threshold(self, text: str) -> None:
        """max_threshold_occ_write()."""
        try:
            size = unsigned(text, 0, 32)
        except Unreadable as error:
            raise refuse(error.number) from None
        if size > self._kernel.monitor.limit:
            raise refuse(errno.EINVAL)
        self._kernel.monitor.threshold = self._kernel.monitor.round(size)


def _constant(value: object) -> File:
    return File(lambda _: f"{value}\n")
