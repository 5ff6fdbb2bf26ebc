# SPDX-License-Identifier: Apache-2.0
"""What the ``devices`` and ``check`` commands show to people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deviceplugin.observe.pardon import Pardon
from deviceplugin.observe.readiness import instance_name
from deviceplugin.observe.status import DeviceStatus, PluginStatus, ResourceStatus, Status
from deviceplugin.observe.survey import Survey
from deviceplugin.observe.tables import Cell, Screen
from deviceplugin.observe.words import count, duration

SHOWN = 10
"""How many lines of one kind are shown before the rest is a number."""

_PHASES = {"down": "not registered", "expecting": "list not read yet"}
_HEALTH_STYLE = {"healthy": "good", "unhealthy": "bad", "unknown": "warn"}


def show_daemons(screen: Screen, daemons: Sequence[Status]) -> None:
    """Every daemon, every resource, and each device once: as the active instance has it."""
    for one in daemons:
        verdict = Cell("ready", "good") if one.ready else Cell("not ready", "bad")
        screen.line(f"{one.node}: deviceplugin {one.release}, {instance_name(one.pid, one.host)}, up {duration(one.uptime_seconds)}, ", verdict)
        for check in one.checks:
            if not check.ok:
                screen.line(f"  {check.name}: {check.text}", style="bad" if check.vital else "warn")
    resources = sorted(((resource, one) for one in daemons for resource in one.resources), key=lambda pair: (pair[0].name, pair[0].role != "active"))
    if resources:
        screen.line()
        screen.table(
            ("RESOURCE", "ROLE", "KUBELET", ">DEVICES", ">HEALTHY", ">HELD", "INSTANCE"),
            [
                (one.name, _role(one), _kubelet(one), str(len(one.devices)), _healthy(one), _held(one), instance_name(who.pid, who.host))
                for one, who in resources
            ],
        )
    else:
        screen.line("no devices")
    # Of several instances the active one comes first above, and so last here, where the last one counts.
    shown = {resource.name: resource for resource, _ in reversed(resources)}
    _show_devices(screen, [one for _, one in sorted(shown.items())])
    _show_left_out(screen, {plugin.name: plugin for one in reversed(daemons) for plugin in one.plugins}.values())
    for error in dict.fromkeys(one.pod_resources.error for one in daemons if one.pod_resources.error):
        screen.line(f"who holds what is not known: {error}", style="warn")


def show_pardons(screen: Screen, granted: Iterable[Pardon]) -> None:
    """What was forgiven, and what is so now; once where several instances say the same."""
    for one in dict.fromkeys(granted):
        now, style = {
            "healthy": ("it is healthy now", "good"),
            "gone": ("it is not here", "warn"),
            "": (f"not looked at yet: {one.why}", "warn"),
        }.get(one.health, (f"it is {one.health} still: {one.why}", "bad"))
        screen.line(f"{one.plugin}: {one.unit}: {one.cause} is forgiven; ", Cell(now, style))


def show_survey(screen: Screen, found: Survey) -> None:
    """What would be advertised, what not and why."""
    if found.variant:
        screen.line(f"node {found.node} has the settings of {found.variant!r} in nodes")
        screen.line()
    if found.resources:
        screen.table(
            ("RESOURCE", "PLUGIN", ">DEVICES", ">HEALTHY", ">REPLICAS"),
            [(one.name, one.plugin, str(len(one.devices)), _healthy(one), str(one.replicas)) for one in found.resources],
        )
        _show_devices(screen, found.resources, live=False)
    elif not found.errors:
        screen.line("no devices")
    _show_left_out(screen, found.plugins)
    for one in found.advice:
        screen.line()
        screen.line(f"plugin {one.plugin} advises:")
        for text in one.lines:
            screen.line(f"  {text}")
    for text in _few(list(dict.fromkeys(found.warnings))):
        screen.line(f"warning: {text}", style="warn")
    for error in found.errors:
        for line in error.splitlines():
            screen.line(f"error: {line}", style="bad")


def verdict(found: Survey) -> str:
    """What a check found, in figures."""
    parts = [count(len(found.resources), "resource"), count(sum(len(one.devices) for one in found.resources), "device")]
    if left := sum(len(one.skipped) for one in found.plugins):
        parts.append(f"{left} left out")
    if found.errors:
        parts.append(count(len(found.errors), "error"))
    return ", ".join(parts)


def _show_left_out(screen: Screen, plugins: Iterable[PluginStatus]) -> None:
    plugins = list(plugins)
    if any(one.skipped for one in plugins):
        screen.line()
    for one in plugins:
        for text in _few(list(dict.fromkeys(f"{left.what}: {left.reason}" for left in one.skipped))):
            screen.line(f"left out by plugin {one.name}: {text}", style="warn")


def _few(texts: Sequence[str]) -> Sequence[str]:
    """The first of them, and how many more there are."""
    return texts if len(texts) <= SHOWN else (*texts[:SHOWN], f"and {len(texts) - SHOWN} more, which -o json has")


def _show_devices(screen: Screen, resources: Iterable[ResourceStatus], *, live: bool = True) -> None:
    """``live`` is whether a daemon was asked: then it is known since when a device is as it is, and who holds it."""
    rows = []
    for resource in resources:
        for replicas in _by_device(resource):
            first = replicas[0]
            name = first.device + (f" (x{len(replicas)})" if resource.replicas > 1 else "")
            numa = ",".join(map(str, first.numa_nodes)) or "-"
            known = (duration(first.age_seconds), _holders(replicas)) if live else ()
            known = (_enforcement(replicas), *known)
            rows.append((resource.name, name, _health(first), numa, *known, _facts(first)))
    if rows:
        screen.line()
        screen.table(("RESOURCE", "DEVICE", "HEALTH", "NUMA", "ENFORCED", *(("FOR", "HELD BY") if live else ()), "?ATTRIBUTES"), rows)


def _by_device(resource: ResourceStatus) -> list[list[DeviceStatus]]:
    found: dict[str, list[DeviceStatus]] = {}
    for one in resource.devices:
        found.setdefault(one.device, []).append(one)
    return list(found.values())


def _role(resource: ResourceStatus) -> Cell:
    return Cell(resource.role, {"active": "good", "blocked": "bad"}.get(resource.role, ""))


def _kubelet(resource: ResourceStatus) -> Cell:
    if resource.role == "active":
        return Cell(_PHASES.get(resource.phase, resource.phase), "good" if resource.phase == "serving" else "warn")
    return Cell(f"waits for {resource.waits_for}" if resource.waits_for else "-", "dim")


def _healthy(resource: ResourceStatus) -> Cell:
    return Cell(str(resource.healthy), "good" if resource.healthy == len(resource.devices) else "bad")


def _held(resource: ResourceStatus) -> str:
    known = [one for one in resource.devices if one.held_by is not None]
    return str(sum(bool(one.held_by) for one in known)) if known else "?"


def _health(device: DeviceStatus) -> Cell:
    return Cell(f"{device.health}: {device.cause}" if device.cause else device.health, _HEALTH_STYLE.get(device.health, ""))


def _enforcement(replicas: Sequence[DeviceStatus]) -> Cell:
    """How strongly, and whether that was seen to hold for whoever has it."""
    tier = replicas[0].enforcement
    if broken := [one for one in replicas if one.enforced is False]:
        return Cell(f"{tier}: NOT ENFORCED" + (f": {broken[0].enforcement_detail}" if broken[0].enforcement_detail else ""), "bad")
    if any(one.enforced for one in replicas):
        return Cell(f"{tier}, verified", "good")
    return Cell(tier, "" if tier == "hard" else "warn")


def _holders(replicas: Sequence[DeviceStatus]) -> Cell:
    if any(one.held_by is None for one in replicas):
        return Cell("?", "dim")
    names = dict.fromkeys(f"{who.namespace}/{who.pod}/{who.container}" for one in replicas for who in one.held_by or ())
    return Cell(", ".join(names)) if names else Cell("-", "dim")


def _facts(device: DeviceStatus) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted({**device.attributes, **device.capacity}.items()))
