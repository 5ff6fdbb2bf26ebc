# SPDX-License-Identifier: Apache-2.0
"""From what a plugin discovered to what the kubelet is told: checks, health, tombstones, sharing, and one immutable snapshot per resource.

An :class:`Inventory` belongs to the one thread that scans for its plugin. Everyone else reads snapshots. A snapshot's generation changes exactly when
the list that the kubelet sees does; a stream compares generations and can neither miss a change nor take another stream's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import repeat
from typing import NamedTuple

from msgspec import Struct, field

from deviceplugin._native.encoding import encode_list
from deviceplugin.allocation import Table
from deviceplugin.checks import MAX_MESSAGE_BYTES, device_errors, device_warnings, resource_name_error
from deviceplugin.health import HealthBook, Sighting
from deviceplugin.hooks import Hooks
from deviceplugin.model import Device, Health, Sharing, Skipped

GONE = "gone"
"""The cause of a device that vanished while a container may hold it."""

BACK = "back again"
"""The cause of the change when it returns."""

REPLICA = "::"
"""Stands between a device's id and the number of its replica."""


class Row(NamedTuple):
    """One line of the kubelet's list: a device, or one replica of it."""

    id: str
    device: Device
    health: Health
    cause: str
    since: float


class Snapshot(Struct, frozen=True, dict=True):
    """What is advertised of one resource.

    ``generation`` grows with every change of ``payload``, the list as the kubelet receives it: an encoded ListAndWatchResponse.
    """

    resource: str
    generation: int
    rows: tuple[Row, ...]
    payload: bytes
    hooks: Hooks
    sharing: Sharing = field(default_factory=Sharing)
    wholes: tuple[Row, ...] = ()
    """What ``rows`` were made of: one for each device, whatever its replicas."""

    @cached_property
    def index(self) -> Mapping[str, Row]:
        return {row.id: row for row in self.rows}

    @cached_property
    def table(self) -> Table:
        return Table([(row.id, row.device.unit, row.device.numa_nodes) for row in self.rows])

    def counts(self) -> Mapping[Health, int]:
        """How many rows are in which health."""
        found = dict.fromkeys(Health, 0)
        for row in self.rows:
            found[row.health] += 1
        return found


class Transition(Struct, frozen=True):
    """A unit's health changed, or a device went or came back: for the log, the counters and the event list. ``at`` is on the inventory's clock."""

    at: float
    plugin: str
    unit: str
    before: Health | None
    after: Health
    cause: str


class _Tombstone(Struct, frozen=True):
    device: Device
    since: float


Held = Callable[[str, str], bool | None]
"""Whether any container holds (resource, id); None when that is not known."""


