# SPDX-License-Identifier: Apache-2.0
"""What plugins measure of their devices, and who holds each, as metrics. The number of series is bounded whatever pods and plugins do."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from deviceplugin.daemon import Daemon
from deviceplugin.hooks import HookFailed
from deviceplugin.kubelet.podresources import Holder
from deviceplugin.model import Measure, Measurement
from deviceplugin.observe.words import utf8
from deviceplugin.scanner import Scanner

log = logging.getLogger(__name__)

FRESH = 1.0
"""Seconds for which figures are not asked for again, however many ask."""

MAX_SERIES = 5000
"""Figures of one plugin that are shown, and pairs of a device and its holder of one resource. The rest is a number."""

_WHO = ("device", "namespace", "pod", "container")
_NOBODY = Holder("", "", "")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Measures:
    """The figures of all plugins. One that hangs is not asked again before it came back; one that lies is told once, and shown without."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._last: Mapping[str, tuple[float, tuple[Measurement, ...]]] = {}
        self._said: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        holders = self._holders()
        yield from self._held(holders)
        yield from self._figures({key: found for _, by_device in holders for key, found in by_device.items()})

    def _holders(self) -> list[tuple[str, dict[str, Counter[Holder]]]]:
        """By resource, who holds how much of each device, and of each unit by its name; nothing where that is not known."""
        view = self._daemon.podresources.holdings.get()
        found: list[tuple[str, dict[str, Counter[Holder]]]] = []
        for resource, service in sorted(self._daemon.services.items()):
            by_device: dict[str, Counter[Holder]] = {}
            for row in service.cell.get().rows if view.fresh else ():
                for holder in view.holders(resource, row.id):
                    for name in {row.device.id, row.device.unit}:
                        by_device.setdefault(name, Counter())[holder] += 1
            found.append((resource, by_device))
        return found

    def _held(self, holders: Iterable[tuple[str, dict[str, Counter[Holder]]]]) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "deviceplugin_device_held", "Entries of the list, one per replica, that a container holds of a device.", labels=("resource", *_WHO)
        )
        omitted = GaugeMetricFamily(
            "deviceplugin_device_held_omitted", "Containers with devices that are not shown for their number.", labels=("resource",)
        )
        for resource, by_device in holders:
            known = {row.device.id for row in self._daemon.services[resource].cell.get().rows} if resource in self._daemon.services else set()
            pairs = sorted(
                (device, *holder_fields(who), number) for device, found in by_device.items() if device in known for who, number in found.items()
            )
            for device, namespace, pod, container, number in pairs[:MAX_SERIES]:
                held.add_metric((resource, utf8(device), namespace, pod, container), number)
            omitted.add_metric((resource,), max(0, len(pairs) - MAX_SERIES))
        yield held
        yield omitted

    def _figures(self, holders: Mapping[str, Counter[Holder]]) -> Iterator[Metric]:
        families: dict[str, tuple[Measure, GaugeMetricFamily | CounterMetricFamily]] = {}
        for label, scanner in self._daemon.scanners.items():
            if not scanner.hooks.has("measure"):
                continue
            measures = scanner.hooks.plugin.measures
            for one in self._ask(label, scanner)[:MAX_SERIES]:
                measure = measures.get(one.measure) if _is_sound(one) else None
                if measure is None or len(one.labels) != len(measure.labels):
                    self._complain(f"plugin {label}: measure() has a figure that is not as its measures say: {one!r:.120}")
                    continue
                known, family = families.setdefault(one.measure, (measure, _family(one.measure, measure)))
                if known != measure:
                    self._complain(f"plugin {label}: another plugin measures {one.measure} too, and means something else: it is not shown")
                    continue
                # With one holder a figure is that pod's; of several nobody can say whose it is.
                found = holders.get(one.device, Counter[Holder]())
                holder = next(iter(found)) if len(found) == 1 else _NOBODY
                family.add_metric((label, utf8(one.device), *holder_fields(holder), *map(utf8, one.labels)), one.value)
        for _, family in families.values():
            yield family

    def _ask(self, label: str, scanner: Scanner) -> tuple[Measurement, ...]:
        asked, figures = self._last.get(label, (0.0, ()))
        now = time.monotonic()
        if now - asked < FRESH or any(hook == "measure" for hook, _ in scanner.hooks.hung()):
            return figures
        try:
            figures = tuple(scanner.hooks.call("measure"))
        except HookFailed as error:
            figures = ()
            self._complain(f"{error}; it has no metrics meanwhile")
        self._last = {**self._last, label: (now, figures)}
        return figures

    def _complain(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)


def _is_sound(one: object) -> bool:
    return isinstance(one, Measurement) and _NAME.fullmatch(one.measure) is not None and isinstance(one.value, int | float)


def holder_fields(holder: Holder) -> tuple[str, str, str]:
    return utf8(holder.namespace), utf8(holder.pod), utf8(holder.container)


def _family(name: str, measure: Measure) -> GaugeMetricFamily | CounterMetricFamily:
    make = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    return make(f"deviceplugin_{name}", measure.documentation, labels=("plugin", *_WHO, *measure.labels))
