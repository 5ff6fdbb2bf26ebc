# SPDX-License-Identifier: Apache-2.0
"""One picture of the daemon at one moment, made on demand from its snapshots. As JSON it is what ``/devices`` and ``-o json`` answer.

The fields below are a contract: none is removed or changes its meaning within ``version: v1``, new ones may come. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Mapping

import msgspec

import deviceplugin
from deviceplugin.daemon import Daemon
from deviceplugin.inventory import Inventory, Row, Snapshot
from deviceplugin.kubelet.podresources import Holdings
from deviceplugin.model import Connection, Health
from deviceplugin.observe.readiness import Check, owner_name, readiness, ready, waits_for
from deviceplugin.observe.words import utf8
from deviceplugin.reconciler import Audit
from deviceplugin.scanner import ScanReport
from deviceplugin.service import Role, Service

_NO_AUDIT = Audit()


class _Struct(msgspec.Struct, frozen=True, rename="camel"):
    """A part of the picture: keys are camelCase."""


class ContainerStatus(_Struct, frozen=True):
    """A container that holds a device."""

    namespace: str
    pod: str
    container: str


class DeviceStatus(_Struct, frozen=True):
    """One line of the list that the kubelet has."""

    id: str
    """As the kubelet knows it; with replicas it ends in ``::`` and a number."""
    device: str
    """The device behind it, as the plugin calls it."""
    unit: str
    """The physical thing behind it: what shares it fails together."""
    health: str
    """``healthy``, ``unhealthy`` or ``unknown``. Only ``healthy`` ones are given to new containers."""
    cause: str
    """Why it is not healthy, empty if it is; ``gone`` for one that vanished and stays listed while a container may hold it."""
    since: datetime.datetime
    """Since when it is in this health, for this cause."""
    age_seconds: float
    """The same as seconds before ``takenAt``."""
    numa_nodes: tuple[int, ...]
    attributes: Mapping[str, bool | int | str]
    capacity: Mapping[str, int]
    held_by: tuple[ContainerStatus, ...] | None
    """Who holds it, as the kubelet said last (``podResources`` says when); null if it never said."""
    enforcement: str = "none"
    """What keeps others from using it, as the plugin says: ``hard``, ``tagged``, ``advisory`` or ``none``."""
    enforced: bool | None = None
    """Whether the plugin has seen that this holds for whoever holds it; null if nobody does or it cannot be seen."""
    enforcement_detail: str = ""
    """Why it does not hold, or why that is not known; mostly empty."""


class ResourceStatus(_Struct, frozen=True):
    """One advertised resource."""

    name: str
    plugin: str
    role: str
    """``active`` here, ``standby`` behind another instance, ``blocked`` for want of a lock, or ``none`` where no daemon was asked."""
    waits_for: str
    """For a standby: who is active instead."""
    phase: str
    """With the kubelet: ``down``, ``registering``, ``expecting`` (registered, list not read yet) or ``serving``; empty if ``role`` is not active."""
    endpoint: str
    """The name of our socket, empty if there is none."""
    streams: int
    """ListAndWatch streams that are open."""
    lag: int
    """Lists that the slowest stream has not been sent yet."""
    registrations: int
    """Registrations since this instance became active."""
    error: str
    """What is in the way, empty if nothing is."""
    generation: int
    """Grows with each list that differs from the one before."""
    replicas: int
    """Entries of the list for each device."""
    healthy: int
    unhealthy: int
    unknown: int
    devices: tuple[DeviceStatus, ...]


class LeftOut(_Struct, frozen=True):
    """Something that was seen and is not advertised."""

    what: str
    reason: str


class HungHook(_Struct, frozen=True):
    """A call of a plugin's code that did not come back."""

    hook: str
    seconds: float


class ConnectionStatus(_Struct, frozen=True):
    """A way between two units, or from one to something that joins several."""

    unit: str
    other: str
    kind: str
    lanes: int


