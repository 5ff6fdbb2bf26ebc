# SPDX-License-Identifier: Apache-2.0
"""Whether the daemon lives and whether it is ready, each with reasons. Cheap: nothing here walks the devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import msgspec

from deviceplugin.daemon import Daemon
from deviceplugin.kubelet.lifecycle import Phase
from deviceplugin.kubelet.lock import Owner
from deviceplugin.kubelet.paths import identify
from deviceplugin.observe.words import count, duration, utf8
from deviceplugin.scanner import Scanner
from deviceplugin.service import Role, Service

LATE = 3
"""Intervals without a successful discovery after which a plugin is not ready."""


class Check(msgspec.Struct, frozen=True, rename="camel"):
    """One thing that readiness depends on."""

    name: str
    """``config``, ``plugin/<label>``, ``resource/<name>`` or ``conflict/<name>``."""
    ok: bool
    text: str
    """What was found, in words, good or bad."""
    vital: bool = True
    """Whether the daemon is not ready without it."""


def readiness(daemon: Daemon, now: float | None = None) -> tuple[Check, ...]:
    """What readiness depends on; ready means that all of it is well. ``now`` is on the monotonic clock.

    A standby that has looked at its hardware and waits for the lock is ready: a rolling update goes on when the new instance is. Devices that are
    unhealthy do not make the daemon unready: it does its work by saying so. A kubelet that is not there does, since nothing is served then.

    A configuration that was refused is shown and does not make it unready: the one before is in force. Were it otherwise, one bad edit would make
    the daemons of all nodes unready, and a rolling update replaces those at once, whatever maxUnavailable says (rollingUpdate,
    pkg/controller/daemon/update.go), by new ones that cannot start with that configuration.
    """
    now = time.monotonic() if now is None else now
    checks = [Check("config", not daemon.config_error, _config(daemon), vital=False)]
    intervals = {one.settings.label: one.settings.interval or one.plugin.interval for one in daemon.plan.plugins}
    checks += [_plugin(scanner, intervals.get(label, scanner.hooks.plugin.interval), now) for label, scanner in daemon.scanners.items()]
    checks += [_resource(service, daemon) for service in daemon.services.values()]
    checks += [Check(f"conflict/{name}", False, text) for name, text in daemon.conflicts.items()]
    return tuple(msgspec.structs.replace(one, text=utf8(one.text)) for one in checks)


def ready(checks: Iterable[Check]) -> bool:
    """Whether all is well that readiness depends on."""
    return all(one.ok for one in checks if one.vital)


def liveness(daemon: Daemon) -> tuple[str, ...]:
    """The threads that must run and do not, which only a restart mends. A hook that hangs is no reason: a restart would hang in it again."""
    running = {thread.name for thread in threading.enumerate()}
    wanted = ["watch-kubelet", "podresources", *(f"scan-{label}" for label in daemon.scanners)]
    wanted += [f"reconcile-{label}" for label in daemon.reconcilers]
    wanted += [f"register-{name}" for name, service in daemon.services.items() if service.role is Role.ACTIVE]
    return tuple(name for name in wanted if name not in running)


def waits_for(service: Service) -> Owner | None:
    """The instance that serves the resource instead of this one, if that can be told."""
    return service.lock.owner() if service.role is Role.STANDBY and service.error else None


def owner_name(owner: Owner | None) -> str:
    return "another instance" if owner is None else instance_name(owner.pid, owner.host)


def instance_name(pid: int, host: str) -> str:
    """One daemon among those of a node. In containers all may have the same process id."""
    return f"pid {pid}" + (f" on {host}" if host else "")


def _config(daemon: Daemon) -> str:
    if daemon.config_error:
        return f"not applied, the one before is in force: {daemon.config_error}"
    variant = daemon.plan.configuration.variant
    return f"applied, with {variant!r} of its nodes" if variant else "applied"


def _plugin(scanner: Scanner, interval: float, now: float) -> Check:
    name = f"plugin/{scanner.name}"
    report = scanner.report
    hung = scanner.hooks.hung()
    if hung:
        hook, age = hung[0]
        return Check(name, False, f"{hook}() hangs since {duration(age)}" + (f", and {count(len(hung) - 1, 'more call')}" if len(hung) > 1 else ""))
    if report.error:
        return Check(name, False, f"{report.error} ({count(report.failures, 'failure')} in a row)")
    if not report.succeeded_at:
        return Check(name, False, "has not looked at the hardware yet")
    age = now - report.succeeded_at
    if age > LATE * (interval + report.seconds) + 1.0:
        return Check(name, False, f"looked {duration(age)} ago, and should every {duration(interval)}")
    rows = sum(len(snapshot.rows) for snapshot in scanner.inventory.snapshots.values())
    return Check(name, True, f"{count(rows, 'device')}, looked {duration(age)} ago in {duration(report.seconds)}")


def _resource(service: Service, daemon: Daemon) -> Check:
    name = f"resource/{service.resource}"
    if service.role is Role.BLOCKED:
        return Check(name, False, f"blocked: {service.error}")
    if service.role is Role.STANDBY:
        return Check(name, bool(service.error), f"standby, ready to take over from {owner_name(waits_for(service))}" if service.error else "starting")
    standing = service.registrar.standing()
    if standing.phase is Phase.SERVING:
        return Check(name, True, f"active, serving as {standing.endpoint}" + (f", {standing.lag} lists behind" if standing.lag else ""))
    if standing.error:
        return Check(name, False, f"active, not serving: {standing.error}")
    if identify(daemon.paths.kubelet_socket) is None:
        return Check(name, False, f"active, not serving: no kubelet at {daemon.paths.kubelet_socket}")
    return Check(name, False, f"active, not serving yet: {standing.phase.value}")
