# SPDX-License-Identifier: Apache-2.0
"""The chart, installed and taken away by Helm, on nodes; and what needs the API server: Events."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.cluster import Cluster, Object, network
from tests.e2e.cluster.image import Image

TOP = Path(__file__).resolve().parents[3]
RESOURCE = "devices.local/fuse"
SET = "/apis/apps/v1/namespaces/kube-system/daemonsets/deviceplugin"
SLOTS = 5


def values() -> Object:
    """With Events. There is no kube-proxy, so the pods are told where the API server really is."""
    generic = {"domain": "devices.local", "devices": [{"name": "fuse", "groups": [{"count": SLOTS, "paths": [{"path": "/dev/fuse"}]}]}]}
    where = {"KUBERNETES_SERVICE_HOST": network.CONTROL_PLANE, "KUBERNETES_SERVICE_PORT": network.API_SERVER.split(":")[1]}
    return {
        "config": {"version": "v1", "kubernetesEvents": True, "plugins": [{"plugin": "gpu"}, {"plugin": "generic", "config": generic}]},
        "extraEnv": [{"name": name, "value": value} for name, value in where.items()],
    }


@pytest.fixture
def helm(cluster: Cluster, image: Image, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs Helm as an administrator would. The release is taken away at the end."""
    cluster.load(image.named(["docker.io/library/deviceplugin:latest"], tmp_path))
    for node in cluster.nodes:
        node.make_device("/dev/fuse", 10, 229)
    plane = cluster.plane
    places = {f"HELM_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    environ = {**os.environ, **places, "KUBECONFIG": str(plane.kubeconfig("administrator", "system:masters"))}

    def run(*arguments: str) -> str:
        argv = plane.inside([plane.bin_dir / "helm", "--namespace", "kube-system", *arguments], cwd=TOP)
        done = subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=170, check=False)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}\n{cluster.events()}"
        return done.stdout

    yield run
    cluster.kubectl(
        "-n", "kube-system", "delete", "--ignore-not-found", "daemonset/deviceplugin", "configmap/deviceplugin", "serviceaccount/deviceplugin"
    )


def events(cluster: Cluster, reason: str) -> list[Object]:
    found: list[Object] = json.loads(cluster.kubectl("get", "events", "-o", "json", "--field-selector", f"reason={reason}"))["items"]
    return found


@pytest.mark.timeout(600, func_only=True)
def test_the_chart_is_installed_tells_the_cluster_and_goes(cluster: Cluster, helm: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values()))
    said = helm("upgrade", "--install", "deviceplugin", "charts/deviceplugin", "--values", str(file), "--wait", "--timeout", "120s")
    assert "STATUS: deployed" in said
    for node in cluster.nodes:
        cluster.wait(lambda node=node: node.allocatable(RESOURCE) == SLOTS, 30, f"{RESOURCE} on {node.name}")  # type: ignore[misc]
    bad = yaml.safe_dump({"version": "v1", "plugins": [{"plugin": "generic", "config": {"domain": "devices.local", "devcies": []}}]})
    patch = json.dumps({"data": {"config.yaml": bad}})
    cluster.kubectl("-n", "kube-system", "patch", "configmap", "deviceplugin", "--patch", patch)
    told = cluster.wait(
        lambda: found if len(found := events(cluster, "ConfigurationRefused")) == len(cluster.nodes) else None,
        150,
        "both nodes to tell of the refusal",
        lambda: cluster.kubectl("-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=deviceplugin", "--tail=20", "--prefix"),
    )
    assert {one["involvedObject"]["name"] for one in told} == {node.name for node in cluster.nodes}
    assert all("unknown key 'devcies', did you mean 'devices'?" in one["message"] and one["type"] == "Warning" for one in told)
    assert "ConfigurationRefused" in cluster.kubectl("describe", "node", cluster.nodes[0].name)
    assert [node.allocatable(RESOURCE) for node in cluster.nodes] == [SLOTS] * 2, "the old configuration stays in force"
    helm("uninstall", "deviceplugin", "--wait", "--timeout", "60s")
    assert cluster.api.find(SET) is None
