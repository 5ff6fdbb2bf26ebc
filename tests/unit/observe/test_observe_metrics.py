# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import deviceplugin
from deviceplugin.daemon import Daemon
from deviceplugin.model import Device, Health
from deviceplugin.observe import metrics
from tests.unit.observe.told import Make

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(daemon: Daemon) -> Samples:
    text = generate_latest(metrics.registry(daemon)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"deviceplugin_{name}", frozenset(labels.items())]


def test_devices_are_counted_by_health_and_faults_by_cause(make: Make) -> None:
    samples = scrape(make(Device("a"), Device("b", health=Health.UNHEALTHY, cause="xid: 79 at 0x1"), Device("c", health=Health.UNKNOWN)))
    resource = "example.com/told"
    assert [value(samples, "devices", resource=resource, health=health) for health in ("healthy", "unhealthy", "unknown")] == [1, 1, 1]
    assert value(samples, "devices_unavailable", resource=resource, health="unhealthy", cause="xid") == 1
    assert value(samples, "role", resource=resource, role="active") == 1
    assert value(samples, "role", resource=resource, role="standby") == 0
    assert value(samples, "serving", resource=resource) == 0
    assert value(samples, "ready") == 0
    assert value(samples, "build_info", version=deviceplugin.__version__) == 1


def test_what_was_tallied_is_there_with_its_labels(make: Make) -> None:
    daemon = make(Device("a"))
    daemon.tally.count("registration_failures", 2, resource="example.com/told", code="UNAVAILABLE")
    daemon.tally.time("rpc_seconds", 0.002, resource="example.com/told", call="Allocate")
    daemon.tally.time("rpc_seconds", 60.0, resource="example.com/told", call="Allocate")
    samples = scrape(daemon)
    assert value(samples, "registration_failures_total", resource="example.com/told", code="UNAVAILABLE") == 2
    labels = {"resource": "example.com/told", "call": "Allocate"}
    assert value(samples, "rpc_duration_seconds_count", **labels) == 2
    assert value(samples, "rpc_duration_seconds_sum", **labels) == pytest.approx(60.002)
    assert value(samples, "rpc_duration_seconds_bucket", le="0.001", **labels) == 0
    assert value(samples, "rpc_duration_seconds_bucket", le="0.0025", **labels) == 1
    assert value(samples, "rpc_duration_seconds_bucket", le="30.0", **labels) == 1
    assert value(samples, "rpc_duration_seconds_bucket", le="+Inf", **labels) == 2
    assert value(samples, "scan_duration_seconds_count", plugin="told") == 1


def test_a_failing_plugin_shows(make: Make) -> None:
    samples = scrape(make(error=OSError("no driver")))
    assert value(samples, "scan_failures_total", plugin="told") >= 1
    assert value(samples, "hook_failures_total", plugin="told", hook="discover", reason="error") >= 1
    assert value(samples, "scan_last_success_timestamp_seconds", plugin="told") == 0


def test_a_plugin_with_a_thousand_causes_makes_few_series(make: Make) -> None:
    samples = scrape(make(*(Device(f"d{i}", health=Health.UNHEALTHY, cause=f"fault-{i}") for i in range(1000))))
    causes = {key: number for (name, key), number in samples.items() if name == "deviceplugin_devices_unavailable"}
    assert len(causes) == metrics.MAX_CAUSES + 1
    assert sum(causes.values()) == 1000
    assert value(samples, "devices_unavailable", resource="example.com/told", health="unhealthy", cause="other") == 1000 - metrics.MAX_CAUSES


def test_a_cause_in_any_script_is_a_label(make: Make) -> None:
    samples = scrape(make(Device("a", health=Health.UNHEALTHY, cause='quote " back \\ slash \ud800')))
    assert any(name == "deviceplugin_devices_unavailable" for name, _ in samples)


def test_everything_that_is_tallied_anywhere_is_exported() -> None:
    package = Path(deviceplugin.__file__).parent
    sources = "".join(path.read_text() for path in package.glob("**/*.py") if "testing" not in path.parts)
    counted = set(re.findall(r"tally\.count\(\s*\"(\w+)\"", sources))
    timed = set(re.findall(r"tally\.time\(\s*\"(\w+)\"", sources))
    assert len(counted) > 5
    assert counted <= metrics._COUNTERS.keys()
    assert timed <= metrics._HISTOGRAMS.keys()
    assert timed