class PluginStatus(_Struct, frozen=True):
    """One plugin and how its last look at the hardware went."""

    name: str
    looked_seconds_ago: float | None
    """Seconds since the last successful discovery, null if there was none."""
    scan_seconds: float
    """How long that one took."""
    error: str
    """Why the last discovery failed, empty if it did not."""
    failures: int
    """Failures since the last success."""
    hung_hooks: tuple[HungHook, ...]
    skipped: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    connections: tuple[ConnectionStatus, ...] = ()


class HealthEvent(_Struct, frozen=True):
    """A unit changed its health."""

    at: datetime.datetime
    plugin: str
    unit: str
    before: str
    """Its health until then, empty at its first sight."""
    after: str
    cause: str


class PodResourcesStatus(_Struct, frozen=True):
    """How well it is known who holds what."""

    age_seconds: float | None
    """Seconds since the kubelet said so, null if it never did."""
    error: str
    """Why it cannot be asked now, empty if it can."""


class ConfigurationStatus(_Struct, frozen=True):
    """The configuration in force."""

    source: str = ""
    """The file, empty without one."""
    hash: str = ""
    """The SHA-256 sum of the file as it was read, empty without one."""
    variant: str = ""
    """The entry of its ``nodes`` that this node took, empty if none matched."""
    loaded_at: datetime.datetime = datetime.datetime.fromtimestamp(0, datetime.UTC)
    """When it was put into force."""


class Status(_Struct, frozen=True):
    """The daemon at one moment."""

    version: str
    """Of this format: ``v1``."""
    taken_at: datetime.datetime
    node: str
    release: str
    """Version of the program."""
    pid: int
    """As the daemon sees it, which in a container is not what the host sees."""
    host: str
    """What HOSTNAME is for the daemon: in a container, the name of its pod; may be empty."""
    uptime_seconds: float
    ready: bool
    checks: tuple[Check, ...]
    plugins: tuple[PluginStatus, ...]
    resources: tuple[ResourceStatus, ...]
    pod_resources: PodResourcesStatus
    config_error: str
    """Why the configuration file was not applied when it was read again, empty if it was."""
    events: tuple[HealthEvent, ...]
    """The latest changes of health, oldest first. A unit that is well at first sight is no change."""
    config: ConfigurationStatus = ConfigurationStatus()
    """What is in force. Fields that came later than the first release have defaults, so that this one can read what an older one says."""


