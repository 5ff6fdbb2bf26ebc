# SPDX-License-Identifier: Apache-2.0
"""One look at the hardware without a daemon: what would be advertised, what not, and why."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable

import msgspec

from deviceplugin.config import ConfigError, Settings
from deviceplugin.daemon import Plan, PluginPlan, sharing_of
from deviceplugin.hooks import HookFailed, Hooks
from deviceplugin.inventory import Inventory
from deviceplugin.kubelet.podresources import Holdings
from deviceplugin.observe.status import Clock, PluginStatus, ResourceStatus, plugin_status, resource_status
from deviceplugin.observe.words import utf8
from deviceplugin.scanner import ScanReport
from deviceplugin.tally import Tally


class Advice(msgspec.Struct, frozen=True, rename="camel"):
    """What a plugin says must be set elsewhere, in lines."""

    plugin: str
    lines: tuple[str, ...]


class Survey(msgspec.Struct, frozen=True, rename="camel"):
    """What one look found. ``deviceplugin check -o json`` answers this."""

    version: str
    """Of this format: ``v1``."""
    source: str
    """The configuration file, empty without one."""
    ok: bool
    """Whether all of it would be served: there are no errors."""
    errors: tuple[str, ...]
    """What must be mended first, with what to do."""
    warnings: tuple[str, ...]
    """What is probably not meant."""
    node: str = ""
    """The node that it is for."""
    variant: str = ""
    """The entry of ``nodes`` that counts there, empty if none does."""
    settings: Settings | None = None
    """What counts there, as it would stand in a file for this node only."""
    plugins: tuple[PluginStatus, ...] = ()
    """What each left out is in its ``skipped``."""
    resources: tuple[ResourceStatus, ...] = ()
    """As they would be advertised; who holds what is not known."""
    advice: tuple[Advice, ...] = ()


def refused(source: str, error: ConfigError) -> Survey:
    """A configuration that cannot even be tried."""
    return Survey("v1", source, False, (str(error),), ())


def survey(plan: Plan, progress: Callable[[str], None] = lambda _text: None) -> Survey:
    """Lets every plugin look once. ``progress`` hears what is being done."""
    clock = Clock()
    errors: list[str] = []
    warnings: list[str] = []
    plugins: list[PluginStatus] = []
    advice: list[Advice] = []
    resources: dict[str, ResourceStatus] = {}
    known: set[str] = set()
    for one in plan.plugins:
        label = one.settings.label
        progress(f"plugin {label} looks at its hardware")
        inventory, report, said = _look(one, plan)
        if report.error:
            errors.append(report.error)
        plugins.append(plugin_status(inventory, report, clock))
        advice += [Advice(label, said)] if said else []
        warnings += [f"plugin {label}: {text}" for text in inventory.warnings]
        for name, snapshot in inventory.snapshots.items():
            known |= {row.device.resource or one.plugin.resource for row in snapshot.rows}
            # Where a list is too long nothing is published, and why is said of the resource instead of a device.
            errors += [left.reason for left in inventory.skipped if left.what == name]
            if name in resources:
                errors.append(f"{name}: plugins {resources[name].plugin} and {label} both have devices for it: rename one of the resources")
            else:
                resources[name] = resource_status(snapshot, Holdings(), clock)
    for name in plan.settings.resources:
        if name not in known and not errors:
            near = difflib.get_close_matches(name, known, n=1)
            warnings.append(f"resources.{name}: no plugin has such a resource here{f', did you mean {near[0]!r}?' if near else ''}")
    configuration = plan.configuration
    node = plan.settings.node_name or os.uname().nodename
    if not plan.settings.node_name and any(one.match.names for variant in configuration.variants for one in variant.settings.nodes):
        warnings.append(f"nodes: nothing says this node's name, so {node!r} was taken, which the machine is called; --node shows another's")
    for file, found in configuration.files.items():
        if not found:
            warnings.append(f"labelFiles: {file} is not there, so no label in it")
    return Survey(
        version="v1",
        source=configuration.source,
        ok=not errors,
        errors=tuple(errors),
        warnings=tuple(warnings),
        node=node,
        variant=configuration.variant,
        settings=plan.settings,
        plugins=tuple(plugins),
        resources=tuple(one for _, one in sorted(resources.items())),
        advice=tuple(advice),
    )


def _look(plan: PluginPlan, whole: Plan) -> tuple[Inventory, ScanReport, tuple[str, ...]]:
    hooks = Hooks(plan.plugin, plan.settings.label, Tally(), plan.settings.deadlines.by_hook())
    inventory = Inventory(plan.settings.label, sharing=sharing_of(whole.settings.resources), clock=time.monotonic)
    began = time.monotonic()
    error = ""
    advice: tuple[str, ...] = ()
    try:
        hooks.call("start")
        inventory.update(hooks.call("discover"), hooks)
        if hooks.has("advice"):
            advice = tuple(utf8(str(line)) for line in hooks.call("advice"))
    except HookFailed as failure:
        error = str(failure)
    seconds = time.monotonic() - began
    try:
        hooks.call("stop")
    except HookFailed as failure:
        error = error or str(failure)
    hooks.close()
    return inventory, ScanReport(0.0 if error else time.monotonic(), seconds, error, bool(error)), advice
