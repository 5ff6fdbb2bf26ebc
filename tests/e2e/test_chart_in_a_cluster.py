# SPDX-License-Identifier: Apache-2.0
"""A real API server takes what the chart renders, strictly: no field that it does not know, no value that it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.charts import Chart, Object
from tests.e2e.cluster.controlplane import ControlPlane
from tests.e2e.test_chart import PLUGINS, config

CUSTOM = ("PodMonitor", "PrometheusRule")  # of the Prometheus operator, which is not here

OPTIONS: dict[str, Object] = {
    "everything else": {
        "metrics": {part: {"enabled": True} for part in ("service", "podMonitor", "rules", "dashboards")},
        "networkPolicy": {"enabled": True},
        "admissionPolicy": {"enabled": True, "actions": ["Warn", "Audit"]},
        **config("gpu", "generic", kubernetesEvents=True),
    },
    "another update": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}},
    "more of the pod": {
        "extraVolumes": [{"name": "labels", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}],
        "extraVolumeMounts": [{"name": "labels", "mountPath": "/etc/labels"}],
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "registry"}],
    },
    "private mounts": config(
        {
            "plugin": "pfs",
            "config": {"filesystems": [{"name": "a", "type": "lustre", "tier": "T3", "slots": 2, "privateMount": {"source": "10.0.0.1@tcp:/s"}}]},
        }
    )
    | {"privileged": True},
}
CASES = {name: values | {"privileged": capabilities == "privileged"} for name, (values, _, capabilities, _) in PLUGINS.items()} | OPTIONS


@pytest.fixture(scope="module")
def plane(e2e_bin: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(e2e_bin)
    plane.start([])
    yield plane
    plane.stop()


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_api_server_takes_it(e2e_bin: Path, plane: ControlPlane, values: Object) -> None:
    objects = [one for one in Chart(e2e_bin).render(values).values() if one["kind"] not in CUSTOM]
    taken = plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=yaml.safe_dump_all(objects))
    assert len(taken.splitlines()) == len(objects)