class Inventory:
    """What one plugin has. Owned by one thread; :attr:`snapshots` may be read by any."""

    def __init__(
        self,
        name: str,
        *,
        book: HealthBook | None = None,
        sharing: Mapping[str, Sharing] | None = None,
        settle: float = 5.0,
        tombstone_limit: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.snapshots: Mapping[str, Snapshot] = {}
        self.skipped: tuple[Skipped, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self._book = book or HealthBook()
        self._sharing = dict(sharing or {})
        self._settle = settle
        self._tombstone_limit = tombstone_limit
        self._clock = clock
        self._hooks: Hooks | None = None
        self._present: dict[tuple[str, str], Device] = {}
        self._tombstones: dict[tuple[str, str], _Tombstone] = {}
        self._generations: dict[str, int] = {}

    @property
    def book(self) -> HealthBook:
        return self._book

    @property
    def hooks(self) -> Hooks | None:
        return self._hooks

    def share(self, sharing: Mapping[str, Sharing]) -> None:
        """Takes new sharing rules; the next :meth:`update` applies them."""
        self._sharing = dict(sharing)

    def inherit(self, other: Inventory) -> None:
        """Takes over what another inventory of the same plugin listed, so that a device that is gone is still known to have been there."""
        self.snapshots = other.snapshots
        self._present = dict(other._present)
        self._tombstones = dict(other._tombstones)
        self._generations = dict(other._generations)
        self._hooks = other._hooks

    def update(self, found: Iterable[Device | Skipped], hooks: Hooks, held: Held = lambda _resource, _id: None) -> tuple[Transition, ...]:
        """Takes a complete discovery and publishes what follows from it. Returns the units whose health changed."""
        now = self._clock()
        self._hooks = hooks
        present, skipped, warnings = self._admit(found, hooks.plugin.resource)
        moves = []
        for key, device in self._present.items():
            if key not in present and key not in self._tombstones:
                self._tombstones[key] = _Tombstone(device, now)
                moves.append(Transition(now, self.name, device.id, self._advertised(device), Health.UNHEALTHY, GONE))
        returned = [present[key] for key in self._tombstones if key in present]
        for key in present:
            self._tombstones.pop(key, None)
        self._present = present
        self._bury(held, now)
        changes = self._publish(skipped, warnings, now)
        moves += [Transition(now, self.name, device.id, Health.UNHEALTHY, self._advertised(device), BACK) for device in returned]
        return (*moves, *changes)

    def _advertised(self, device: Device) -> Health:
        unit = self._book.get(device.unit)
        return unit.health if unit else Health.UNKNOWN

    def distrust(self, cause: str) -> tuple[Transition, ...]:
        """Makes every device unknown: the probe has failed for so long that nothing can be said of them. The next :meth:`update` ends it."""
        now = self._clock()
        self._present = {key: _unknown(device, cause) for key, device in self._present.items()}
        return self._publish(self.skipped, self.warnings, now)

    def bury(self, held: Held) -> tuple[Transition, ...]:
        """Drops the tombstones that nobody holds any more."""
        before = len(self._tombstones)
        now = self._clock()
        self._bury(held, now)
        return self._publish(self.skipped, self.warnings, now) if len(self._tombstones) != before else ()

    @property
    def tombstones(self) -> int:
        return len(self._tombstones)

    @property
    def empty(self) -> bool:
        """Whether there is nothing at all: nothing found, nothing left out, nothing that is gone and still held."""
        return not (self._present or self._tombstones or self.skipped)

    def _admit(self, found: Iterable[Device | Skipped], default: str) -> tuple[dict[tuple[str, str], Device], list[Skipped], list[str]]:
        """Keeps what can be listed. One bad device never hides its siblings."""
        present: dict[tuple[str, str], Device] = {}
        owner: dict[str, str] = {}
        skipped: list[Skipped] = []
        warnings: list[str] = []
        for item in found:
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            if not isinstance(item, Device):
                skipped.append(Skipped(repr(item)[:64], f"discover() must yield Device, not {type(item).__name__}"))
                continue
            resource = item.resource or default
            errors = list(device_errors(item))
            name_error = resource_name_error(resource) if isinstance(resource, str) else ""
            if name_error:
                errors.append(name_error)
            elif not errors and item.id in owner:
                # The kubelet looks a device up by id alone when it refreshes pod status (getPodAndContainerForDevice), and counts one id listed twice
                # as two devices: an id must be unique on the node.
                errors.append(f"device id {item.id!r} is there twice, in {owner[item.id]} and in {resource}")
                first = (owner[item.id], item.id)
                if item.health is not Health.HEALTHY and first in present and present[first].health is Health.HEALTHY:
                    present[first] = _with_health(present[first], item.health, item.cause or "duplicate id")
            if errors:
                skipped.extend(Skipped(str(item.id)[:64], error) for error in errors)
                continue
            warnings.extend(device_warnings(item))
            owner[item.id] = resource
            before = self._present.get((resource, item.id))
            # The same object as before where nothing changed: comparing thousands of rows is then comparing pointers.
            present[resource, item.id] = before if before == item and before is not None else item
        return present, skipped, warnings

    def _bury(self, held: Held, now: float) -> None:
        for (resource, device_id), stone in list(self._tombstones.items()):
            name, sharing = self._shared(resource)
            answers = [held(name, row_id) for row_id in _row_ids(device_id, sharing.replicas)]
            age = now - stone.since
            if age >= self._tombstone_limit or (age >= self._settle and all(answer is False for answer in answers)):
                del self._tombstones[resource, device_id]

    def _shared(self, resource: str) -> tuple[str, Sharing]:
        sharing = self._sharing.get(resource) or Sharing()
        return sharing.rename or resource, sharing

    def _publish(self, skipped: Sequence[Skipped], warnings: Sequence[str], now: float) -> tuple[Transition, ...]:
        assert self._hooks is not None, "nothing was discovered yet"
        transitions = self._judge(now)
        if self._tombstones:
            self._unite()
        skipped = list(skipped)
        grouped: dict[str, list[Row]] = {name: [] for name in self.snapshots}
        rules: dict[str, Sharing] = {name: snapshot.sharing for name, snapshot in self.snapshots.items()}
        for (resource, device_id), device in sorted([*self._present.items(), *((key, t.device) for key, t in self._tombstones.items())]):
            name, rules_here = self._shared(resource)
            if (resource, device_id) in self._tombstones:
                health, cause, since = Health.UNHEALTHY, GONE, self._tombstones[resource, device_id].since
            else:
                unit = self._book.get(device.unit)
                assert unit is not None
                health, cause, since = unit.health, unit.cause, unit.since
            rules[name] = rules_here
            grouped.setdefault(name, []).append(Row(device_id, device, health, cause, since))
        published: dict[str, Snapshot] = {}
        for name, wholes in grouped.items():
            mixed = _drop_mixed_topology(wholes)
            if mixed:
                warnings = [*warnings, f"{name}: {mixed}"]
            published[name] = self._snapshot(name, tuple(wholes), rules[name], skipped)
        self.skipped, self.warnings = tuple(dict.fromkeys(skipped)), tuple(warnings)
        self.snapshots = published
        return transitions

    def _unite(self) -> None:
        """Lists no id twice under one name, which resources may come to share: a device that is there stands for its own tombstone."""
        taken = {(self._shared(resource)[0], device_id) for resource, device_id in self._present}
        for resource, device_id in list(self._tombstones):
            one = (self._shared(resource)[0], device_id)
            if one in taken:
                del self._tombstones[resource, device_id]
            taken.add(one)

    def _judge(self, now: float) -> tuple[Transition, ...]:
        """The probe's word about each unit is the worst about any of its devices."""
        seen: dict[str, Sighting] = {}
        for device in self._present.values():
            cause = device.cause or ("" if device.health is Health.HEALTHY else f"reported {device.health.value}")
            worst = seen.get(device.unit)
            sighting = Sighting(device.health, cause, device.incarnation)
            if worst is None or self._book.gravity(sighting) > self._book.gravity(worst):
                seen[device.unit] = sighting
        self._book.absent(seen.keys())
        transitions = []
        for unit, sighting in seen.items():
            before = self._book.get(unit)
            after = self._book.see(unit, sighting, now)
            if before is None or (before.health, before.cause) != (after.health, after.cause):
                transitions.append(Transition(now, self.name, unit, before.health if before else None, after.health, after.cause))
        return tuple(transitions)

    def _snapshot(self, name: str, wholes: tuple[Row, ...], sharing: Sharing, skipped: list[Skipped]) -> Snapshot:
        assert self._hooks is not None
        old = self.snapshots.get(name)
        if old is not None and old.wholes == wholes and old.sharing == sharing and old.hooks is self._hooks:
            return old
        rows: list[Row] = []
        healthy: list[bool] = []
        numa: list[tuple[int, ...]] = []
        for whole in wholes:
            rows += _replicas(whole, sharing.replicas)
            healthy += repeat(whole.health is Health.HEALTHY, sharing.replicas)
            numa += repeat(whole.device.numa_nodes, sharing.replicas)
        payload = encode_list([row.id for row in rows], healthy, numa)
        if len(payload) > MAX_MESSAGE_BYTES:
            skipped.append(Skipped(name, list_too_long(name, len(rows), len(payload))))
            if old is not None:
                return old
            rows, wholes, payload = [], (), b""
        generation = old.generation if old is not None and old.payload == payload else self._next_generation(name)
        return Snapshot(name, generation, tuple(rows), payload, self._hooks, sharing, wholes)

    def _next_generation(self, name: str) -> int:
        self._generations[name] = self._generations.get(name, 0) + 1
        return self._generations[name]


def list_too_long(resource: str, rows: int, size: int) -> str:
    """The advice for a list that would end the kubelet's stream for good."""
    return (
        f"{resource}: a list of {rows} devices takes {size} bytes, and the kubelet accepts at most {MAX_MESSAGE_BYTES}: "
        "lower replicas, shorten the device ids, or split the devices into several resources"
    )


def _row_ids(device_id: str, replicas: int) -> list[str]:
    return [device_id] if replicas == 1 else [f"{device_id}{REPLICA}{k}" for k in range(replicas)]


def _replicas(whole: Row, replicas: int) -> Iterable[Row]:
    """A device's rows. A health flip makes them all anew while the kubelet waits, so thousands are made without a step of Python for each."""
    return map(_make_row, zip(_row_ids(whole.id, replicas), *map(repeat, whole[1:]), strict=False))


_make_row = partial(tuple.__new__, Row)


def _copy(device: Device, **changes: object) -> Device:
    fields: dict[str, object] = {name: getattr(device, name) for name in Device.__slots__}
    return Device(**{**fields, **changes})  # type: ignore[arg-type]


def _with_health(device: Device, health: Health, cause: str) -> Device:
    return _copy(device, health=health, cause=cause)


def _unknown(device: Device, cause: str) -> Device:
    return _with_health(device, Health.UNKNOWN, cause)


def _drop_mixed_topology(rows: list[Row]) -> str:
    """Gives all devices of a resource a NUMA node or none, and says so if it had to.

    One device with topology makes the kubelet align the whole resource, after which devices without any satisfy no request for alignment
    (deviceHasTopologyAlignment); and a node outside 0..63 does not fit its bitmask.
    """
    for i, row in enumerate(rows):
        kept = tuple(sorted({n for n in row.device.numa_nodes if 0 <= n <= 63}))
        if kept != row.device.numa_nodes:
            rows[i] = row._replace(device=_copy(row.device, numa_nodes=kept))
    without = [row.id for row in rows if not row.device.numa_nodes]
    if not without or len(without) == len(rows):
        return ""
    for i, row in enumerate(rows):
        if row.device.numa_nodes:
            rows[i] = row._replace(device=_copy(row.device, numa_nodes=()))
    return f"NUMA nodes are left out, since {len(without)} of {len(rows)} devices have none, {without[0]} for one"
