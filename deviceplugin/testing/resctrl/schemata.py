# SPDX-License-Identifier: Apache-2.0
"""Writing control values: schemata, the defaults of a new group, and who may have what exclusively.

Follows fs/resctrl/ctrlmondata.c and fs/resctrl/rdtgroup.c of Linux 6.16 and later; functions are named where they are mirrored.
"""

from __future__ import annotations

import errno

from deviceplugin.testing.resctrl.controls import NO_LIMIT, Cache, Controls, Domain, Kind, Schema, Throttle, first_run, used_by
from deviceplugin.testing.resctrl.groups import EXCLUSIVE, SHAREABLE, Group, Groups, LastCommand
from deviceplugin.testing.resctrl.parsing import Unreadable, strim, unsigned


class Schemata:
    """The rules. The values are in ``controls``, who holds them in ``groups``, and what was wrong goes to ``status``."""

    def __init__(self, controls: Controls, groups: Groups, status: LastCommand) -> None:
        self._controls = controls
        self._groups = groups
        self._status = status

    def write(self, group: Group, text: str) -> None:
        """rdtgroup_schemata_write(), without the newline that it ended with: all of it or nothing, but for limits in MB/s. Raises OSError."""
        try:
            for line in text.split("\n"):
                name, colon, rest = line.partition(":")
                name = strim(name)
                if not colon:
                    raise self._status.refuse(errno.EINVAL, "Missing ':'\n")
                if not rest:
                    raise self._status.refuse(errno.EINVAL, f"Missing '{name}' value\n")
                self._line(group, self._schema(name, group), rest)
            for resource in self._controls.resources:
                resource.apply(group.closid)
        finally:
            self._controls.unstage()

    def _schema(self, name: str, group: Group) -> Schema:
        """rdtgroup_parse_resource()."""
        for schema in self._controls.schemas:
            if schema.name == name and group.closid < schema.closids:
                return schema
        raise self._status.refuse(errno.EINVAL, f"Unknown or unsupported resource name '{name}'\n")

    def _line(self, group: Group, schema: Schema, rest: str) -> None:
        """parse_line(). A domain that is not there is EINVAL and no word; the domain's number may have no blanks around it."""
        while rest:
            part, _, rest = rest.partition(";")
            id_, equals, value = part.partition("=")
            try:
                number = unsigned(id_, 10)
            except Unreadable:
                equals = ""
            if not equals:
                raise self._status.refuse(errno.EINVAL, "Missing '=' or non-numeric domain\n")
            domain = schema.resource.domains.get(number)
            if domain is None:
                raise self._status.refuse(errno.EINVAL)
            if schema.kind in domain.staged:
                raise self._status.refuse(errno.EINVAL, f"Duplicate domain {domain.id}\n")
            if isinstance(schema.resource, Cache):
                domain.staged[schema.kind] = self._mask(group, schema, schema.resource, domain, strim(value))
            elif isinstance(schema.resource, Throttle):
                self._bandwidth(group, schema.resource, domain, strim(value))

    def _mask(self, group: Group, schema: Schema, cache: Cache, domain: Domain, text: str) -> int:
        """parse_cbm() and cbm_validate()."""
        try:
            mask = unsigned(text, 16)
        except Unreadable:
            raise self._status.refuse(errno.EINVAL, f"Non-hex character in the mask {text}\n") from None
        if (cache.min_ways > 0 and mask == 0) or mask > cache.default:
            raise self._status.refuse(errno.EINVAL, "Mask out of range\n")
        run = first_run(mask)
        if not cache.sparse and run != mask:
            raise self._status.refuse(errno.EINVAL, f"The mask {mask:x} has non-consecutive 1-bits\n")
        if run.bit_count() < cache.min_ways:
            raise self._status.refuse(errno.EINVAL, f"Need at least {cache.min_ways} bits in the mask\n")
        if self._overlaps(schema, cache, domain, mask, group, exclusive=True):
            raise self._status.refuse(errno.EINVAL, "Overlaps with exclusive group\n")
        if group.mode == EXCLUSIVE and self._overlaps(schema, cache, domain, mask, group, exclusive=False):
            raise self._status.refuse(errno.EINVAL, "Overlaps with other group\n")
        return mask

    def _overlaps(self, schema: Schema, cache: Cache, domain: Domain, mask: int, group: Group, *, exclusive: bool) -> bool:
        """rdtgroup_cbm_overlaps(): with exclusive groups, or else with any group and with what the hardware uses."""
        if not exclusive and mask & cache.shareable:
            return True
        others = [other.closid for other in self._groups if other.closid != group.closid and (other.mode == EXCLUSIVE or not exclusive)]
        return any(mask & used_by(cache, domain, others, kind) for kind in {schema.kind, schema.kind.peer})

    def _bandwidth(self, group: Group, throttle: Throttle, domain: Domain, text: str) -> None:
        """parse_bw() and bw_validate(). A limit in MB/s holds at once, also if the rest of the write is refused."""
        try:
            value = unsigned(text, 10, 32)
        except Unreadable:
            raise self._status.refuse(errno.EINVAL, f"Invalid MB value {text}\n") from None
        if throttle.in_mbps:
            domain.limits[group.closid] = value
            return
        limits = throttle.bandwidth
        if not limits.minimum <= value <= limits.maximum:
            raise self._status.refuse(errno.EINVAL, f"MB value {value} out of range [{limits.minimum},{limits.maximum}]\n")
        domain.staged[Kind.NONE] = -(-value // limits.granularity) * limits.granularity

    def initialize(self, group: Group) -> None:
        """rdtgroup_init_alloc(): a new group gets all bandwidth, and the ways that are unused or shared. Raises OSError."""
        try:
            for schema in self._controls.schemas:
                for domain in schema.resource.domains.values():
                    self._default(group, schema, domain)
                schema.resource.apply(group.closid)
        finally:
            self._controls.unstage()
        group.mode = SHAREABLE

    def _default(self, group: Group, schema: Schema, domain: Domain) -> None:
        """__init_one_rdt_domain() and rdtgroup_init_mba()."""
        cache = schema.resource
        if not isinstance(cache, Cache):
            domain.staged[Kind.NONE] = cache.default
            domain.limits[group.closid] = NO_LIMIT
            return
        others = [other for other in self._groups if other.closid != group.closid]
        sharing = [other.closid for other in others if other.mode == SHAREABLE]
        kinds = {schema.kind, schema.kind.peer}
        used, shared = cache.shareable, cache.shareable
        for kind in kinds:
            used |= used_by(cache, domain, [other.closid for other in others], kind)
            shared |= used_by(cache, domain, sharing, kind)
        mask = first_run(shared | cache.default & ~used)
        if mask.bit_count() < cache.min_ways:
            raise self._status.refuse(errno.ENOSPC, f"No space on {schema.name}:{domain.id}\n")
        domain.staged[schema.kind] = mask

    def test_exclusive(self, group: Group) -> None:
        """rdtgroup_mode_test_exclusive(). Raises OSError."""
        caches = [(schema, schema.resource) for schema in self._controls.schemas if isinstance(schema.resource, Cache)]
        for schema, cache in caches:
            for domain in cache.domains.values():
                mask = cache.get(domain, group.closid, schema.kind)
                if self._overlaps(schema, cache, domain, mask, group, exclusive=False):
                    raise self._status.refuse(errno.EINVAL, "Schemata overlaps\n")
        if not caches:
            raise self._status.refuse(errno.EINVAL, "Cannot be exclusive without CAT/CDP\n")

    def bit_usage(self, schema: Schema) -> str:
        """rdt_bit_usage_show(), the highest way first."""
        cache = schema.resource
        assert isinstance(cache, Cache)
        parts = []
        for domain in cache.domains.values():
            shared = used_by(cache, domain, [group.closid for group in self._groups if group.mode == SHAREABLE], schema.kind)
            exclusive = used_by(cache, domain, [group.closid for group in self._groups if group.mode == EXCLUSIVE], schema.kind)
            parts.append(f"{domain.id}=" + "".join(_usage(way, cache.shareable, shared, exclusive) for way in reversed(range(cache.ways))))
        return ";".join(parts) + "\n"


def _usage(way: int, hardware: int, shared: int, exclusive: int) -> str:
    if hardware >> way & 1:
        return "X" if shared >> way & 1 else "H"
    return "S" if shared >> way & 1 else "E" if exclusive >> way & 1 else "0"
