# SPDX-License-Identifier: Apache-2.0
"""The manifest that the project ships, with the image that it builds, in a cluster: nothing is mocked but the GPUs.

NVML is the simulator of the test kit, on the nodes as a driver's library would be. The GPUs' device files are ours, with NVIDIA's numbers: no driver
stands behind them, so a file that the device cgroup lets through says ENXIO, and one that it refuses says EPERM.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from deviceplugin.testing import nvml
from tests.e2e.cluster import PODS, Cluster, Object, Worker
from tests.e2e.cluster.deployment import Deployment
from tests.e2e.cluster.image import Image
from tests.e2e.cluster.load import Load, pod
from tests.e2e.harness import PodResources

GPU, FUSE = "nvidia.com/gpu", "example.com/fuse"
SLOTS = 100  # of /dev/fuse, on each node
MAJOR = 195  # NVIDIA's character devices
FOLDER = "/run/simulated-gpus"
OLD, NEW = "deviceplugin.test/deviceplugin:old", "deviceplugin.test/deviceplugin:new"
COLD_START = 3.0
CONFIGURATION: Object = {
    "version": "v1",
    "plugins": [
        {
            "plugin": "gpu",
            "config": {
                "library": f"{FOLDER}/lib/{nvml.SONAME}",
                "injection": dict.fromkeys(("driverRoot", "containerDriverRoot", "devRoot"), FOLDER),
            },
        },
        {
            "plugin": "generic",
            "config": {"domain": "example.com", "devices": [{"name": "fuse", "groups": [{"count": SLOTS, "paths": [{"path": "/dev/fuse"}]}]}]},
        },
    ],
}


def put_gpus(node: Worker, scenario: nvml.Scenario) -> int:
    """Gives a node simulated GPUs and returns their number."""
    folder = node.run_dir / Path(FOLDER).relative_to("/run")
    (folder / "dev").mkdir(parents=True)
    for name, minor in [("nvidiactl", 255), *((f"nvidia{gpu.minor}", gpu.minor) for gpu in scenario.gpus)]:
        node.make_device(folder / "dev" / name, MAJOR, minor)
    scenario.install(folder / "lib")
    return len(scenario.gpus)


@pytest.fixture(scope="module")
def gpus(cluster: Cluster, image: Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many GPUs each node has, by its name. The nodes also get /dev/fuse and the image."""
    cluster.load(image.named([OLD, NEW], tmp_path_factory.mktemp("named")))
    first, second = cluster.nodes
    first.make_device("/dev/fuse", 10, 229)
    return {first.name: put_gpus(first, nvml.dgx1_v100()), second.name: put_gpus(second, nvml.l40s_pcie())}


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, gpus: Mapping[str, int]) -> Iterator[Deployment]:
    """The DaemonSet, serving on both nodes."""
    assert gpus
    deployment = Deployment(cluster, CONFIGURATION, [FOLDER])
    deployment.apply(OLD)
    deployment.wait_served()
    yield deployment
    deployment.delete()


def seen(cluster: Cluster, name: str) -> Object:
    """What devprobe has reported from inside a pod."""

    def report() -> Object | None:
        lines = str(cluster.api.get(f"{PODS}/{name}/log", raw=True)).splitlines()
        return next((json.loads(line) for line in lines if line.startswith("{")), None)

    return cluster.wait(report, 10, f"the report of pod {name}")


def test_both_nodes_count_their_own(cluster: Cluster, deployment: Deployment, gpus: Mapping[str, int]) -> None:
    for node in cluster.nodes:
        cluster.wait(lambda node=node: node.allocatable(GPU) == gpus[node.name], 10, f"{gpus[node.name]} GPUs on {node.name}")  # type: ignore[misc]
        assert node.allocatable(FUSE) == SLOTS
        (daemon,) = deployment.status(node)
        assert {one["name"] for one in daemon["resources"]} == {GPU, FUSE}