class Clock:
    """Turns the daemon's monotonic times into times that people know, as of one moment."""

    def __init__(self, monotonic: float | None = None, wall: float | None = None) -> None:
        self.now = time.monotonic() if monotonic is None else monotonic
        self._wall = time.time() if wall is None else wall

    def age(self, moment: float) -> float:
        """Seconds since ``moment``. A moment of before a reboot, when the clock started anew, counts as now."""
        return round(max(0.0, self.now - moment), 3)

    def time(self, moment: float) -> datetime.datetime:
        wall = datetime.datetime.fromtimestamp(self._wall - self.age(moment), datetime.UTC)
        return wall.replace(microsecond=wall.microsecond // 1000 * 1000)


def take(daemon: Daemon, clock: Clock | None = None) -> Status:
    """The picture of a running daemon. Safe from any thread; it holds no lock while it looks."""
    clock = clock or Clock()
    refused = daemon.config_error  # before the checks, so that they know of whatever is shown here
    checks = readiness(daemon, clock.now)
    holdings = daemon.podresources.holdings.get()
    configuration = daemon.plan.configuration
    return Status(
        version="v1",
        taken_at=clock.time(clock.now),
        node=daemon.host.node_name or os.uname().nodename,
        release=deviceplugin.__version__,
        pid=os.getpid(),
        host=os.environ.get("HOSTNAME", ""),
        uptime_seconds=clock.age(daemon.started_at),
        ready=ready(checks),
        checks=checks,
        plugins=tuple(plugin_status(one.inventory, one.report, clock, one.hooks.hung(), one.connections) for one in daemon.scanners.values()),
        resources=tuple(resource_status(one.cell.get(), holdings, clock, one, audit_of(daemon, one)) for _, one in sorted(daemon.services.items())),
        pod_resources=PodResourcesStatus(clock.age(holdings.taken_at) if holdings.taken_at else None, utf8(holdings.error)),
        config=ConfigurationStatus(utf8(configuration.source), configuration.hash, utf8(configuration.variant), clock.time(daemon.configured_at)),
        config_error=utf8(refused),
        events=tuple(
            HealthEvent(clock.time(one.at), one.plugin, utf8(one.unit), one.before.value if one.before else "", one.after.value, utf8(one.cause))
            for one in tuple(daemon.events)
            if one.before is not None or one.after is not Health.HEALTHY
        ),
    )


def plugin_status(
    inventory: Inventory, report: ScanReport, clock: Clock, hung: tuple[tuple[str, float], ...] = (), connections: tuple[Connection, ...] = ()
) -> PluginStatus:
    return PluginStatus(
        name=inventory.name,
        looked_seconds_ago=clock.age(report.succeeded_at) if report.succeeded_at else None,
        scan_seconds=round(report.seconds, 6),
        error=utf8(report.error),
        failures=report.failures,
        hung_hooks=tuple(HungHook(hook, round(seconds, 3)) for hook, seconds in hung),
        skipped=tuple(LeftOut(utf8(one.what), utf8(one.reason)) for one in inventory.skipped),
        warnings=tuple(utf8(one) for one in inventory.warnings),
        connections=tuple(ConnectionStatus(utf8(one.unit), utf8(one.other), utf8(one.kind), one.lanes) for one in connections),
    )


def audit_of(daemon: Daemon, service: Service) -> Audit:
    """What the plugin behind a service last found out about its allocations."""
    reconciler = daemon.reconcilers.get(service.cell.get().hooks.name)
    return reconciler.audit if reconciler is not None else Audit()


def resource_status(snapshot: Snapshot, holdings: Holdings, clock: Clock, service: Service | None = None, audit: Audit = _NO_AUDIT) -> ResourceStatus:
    """One resource; without its service, as it would be advertised."""
    active = service is not None and service.role is Role.ACTIVE
    standing = service.registrar.standing() if service is not None and active else None
    counts = snapshot.counts()
    return ResourceStatus(
        name=snapshot.resource,
        plugin=snapshot.hooks.name,
        role=service.role.value if service is not None else "none",
        waits_for=owner_name(waits_for(service)) if service is not None and service.role is Role.STANDBY else "",
        phase=standing.phase.value if standing else "",
        endpoint=standing.endpoint if standing else "",
        streams=standing.streams if standing else 0,
        lag=standing.lag if standing else 0,
        registrations=standing.registrations if standing else 0,
        error=standing.error if standing else service.error if service is not None and service.role is Role.BLOCKED else "",
        generation=snapshot.generation,
        replicas=snapshot.sharing.replicas,
        healthy=counts[Health.HEALTHY],
        unhealthy=counts[Health.UNHEALTHY],
        unknown=counts[Health.UNKNOWN],
        devices=tuple(_device(snapshot.resource, row, holdings, clock, audit) for row in snapshot.rows),
    )


def _device(resource: str, row: Row, holdings: Holdings, clock: Clock, audit: Audit) -> DeviceStatus:
    holders = holdings.holders(resource, row.id)
    enforced, detail = audit.enforced(resource, holders)
    return DeviceStatus(
        id=row.id,
        device=row.device.id,
        unit=utf8(row.device.unit),
        health=row.health.value,
        cause=utf8(row.cause),
        since=clock.time(row.since),
        age_seconds=clock.age(row.since),
        numa_nodes=row.device.numa_nodes,
        attributes={key: utf8(value) if isinstance(value, str) else value for key, value in row.device.attributes.items()},
        capacity={utf8(key): value for key, value in row.device.capacity.items()},
        held_by=tuple(ContainerStatus(one.namespace, one.pod, one.container) for one in holders) if holdings.taken_at else None,
        enforcement=row.device.enforcement.value,
        enforced=enforced,
        enforcement_detail=utf8(detail) if holders else "",
    )
