# SPDX-License-Identifier: Apache-2.0
"""The daemon as Prometheus metrics, read at each scrape: nothing is kept twice. Only the status server imports this.

The number of series is bounded by the configuration: labels are plugins, resources, hooks, calls and codes. One label comes from hardware, the cause
of a fault: of those, each resource shows its most frequent :data:`MAX_CAUSES`. Devices and pods are labels in ``measures`` only, which counts them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import deviceplugin
from deviceplugin.daemon import Daemon
from deviceplugin.kubelet.lifecycle import Phase
from deviceplugin.model import Enforcement, Health
from deviceplugin.observe.measures import Measures
from deviceplugin.observe.readiness import readiness, ready
from deviceplugin.observe.status import audit_of
from deviceplugin.observe.words import utf8
from deviceplugin.reconciler import allocations
from deviceplugin.service import Role
from deviceplugin.tally import BUCKETS

MAX_CAUSES = 10
MAX_CAUSE_LENGTH = 48
OTHER = "other"

_COUNTERS = {
    "config_reloads": ("config_reloads", "Configurations read while running, by whether they were applied or refused.", ("result",)),
    "registrations": ("registrations", "Registrations begun with the kubelet.", ("resource",)),
    "registration_failures": ("registration_failures", "Registrations that the kubelet refused or did not answer.", ("resource", "code")),
    "lists": ("lists_sent", "Device lists sent to the kubelet.", ("resource",)),
    "allocations": ("allocations", "Containers that were given devices.", ("resource",)),
    "allocated_devices": ("allocated_devices", "Devices given to containers.", ("resource",)),
    "preferred_failures": ("preferred_failures", "Choices of devices that failed and were made without regard to the policy.", ("resource",)),
    "rpc_failures": ("rpc_failures", "Calls of the kubelet that were refused.", ("resource", "call", "code")),
    "hook_failures": (
        "hook_failures",
        "Calls of a plugin's code that raised, hung or were not made.",
        ("plugin", "hook", "reason"),
    ),
    "scan_failures": ("scan_failures", "Discoveries that failed.", ("plugin",)),
    "health_transitions": ("health_transitions", "Units that changed to a health.", ("plugin", "health")),
    "podresources_failures": ("podresources_failures", "Questions who holds what that the kubelet did not answer.", ("code",)),
}

_ENFORCED = (("true", True), ("false", False), ("unknown", None))

_HISTOGRAMS = {
    "rpc_seconds": ("rpc_duration_seconds", "Time to answer a call of the kubelet.", ("resource", "call")),
    "hook_seconds": ("hook_duration_seconds", "Time that a plugin's code took.", ("plugin", "hook")),
    "scan_seconds": ("scan_duration_seconds", "Time of a successful discovery.", ("plugin",)),
}


def registry(daemon: Daemon) -> CollectorRegistry:
    """All metrics of the daemon and of its process."""
    found = CollectorRegistry(auto_describe=False)
    found.register(DaemonCollector(daemon))
    ProcessCollector(registry=found)
    return found


class DaemonCollector(Collector):
    """Reads the daemon's snapshots and its tally."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._measures = Measures(daemon)

    def collect(self) -> Iterable[Metric]:
        yield from self._process()
        yield from self._resources()
        yield from self._enforcement()
        yield from self._plugins()
        yield from self._tally()
        yield from self._measures.collect()

    def _process(self) -> Iterator[Metric]:
        daemon = self._daemon
        checks = readiness(daemon)
        yield _gauge("build_info", "Version of the program, as a label.", ("version",), [((deviceplugin.__version__,), 1)])
        yield _gauge("ready", "Whether everything is as it should be (/readyz says what is not).", (), [((), int(ready(checks)))])
        yield from self._config()
        holdings = daemon.podresources.holdings.get()
        if holdings.taken_at:
            said_at = time.time() - (time.monotonic() - holdings.taken_at)
            yield _gauge("podresources_last_success_timestamp_seconds", "When the kubelet last said who holds what.", (), [((), said_at)])

    def _config(self) -> Iterator[Metric]:
        """Under the names that Prometheus has for its own."""
        daemon = self._daemon
        configuration, applied_at = daemon.plan.configuration, time.time() - (time.monotonic() - daemon.configured_at)
        yield _gauge(
            "config_last_reload_successful",
            "Whether the configuration, when last read, was put into force (/readyz says why not).",
            (),
            [((), int(not daemon.config_error))],
        )
        yield _gauge("config_last_reload_success_timestamp_seconds", "When the configuration in force was put there.", (), [((), applied_at)])
        running = (configuration.hash, utf8(configuration.variant))
        yield _gauge(
            "config_info", "The SHA-256 sum of the file in force, and which of its nodes this one is, as labels.", ("hash", "variant"), [(running, 1)]
        )

    def _resources(self) -> Iterator[Metric]:
        role, serving, streams, lag, generation, devices, causes = [], [], [], [], [], [], []
        for name, service in sorted(self._daemon.services.items()):
            standing, snapshot = service.registrar.standing(), service.cell.get()
            role += [((name, one.value), int(service.role is one)) for one in Role]
            serving.append(((name,), int(service.role is Role.ACTIVE and standing.phase is Phase.SERVING)))
            streams.append(((name,), standing.streams))
            lag.append(((name,), standing.lag))
            generation.append(((name,), snapshot.generation))
            seen: Counter[Health] = Counter()
            faults: Counter[tuple[str, str]] = Counter()
            for row in snapshot.rows:
                seen[row.health] += 1
                if row.health is not Health.HEALTHY:
                    faults[row.health.value, _cause(row.cause)] += 1
            devices += [((name, one.value), seen[one]) for one in Health]
            causes += [((name, *key), number) for key, number in _most(faults)]
        by = ("resource",)
        yield _gauge("devices", "Devices in the list for the kubelet, replicas counted each.", ("resource", "health"), devices)
        yield _gauge("devices_unavailable", "Those of them that no new container is given, by cause.", ("resource", "health", "cause"), causes)
        yield _gauge("role", "1 for what this instance is for the resource, 0 for what it is not.", ("resource", "role"), role)
        yield _gauge("serving", "Whether the kubelet reads this instance's list.", by, serving)
        yield _gauge("streams", "ListAndWatch streams that are open.", by, streams)
        yield _gauge("stream_lag_generations", "Lists that the slowest stream was not sent yet.", by, lag)
        yield _gauge("list_generation", "Number of the current list; it grows with every change that the kubelet sees.", by, generation)

    def _enforcement(self) -> Iterator[Metric]:
        tiers, verdicts = [], []
        holdings = self._daemon.podresources.holdings.get()
        for name, service in sorted(self._daemon.services.items()):
            snapshot, audit = service.cell.get(), audit_of(self._daemon, service)
            seen = Counter(row.device.enforcement for row in snapshot.rows)
            tiers += [((name, one.value), seen[one]) for one in Enforcement if seen[one]]
            if service.role is Role.ACTIVE and holdings.fresh:
                found = Counter(audit.enforced(name, [held.holder])[0] for held in allocations({name: snapshot}, holdings))
                verdicts += [((name, word), found[value]) for word, value in _ENFORCED]
        yield _gauge(
            "devices_enforcement",
            "Devices in the list by what keeps others from using them, replicas counted each.",
            ("resource", "enforcement"),
            tiers,
        )
        yield _gauge(
            "allocations_held", "Containers that hold some of it, by whether that is seen to be enforced.", ("resource", "enforced"), verdicts
        )

    def _plugins(self) -> Iterator[Metric]:
        shift = time.time() - time.monotonic()
        scanners = list(self._daemon.scanners.items())
        success = [((name,), one.report.succeeded_at + shift if one.report.succeeded_at else 0.0) for name, one in scanners]
        yield _gauge("scan_last_success_timestamp_seconds", "When a discovery last succeeded, 0 if none did.", ("plugin",), success)
        yield _gauge(
            "hooks_hung",
            "Calls of a plugin's code that have not come back.",
            ("plugin",),
            [((name,), len(one.hooks.hung())) for name, one in scanners],
        )
        skipped = [((name,), len(one.inventory.skipped)) for name, one in scanners]
        yield _gauge("devices_left_out", "Things that were seen and are not advertised (`deviceplugin devices` says why).", ("plugin",), skipped)

    def _tally(self) -> Iterator[Metric]:
        counters = {
            key: CounterMetricFamily(f"deviceplugin_{name}", documentation, labels=labels) for key, (name, documentation, labels) in _COUNTERS.items()
        }
        for key, labels, value in self._daemon.tally.counters():
            if key in counters:
                counters[key].add_metric([labels.get(label, "") for label in _COUNTERS[key][2]], value)
        yield from counters.values()
        histograms = {
            key: HistogramMetricFamily(f"deviceplugin_{name}", documentation, labels=labels)
            for key, (name, documentation, labels) in _HISTOGRAMS.items()
        }
        bounds = [*map(str, BUCKETS), "+Inf"]
        for key, labels, times in self._daemon.tally.histograms():
            if key in histograms:
                buckets = list(zip(bounds, map(float, accumulate(times.counts)), strict=True))
                histograms[key].add_metric([labels.get(label, "") for label in _HISTOGRAMS[key][2]], buckets, times.total)
        yield from histograms.values()


def _gauge(name: str, documentation: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"deviceplugin_{name}", documentation, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family


def _cause(cause: str) -> str:
    """What comes before the first colon, as in the rules for recovery: details behind it would make a series each."""
    return utf8(cause).partition(":")[0].strip()[:MAX_CAUSE_LENGTH]


def _most(faults: Counter[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], int]]:
    """The most frequent causes, and all others as one."""
    # Equal numbers in an order that does not depend on which came first: a series must not come and go.
    ranked = sorted(faults.items(), key=lambda item: (-item[1], item[0]))
    rest: Counter[tuple[str, str]] = Counter()
    for (health, _), number in ranked[MAX_CAUSES:]:
        rest[health, OTHER] += number
    merged = Counter(dict(ranked[:MAX_CAUSES])) + rest
    yield from sorted(merged.items())