def test_pods_get_their_devices_and_no_others(cluster: Cluster, deployment: Deployment, gpus: Mapping[str, int]) -> None:
    node = cluster.nodes[0]
    files = [f"/dev/nvidia{minor}" for minor in range(gpus[node.name])]
    cluster.create_pod(pod("pair", {GPU: 2, FUSE: 1}, ("/dev/fuse", *files), node.name))
    cluster.create_pod(pod("none", {}, ("/dev/fuse", *files), node.name))
    try:
        for name in ("pair", "none"):
            cluster.wait_pod(name)
        devices = seen(cluster, "pair")["devices"]
        assert devices["/dev/fuse"] != "ENOENT"
        assert sum(devices[file] != "ENOENT" for file in files) == 2
        assert set(seen(cluster, "none")["devices"].values()) == {"ENOENT"}
    finally:
        cluster.delete_pods(["pair", "none"])


def test_a_pod_that_fits_nowhere_waits_until_one_is_freed(cluster: Cluster, deployment: Deployment, gpus: Mapping[str, int]) -> None:
    names = [f"full-{number}" for number in (1, 2)]
    for name, node in zip(names, cluster.nodes, strict=True):
        cluster.create_pod(pod(name, {GPU: gpus[node.name]}, node=node.name))
    try:
        for name in names:
            cluster.wait_pod(name)
        cluster.create_pod(pod("next", {GPU: 1}))
        assert f"Insufficient {GPU}" in cluster.wait_unschedulable("next")
        cluster.delete_pods(names[1:])
        assert cluster.wait_pod("next")["spec"]["nodeName"] == cluster.nodes[1].name
    finally:
        cluster.delete_pods([*names, "next"])


@pytest.mark.parametrize("image_name", [NEW, OLD], ids=["update", "downgrade"])
def test_no_pod_fails_through_a_rolling_update(cluster: Cluster, deployment: Deployment, image_name: str) -> None:
    before = {one["metadata"]["uid"] for one in deployment.pods()}
    with Load(cluster, FUSE) as load:
        began = time.monotonic()
        deployment.apply(image_name)
        deployment.wait_served(90)
        took = time.monotonic() - began
    after = deployment.pods()
    print(f"{image_name}: {took:.1f} s for two nodes; {load.created} pods, {len(load.admitted)} admitted, {len(load.failed)} failed")
    assert before.isdisjoint(one["metadata"]["uid"] for one in after)
    assert load.failed == {}
    assert len(load.admitted) == load.created
    for one in after:
        log = deployment.log(one)
        assert log.count("this one took over while it still served") == 2, log  # both resources


def process_started(node: Worker, pod: Object) -> float:
    """When a container's first process was started, in seconds since the machine was."""
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    number = (node.bundles_dir / container / "init.pid").read_text()
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime in proc(5); the name, which may have spaces, is left out


def test_cold_start(cluster: Cluster, deployment: Deployment, gpus: Mapping[str, int]) -> None:
    deployment.delete()
    node = cluster.nodes[0]
    resources = PodResources(node.pod_resources_socket)
    cluster.wait(lambda: not resources.allocatable().get(GPU), 10, f"{node.name} to have no GPU")
    cluster.wait(lambda: node.allocatable(GPU) == 0, 10, f"{node.name} to say so")
    deployment.apply(OLD)
    listed = shown = 0.0

    def served() -> bool:
        nonlocal listed, shown
        if not listed and len(resources.allocatable().get(GPU, {})) == gpus[node.name]:
            listed = time.clock_gettime(time.CLOCK_BOOTTIME)
        if listed and node.allocatable(GPU) == gpus[node.name]:
            shown = time.clock_gettime(time.CLOCK_BOOTTIME)
        return shown > 0

    cluster.wait(served, 30, f"the GPUs of {node.name} to be back")
    started = process_started(node, deployment.pod_on(node))
    print(f"from container start: in the kubelet after {listed - started:.2f} s, in the API after {shown - started:.2f} s (status every 1 s)")
    deployment.wait_served()
    assert listed - started < COLD_START
