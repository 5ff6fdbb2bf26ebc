# SPDX-License-Identifier: Apache-2.0
"""What can be divided, and how it is divided now: resources, their domains, and the control values of every class of service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from deviceplugin.testing.resctrl.scenarios import L2, Bandwidth, Scenario

NO_LIMIT = (1 << 32) - 1
"""MBA_MAX_MBPS, include/linux/resctrl.h: with ``mba_MBps``, no limit."""


Members = Mapping[int, tuple[int, ...]]
"""CPUs by domain."""


class Kind(Enum):
    """Of a schema: everything, or with CDP code or data alone."""

    NONE = ""
    CODE = "CODE"
    DATA = "DATA"

    @property
    def peer(self) -> Kind:
        """resctrl_peer_type()."""
        return {Kind.CODE: Kind.DATA, Kind.DATA: Kind.CODE}.get(self, Kind.NONE)


@dataclass(slots=True)
class Domain:
    """One cache, as far as it is online. ``values`` are the control registers, by their index."""

    id: int
    values: list[int]
    staged: dict[Kind, int] = field(default_factory=dict)
    limits: list[int] = field(default_factory=list)
    """MB/s by class of service, for ``mba_MBps``."""


class Resource:
    """L3, L2 or MB. ``members`` are the CPUs of each domain; ``domains`` holds those with a CPU online."""

    def __init__(self, name: str, closids: int, default: int, members: Members) -> None:
        self.name = name
        self.closids = closids
        self.default = default
        self.members = members
        self.cdp = False
        self.domains: dict[int, Domain] = {}

    def add(self, id_: int) -> None:
        """The first CPU of a domain is online: every class of service has everything there (domain_add_cpu_ctrl(), setup_default_ctrlval())."""
        self.domains[id_] = Domain(id_, [self.default] * self.closids, limits=[NO_LIMIT] * self.closids)
        self.domains = dict(sorted(self.domains.items()))

    def remove(self, id_: int) -> None:
        del self.domains[id_]

    def reset(self) -> None:
        """resctrl_arch_reset_all_ctrls()."""
        for id_ in list(self.domains):
            self.add(id_)

    def get(self, domain: Domain, closid: int, kind: Kind) -> int:
        """resctrl_arch_get_config()."""
        return domain.values[_index(closid, kind)]

    def apply(self, closid: int) -> None:
        """resctrl_arch_update_domains()."""
        for domain in self.domains.values():
            for kind, value in domain.staged.items():
                domain.values[_index(closid, kind)] = value


def _index(closid: int, kind: Kind) -> int:
    """resctrl_get_config_index()."""
    return closid if kind is Kind.NONE else closid * 2 + (kind is Kind.CODE)


class Cache(Resource):
    """A cache that is divided by masks of its ways."""

    shareable = 0
    paired = 0
    cdp_capable = False

    def __init__(self, name: str, ways: int, closids: int, scenario: Scenario, members: Members, size: int) -> None:
        super().__init__(name, closids, (1 << ways) - 1, members)
        self.ways = ways
        self.min_ways = scenario.min_ways
        self.sparse = scenario.sparse
        self._size = size * 1024

    @classmethod
    def l3(cls, scenario: Scenario) -> Cache:
        members = {cache.id: cache.cpus for cache in scenario.caches}
        cache = cls("L3", scenario.ways, scenario.closids, scenario, members, scenario.caches[0].size)
        cache.shareable, cache.paired, cache.cdp_capable = scenario.shareable, scenario.paired, scenario.cdp
        return cache

    @classmethod
    def l2(cls, scenario: Scenario, kind: L2) -> Cache:
        return cls("L2", kind.ways, kind.closids, scenario, {cpu: (cpu,) for cpu in scenario.cpus}, kind.size)

    def effective(self, mask: int) -> int:
        """What the CPU makes of a mask: of ways that it pairs it uses all or none. The kernel shows what was written (resctrl_arch_get_config())."""
        return mask | self.paired if mask & self.paired else mask

    def size(self, mask: int) -> int:
        """Bytes that a mask stands for (rdtgroup_cbm_to_size()); with sub-NUMA clusters of the whole cache too."""
        return self._size // self.ways * mask.bit_count()


class Throttle(Resource):
    """Memory bandwidth. ``in_mbps`` is the mount option ``mba_MBps``: the kernel keeps groups below limits in MB/s."""

    def __init__(self, bandwidth: Bandwidth, members: Members) -> None:
        super().__init__("MB", bandwidth.closids, bandwidth.maximum, members)
        self.bandwidth = bandwidth
        self.in_mbps = False


@dataclass(frozen=True, slots=True)
class Schema:
    """A line of a schemata file, and a directory of ``info``."""

    resource: Resource
    kind: Kind

    @property
    def name(self) -> str:
        return self.resource.name + self.kind.value

    @property
    def closids(self) -> int:
        return self.resource.closids // (1 if self.kind is Kind.NONE else 2)


class Controls:
    """All resources of a machine, and the schemas while resctrl is mounted."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.cache = Cache.l3(scenario) if scenario.ways else None
        self._l2 = Cache.l2(scenario, scenario.l2) if scenario.l2 else None
        self.throttle = Throttle(scenario.bandwidth, {cache.id: cache.cpus for cache in scenario.caches}) if scenario.bandwidth else None
        self.schemas: tuple[Schema, ...] = ()
        self.width = 0

    @property
    def resources(self) -> Iterator[Resource]:
        return (resource for resource in (self.cache, self._l2, self.throttle) if resource is not None)

    @property
    def closids(self) -> int:
        """closids_supported(): the fewest that any schema has."""
        return min(schema.closids for schema in self.schemas)

    def mount(self, *, cdp: bool, mbps: bool) -> None:
        """schemata_list_create(). Each schema is put before those already there, so MB comes first since there is such a list."""
        if self.cache:
            self.cache.cdp = cdp
        if self.throttle:
            self.throttle.in_mbps = mbps
        schemas = [
            Schema(resource, kind)
            for resource in self.resources
            for kind in ((Kind.CODE, Kind.DATA) if resource.cdp else (Kind.NONE,))
        ]  # fmt: skip
        for schema in schemas:
            room = 4 if isinstance(schema.resource, Cache) and schema.resource.cdp_capable and not cdp else 0  # for CODE and DATA
            self.width = max(self.width, len(schema.name) + room)
        if self.scenario.caches_first:  # rdt_resources_all[] had L3, L3DATA, L3CODE, L2, MB
            self.schemas = tuple(
                sorted(schemas, key=lambda schema: (schema.resource is self.throttle, schema.resource is self._l2, schema.kind is Kind.CODE))
            )
        else:
            self.schemas = tuple(reversed(schemas))

    def umount(self) -> None:
        for resource in self.resources:
            resource.cdp = False
            resource.reset()
        if self.throttle:
            self.throttle.in_mbps = False
        self.schemas = ()

    def unstage(self) -> None:
        """rdt_staged_configs_clear()."""
        for resource in self.resources:
            for domain in resource.domains.values():
                domain.staged.clear()

    def value(self, schema: Schema, domain: Domain, closid: int) -> int:
        """What the schemata file says."""
        if isinstance(schema.resource, Throttle) and schema.resource.in_mbps:
            return domain.limits[closid]
        return schema.resource.get(domain, closid, schema.kind)

    def show(self, schema: Schema, closid: int) -> str:
        """A line of a schemata file (show_doms())."""
        values = (self._format(schema, domain.id, self.value(schema, domain, closid)) for domain in schema.resource.domains.values())
        return f"{schema.name:>{self.width}}:{';'.join(values)}\n"

    def show_size(self, schema: Schema, closid: int) -> str:
        """A line of a size file (rdtgroup_size_show())."""
        parts = []
        for domain in schema.resource.domains.values():
            value = self.value(schema, domain, closid)
            size = schema.resource.size(value) if isinstance(schema.resource, Cache) else value
            parts.append(f"{domain.id}={size}")
        return f"{schema.name:>{self.width}}:{';'.join(parts)}\n"

    def _format(self, schema: Schema, domain: int, value: int) -> str:
        mask = isinstance(schema.resource, Cache)
        if not self.scenario.columns:
            return f"{domain}={value:x}" if mask else f"{domain}={value}"
        columns = max(_columns(resource) for resource in self.resources)
        return f"{domain}={value:0{columns}x}" if mask else f"{domain}={value:{columns}}"


def _columns(resource: Resource) -> int:
    """rdt_resource.data_width, as it was until the tables went: hexadecimal digits of a mask, digits of 100, or of 2048."""
    if isinstance(resource, Cache):
        return (resource.ways + 3) // 4
    return len(str(resource.default))


def first_run(mask: int) -> int:
    """The lowest run of bits of a mask (cbm_ensure_valid())."""
    lowest = mask & -mask
    return mask & ~(mask + lowest)


def used_by(resource: Resource, domain: Domain, closids: Iterable[int], kind: Kind) -> int:
    """The union of masks."""
    used = 0
    for closid in closids:
        used |= resource.get(domain, closid, kind)
    return used
