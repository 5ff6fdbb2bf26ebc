# SPDX-License-Identifier: Apache-2.0
"""Ways of the last-level cache as a resource, enforced by the kernel's resctrl. See docs/llc.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from deviceplugin import Allocation, Device, Edits, Enforcement, Health, Host, Plugin, Skipped, Verdict, cdi
from deviceplugin.events import Events
from deviceplugin.plugins.llc import membership, naming, topology
from deviceplugin.plugins.llc.audit import Audit, Scene
from deviceplugin.plugins.llc.catalog import Catalog
from deviceplugin.plugins.llc.config import LlcConfig
from deviceplugin.plugins.llc.control import Control, NotReady, View
from deviceplugin.plugins.llc.files import Files, HostFiles
from deviceplugin.plugins.llc.layout import Cache
from deviceplugin.plugins.llc.leavings import leavings
from deviceplugin.plugins.llc.mounts import hidden_from_host
from deviceplugin.plugins.llc.resctrl import Absent, Resctrl
from deviceplugin.plugins.llc.topology import CpuCache

__all__ = ["Llc", "LlcConfig"]


class Llc(Plugin):
    """Slots of the last-level caches. A device is a token for some ways of one cache; which ways they are is decided when a container gets it."""

    Config = LlcConfig
    config: LlcConfig
    interval = 10.0

    def __init__(
        self, config: LlcConfig | None = None, host: Host | None = None, *, files: Files | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(config or LlcConfig(), host)
        at = self.config.mount_point
        self._resctrl = Resctrl(files or HostFiles(self.host, at), at)
        self._control = Control(self._resctrl, self.config, clock)
        self._audit = Audit(self.host, self._control, self.config, clock)
        self._catalog = Catalog(self.host, "k8s.device-plugin." + self.config.resource)
        self._cpu_caches: Mapping[int, CpuCache] = {}
        self._view: View | None = None
        self._unneeded: dict[str, int] = {}
        self._blind = False

    def discover(self) -> Iterator[Device | Skipped]:
        """Every slot of every cache. What resctrl holds is put right on the way, where somebody else has changed it."""
        found = list(topology.probe(self.host))
        yield from (one for one in found if isinstance(one, Skipped))
        self._cpu_caches = {**self._cpu_caches, **{one.id: one for one in found if isinstance(one, CpuCache)}}
        at = self.config.mount_point
        if (sharing := self.sharing.get(self.config.resource)) and sharing.replicas > 1:
            yield Skipped(self.config.resource, "has replicas, and two containers cannot have one slot: each would take the ways from the other")
            return
        everywhere = ""
        try:
            self._view = self._control.look()
        except Absent as error:
            if self._view is None:
                yield Skipped(at, str(error))
                return
            everywhere = f"unmounted: {error}"
        if reason := hidden_from_host(self.host, at):
            everywhere = everywhere or f"unmounted: {reason}"
        view = self._view
        for id_, reason in view.undivided.items():
            yield Skipped(f"cache {id_}", reason)
        yield from self._notes()
        held = dict.fromkeys(view.places.caches, 0)
        causes: dict[str, str] = {}
        for key, group in view.groups.items():
            for id_, bits in group.slots.items():
                held[id_] = held.get(id_, 0) | bits
            if key in view.lost:
                causes |= dict.fromkeys(naming.ids_of(group.slots), f"group: {view.lost[key]}")
        for cache in view.places.caches.values():
            for number in range(cache.slots):
                name = naming.device_id(cache.id, number)
                cause = everywhere or view.faults.get(cache.id, "") or causes.get(name, "")
                if not cause and view.free_groups <= 0 and not held[cache.id] >> number & 1:
                    cause = "exhausted: the CPU has no free group (CLOSID) for one more container"
                yield self._device(name, cache, cause)

    def allocate(self, devices: Sequence[Device]) -> Edits:
        """Decides on the ways, in memory. The group is made in prepare()."""
        slots = naming.slots_of(device.id for device in devices)
        self._control.reserve(slots)
        key = naming.key_of(slots)
        try:
            self._catalog.add(key)
        except cdi.CdiError as error:  # prepare() writes it again and must not fail; here a failure would cost the pod its admission
            self.log.error("%s", error)
        caches = sorted(slots)
        envs = {
            membership.VARIABLE: naming.group_of(key),
            "KDP_LLC_DOMAINS": ",".join(map(str, caches)),
            "KDP_LLC_WAYS": ",".join(str(self._ways(cache, slots)) for cache in caches),
            "KDP_LLC_BYTES": ",".join(str(self._ways(cache, slots) * self._way_bytes(cache)) for cache in caches),
        }
        return Edits(envs=envs, cdi=(self._catalog.name(key),))

    def prefer(self, available: Sequence[Device], required: Sequence[Device], size: int) -> list[Device] | None:
        """One cache, one run of slots, where no group has to move: see placing.py."""
        ids = self._control.prefer([device.id for device in available], [device.id for device in required], size)
        if ids is None:
            return None
        by_id = {device.id: device for device in (*available, *required)}
        return [by_id[one] for one in ids]

    def prepare(self, devices: Sequence[Device]) -> None:
        """Makes the group, with its masks in every cache, and the name by which the runtime finds it: from the ids alone, also after a reboot."""
        slots = naming.slots_of(device.id for device in devices)
        try:
            self._control.ensure(slots)
        except NotReady:  # a container of before a restart of ours comes back sooner than the first look
            self._control.look()
            self._control.ensure(slots)
        self._catalog.add(naming.key_of(slots))

    def reconcile(self, allocations: Sequence[Allocation]) -> Iterator[Verdict]:
        """Says of each container whether its processes are in their group, moves those that are not, and removes groups that nobody needs."""
        view = self._view = self._control.look()
        host_pids = membership.sees_host_pids(self.host)
        scene = Scene(view, {id_: one.cpus for id_, one in self._cpu_caches.items()}, host_pids)
        keep = {key for one in allocations if (key := _key(one))}
        self._audit.forget(keep)
        yield from [self._audit.judge(allocation, scene) for allocation in allocations]
        if host_pids:
            self._collect(keep)

    def watch(self) -> Iterator[object]:
        """Groups that come and go, and CPUs that go offline and come back: the kernel resets the masks of their cache then."""
        yield from Events(self.host, paths=[self.config.mount_point], subsystems=["cpu"])

    def uninstall(self, remove: bool) -> Iterable[str]:
        """The groups, the root group's mask, and the CDI spec."""
        return leavings(self._resctrl, self._catalog, self.config, remove)

    def _notes(self) -> Iterator[Skipped]:
        blind = not membership.sees_host_pids(self.host)
        if blind:
            reason = "is not the host's PID namespace: every group looks empty, so none is removed and none can be verified; set hostPID: true"
            if not self._blind:
                self.log.warning("this process's PID namespace %s", reason)
            yield Skipped("/proc/self/ns/pid", reason)
        self._blind = blind

    def _device(self, id_: str, cache: Cache, cause: str) -> Device:
        known = self._cpu_caches.get(cache.id)
        size = cache.ways_per_slot * self._way_bytes(cache.id)
        return Device(
            id_,
            resource=self.config.resource,
            health=Health.UNHEALTHY if cause else Health.HEALTHY,
            cause=cause,
            numa_nodes=known.numa_nodes if known else (),
            attributes={"cache": cache.id, "mode": self.config.mode},
            capacity={"ways": cache.ways_per_slot, **({"bytes": size} if size else {})},
            enforcement=Enforcement.HARD,
        )

    def _ways(self, cache: int, slots: naming.Slots) -> int:
        assert self._view is not None
        return self._view.places.caches[cache].ways(slots[cache])

    def _way_bytes(self, cache: int) -> int:
        known = self._cpu_caches.get(cache)
        return known.size // known.ways if known and known.ways else 0

    def _collect(self, keep: set[str]) -> None:
        idle = self._control.idle({*keep}, self._catalog.keys())
        self._unneeded = {key: self._unneeded.get(key, 0) + 1 for key in idle}
        for key in [key for key, times in self._unneeded.items() if times >= self.config.collect.sightings]:
            del self._unneeded[key]
            if self._control.drop(key):
                self._catalog.discard(key)
                self.log.info("group %s is removed: no container holds its slots, and nothing runs in it", naming.group_of(key))


def _key(allocation: Allocation) -> str:
    try:
        return naming.key_of(naming.slots_of(device.id for device in allocation.devices))
    except ValueError:
        return ""
