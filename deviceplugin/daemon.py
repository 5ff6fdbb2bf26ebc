# SPDX-License-Identifier: Apache-2.0
"""Supervises everything on a node: a scanner for each plugin, a service for each resource, and what they share."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from deviceplugin.config import ConfigError, PluginSettings, ResourceSettings, Settings, advertised_name, load_class, plugin_config
from deviceplugin.configfile import Configuration, check_plugins
from deviceplugin.health import HealthBook
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import GONE, Inventory, Snapshot, Transition
from deviceplugin.kubelet.paths import Paths
from deviceplugin.kubelet.podresources import PodResources
from deviceplugin.kubelet.watch import DirectoryWatch
from deviceplugin.model import Health, Host, Sharing
from deviceplugin.plugin import Plugin
from deviceplugin.reconciler import Reconciler
from deviceplugin.scanner import Scanner
from deviceplugin.service import Role, Service
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

EVENTS_KEPT = 100


class PluginPlan(Struct, frozen=True):
    """One plugin, checked and ready to run: all that can be wrong with it in a configuration has been found."""

    settings: PluginSettings
    plugin: Plugin


class Plan(Struct, frozen=True):
    """A configuration, checked as a whole. What is running is only changed from one plan to another."""

    settings: Settings
    plugins: tuple[PluginPlan, ...]
    configuration: Configuration
    """Where the settings come from."""


def make_plan(settings: Settings, host: Host, classes: Mapping[str, type[Plugin]] | None = None) -> Plan:
    """Loads and checks everything that the settings name. ``classes`` are plugins given as such, by label. Raises ConfigError."""
    plans = []
    for one in settings.plugins:
        if not one.enabled:
            continue
        cls = (classes or {}).get(one.label) or load_class(one.plugin)
        config = plugin_config(cls, one.config, one.label)
        try:
            plugin = cls(config, host)
        except Exception as error:  # a vendor's own check of its options
            raise ConfigError(f"plugin {one.label}: {type(error).__name__}: {error}") from error
        plans.append(PluginPlan(one, plugin))
    return Plan(settings, tuple(plans), Configuration(settings))


def plan_for(configuration: Configuration, host: Host, classes: Mapping[str, type[Plugin]] | None = None) -> Plan:
    """The same from a file, of which all that is meant for other nodes is checked too. Raises ConfigError."""
    plan = make_plan(configuration.settings, host, check_plugins(configuration, classes))
    return replace(plan, configuration=configuration)


def sharing_of(resources: Mapping[str, ResourceSettings]) -> dict[str, Sharing]:
    """The sharing rules by the name that a plugin gives a resource."""
    return {
        name: Sharing(one.replicas, "" if advertised_name(name, one) == name else advertised_name(name, one), one.fail_requests_greater_than_one)
        for name, one in resources.items()
    }


class Daemon:
    """Everything that runs. :meth:`start`, :meth:`apply` and :meth:`stop` are for one thread; the rest may be read by any."""

    def __init__(self, plan: Plan, paths: Paths, host: Host, *, on_lost: Callable[[str], None] = lambda _path: None) -> None:
        self.tally = Tally()
        self.host = host
        self.paths = paths
        self.plan = plan
        self.started_at = time.monotonic()
        self.events: deque[Transition] = deque(maxlen=EVENTS_KEPT)
        self.configured_at = self.started_at
        """When the plan was put into force, on the monotonic clock."""
        self.on_transitions: Callable[[tuple[Transition, ...]], None] = lambda _changes: None
        """Hears of every change of health, on the thread that found it: must not block."""
        self.config_error = ""
        """Why another configuration was refused since, empty if none was."""
        self.scanners: Mapping[str, Scanner] = {}
        self.reconcilers: Mapping[str, Reconciler] = {}
        """By the plugin's label, of the plugins that have the hook."""
        self.services: Mapping[str, Service] = {}
        self.conflicts: Mapping[str, str] = {}
        self._owners: dict[str, str] = {}
        self._leaving: set[str] = set()
        self._lock = threading.RLock()
        self._stopping = False
        self.podresources = PodResources(paths.pod_resources, self.tally, self._on_view)
        self._watch = DirectoryWatch([paths.device_plugins, paths.plugins_registry], self._on_directory, on_lost)

    def start(self) -> None:
        """Starts everything; the devices follow as soon as each plugin has looked."""
        self._watch.start()
        with self._lock:
            self.scanners = {one.settings.label: self._scanner(one) for one in self.plan.plugins}
        for scanner in self.scanners.values():
            scanner.start()
        self._reconcile()
        self.podresources.start()

    def apply(self, plan: Plan) -> None:
        """Goes over to another configuration and touches only what it changes. Resources that stay keep their registration."""
        with self._lock:
            old, self.plan = self.plan, plan
            self.conflicts = {}  # those that are left are said again at the next look
            before = {one.settings.label: one.settings for one in old.plugins}
            wanted = {one.settings.label: one for one in plan.plugins}
            sharing = sharing_of(plan.settings.resources)
            gone = [scanner for label, scanner in self.scanners.items() if wanted.get(label) is None or wanted[label].settings != before[label]]
            kept = {label: scanner for label, scanner in self.scanners.items() if scanner not in gone}
            made = {label: self._scanner(one) for label, one in wanted.items() if label not in kept}
            self.scanners = {label: kept.get(label) or made[label] for label in wanted}
            dropped = [name for name, owner in self._owners.items() if owner not in self.scanners]
            # What the new configuration no longer fills goes once no container holds it.
            self._leaving.update(name for name, owner in self._owners.items() if owner in made or plan.settings.resources != old.settings.resources)
        for scanner in gone:
            scanner.stop()
            if scanner.name in made:
                made[scanner.name].inventory.inherit(scanner.inventory)
        for name in dropped:
            self._drop(name)
        for scanner in made.values():
            scanner.start()
        self._reconcile()
        if plan.settings.resources != old.settings.resources or plan.settings.registration != old.settings.registration:
            for scanner in kept.values():
                scanner.share(sharing)
            for name, service in list(self.services.items()):
                if service.watcher != self._watcher(name):
                    self._drop(name)
        self.configured_at = time.monotonic()
        self.config_error = ""

    def stop(self) -> None:
        """Ends all streams, removes our sockets, and frees the locks."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            services, scanners = list(self.services.values()), list(self.scanners.values())
        self._watch.stop()
        stops: list[Callable[[], None]] = [*(functools.partial(one.stop, True) for one in services), *(one.stop for one in scanners)]
        stopping = [threading.Thread(target=stop, daemon=True) for stop in stops]
        for thread in stopping:
            thread.start()
        deadline = time.monotonic() + 1.7
        for thread in stopping:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.podresources.stop()
        for reconciler in self.reconcilers.values():
            reconciler.stop()

    def wait_first_scan(self, timeout: float) -> bool:
        """Whether every plugin has looked once within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        return all(scanner.wait_first(max(0.0, deadline - time.monotonic())) for scanner in self.scanners.values())

    def held(self, resource: str, device_id: str) -> bool | None:
        """Whether any container holds the device; None when the kubelet does not say."""
        view = self.podresources.holdings.get()
        return bool(view.holders(resource, device_id)) if view.fresh else None

    def _scanner(self, plan: PluginPlan) -> Scanner:
        settings = plan.settings
        plan.plugin.sharing = sharing_of(self.plan.settings.resources)
        book = HealthBook({**plan.plugin.recovery, **settings.health.rules()}, settings.health.damping(), _boot_id(self.host))
        inventory = Inventory(
            settings.label,
            book=book,
            sharing=plan.plugin.sharing,
            tombstone_limit=self.plan.settings.tombstone_limit,
            clock=time.monotonic,
        )
        return Scanner(
            inventory,
            Hooks(plan.plugin, settings.label, self.tally, settings.deadlines.by_hook()),
            self.tally,
            on_publish=self._published,
            held=self.held,
            interval=settings.interval or plan.plugin.interval,
            unknown_after=settings.unknown_after,
            state_file=os.path.join(self.plan.settings.state_directory or self.paths.state, f"health-{settings.label}.json"),
        )

    def _reconcile(self) -> None:
        """Gives each plugin that has the hook a reconciler, and ends those of plugins that are gone."""
        before, now = self.reconcilers, {}
        for label, scanner in self.scanners.items():
            if scanner.hooks.has("reconcile"):
                kept = before.get(label)
                now[label] = (
                    kept if kept is not None and kept.hooks is scanner.hooks else Reconciler(scanner.hooks, self.tally, self._serves(scanner))
                )
        self.reconcilers = now
        for label, reconciler in before.items():
            if now.get(label) is not reconciler:
                reconciler.stop()
        for label, reconciler in now.items():
            if before.get(label) is not reconciler:
                reconciler.start()

    def _serves(self, scanner: Scanner) -> Callable[[], dict[str, Snapshot]]:
        """What this instance itself gives out of a plugin's resources: behind another instance it mends nothing."""

        def snapshots() -> dict[str, Snapshot]:
            mine = {name for name, service in self.services.items() if service.role is Role.ACTIVE}
            return {name: one for name, one in scanner.inventory.snapshots.items() if name in mine}

        return snapshots

    def _watcher(self, advertised: str) -> bool:
        settings = self.plan.settings
        for name, one in settings.resources.items():
            if advertised_name(name, one) == advertised and one.registration is not None:
                return one.registration == "watcher"
        return settings.registration == "watcher"

    def _policy(self, advertised: str) -> str:
        for name, one in self.plan.settings.resources.items():
            if advertised_name(name, one) == advertised:
                return one.policy
        return "spread"

    def _published(self, scanner: Scanner, transitions: tuple[Transition, ...]) -> None:
        """On the scanner's thread: hands each resource's snapshot to its service, and makes the service when the first device comes."""
        # A unit that is there and well from the start is no event.
        self.on_transitions(transitions)
        self.events.extend(one for one in transitions if one.before is not None or one.after is not Health.HEALTHY)
        started: list[Service] = []
        emptied: list[str] = []
        with self._lock:
            if self._stopping or self.scanners.get(scanner.name) is not scanner:
                return
            services, conflicts = dict(self.services), dict(self.conflicts)
            for name, snapshot in scanner.inventory.snapshots.items():
                owner = self._owners.get(name)
                if owner not in (None, scanner.name):
                    text = f"{name}: plugin {scanner.name} has devices for it too, but it belongs to plugin {owner}: rename one of the resources"
                    if all(row.cause == GONE for row in snapshot.rows):
                        conflicts = {other: said for other, said in conflicts.items() if said != text}
                        continue
                    if conflicts.get(name) != text:
                        log.error("%s", text)
                    conflicts[name] = text
                    continue
                if name in services:
                    services[name].update(snapshot)
                    if name in self._leaving and not snapshot.rows:
                        emptied.append(name)
                    elif any(row.cause != GONE for row in snapshot.rows):
                        self._leaving.discard(name)
                elif snapshot.rows:
                    # A resource is announced with its first device: an empty list would make the kubelet refuse pods that could wait.
                    self._owners[name] = scanner.name
                    services[name] = self._service(snapshot)
                    started.append(services[name])
            self.services, self.conflicts = services, conflicts
        for service in started:
            service.start()
        for name in emptied:
            self._drop(name)
        if scanner.inventory.tombstones:
            self.podresources.refresh()

    def _service(self, snapshot: Snapshot) -> Service:
        name = snapshot.resource
        return Service(
            snapshot, self.paths, self.tally, policy=lambda: self._policy(name), watcher=self._watcher(name), on_change=self.podresources.refresh
        )

    def _drop(self, name: str) -> None:
        """Ends the service of a resource. Whoever has devices for it may serve it next."""
        with self._lock:
            services = dict(self.services)
            service = services.pop(name, None)
            self.services = services
            self._owners.pop(name, None)
            self._leaving.discard(name)
            self.conflicts = {other: text for other, text in self.conflicts.items() if other != name}
        if service is not None:
            log.info("%s: no longer served", name)
            service.stop()
        for scanner in self.scanners.values():
            if name in scanner.inventory.snapshots and scanner.inventory.snapshots[name].rows:
                scanner.wake()

    def _on_view(self) -> None:
        for scanner in self.scanners.values():
            scanner.recheck()
        for reconciler in self.reconcilers.values():
            reconciler.view(self.podresources.holdings.get())

    def _on_directory(self, name: str) -> None:
        for service in self.services.values():
            if name in ("", "kubelet.sock") or name == service.registrar.standing().endpoint:
                service.registrar.wake()


def _boot_id(host: Host) -> str:
    """Which boot of the machine this is, empty where the kernel does not say."""
    try:
        with open(host.path("/proc/sys/kernel/random/boot_id"), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
