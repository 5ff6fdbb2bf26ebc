# SPDX-License-Identifier: Apache-2.0
"""Pods request nvidia.com/gpu on a real kubelet; the NVML underneath is the simulator.

The device files are ours, with NVIDIA's numbers. No driver stands behind them: a file that the device cgroup lets through says ENXIO, one that it
refuses says EPERM.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deviceplugin.testing import nvml
from tests.e2e.daemon import Daemon
from tests.e2e.harness import Node, Pod, probe, wait_for

GPU = "nvidia.com/gpu"
MAJOR = 195  # NVIDIA's character devices
SEEN_WITHIN = 1.0
PODS = 100
ROOTS = ("driverRoot", "containerDriverRoot", "devRoot")
DOUBLE = ({0, 3}, {0, 4}, {1, 2}, {1, 5}, {2, 3}, {4, 7}, {5, 6}, {6, 7})
"""The pairs of the hybrid cube mesh that have two NVLinks; the others have one or none."""


class Machine:
    """A node with simulated GPUs and our daemon."""

    def __init__(self, node: Node, scenario: nvml.Scenario, **options: Any) -> None:
        self.node = node
        self.scenario = scenario
        self.folder = node.work / f"gpu-{uuid.uuid4().hex[:8]}"
        (self.folder / "dev").mkdir(parents=True)
        for name, minor in [("nvidiactl", 255), *((f"nvidia{gpu.minor}", gpu.minor) for gpu in scenario.gpus)]:
            node.make_device(self.folder / "dev" / name, MAJOR, minor)
        library = scenario.install(self.folder / "lib")
        libraries = self.folder / "usr/lib/x86_64-linux-gnu"
        libraries.mkdir(parents=True)
        for name in ("libcuda.so", "libnvidia-ml.so"):  # a driver's files, for a CDI spec to name
            (libraries / f"{name}.{scenario.driver}").write_text("")
        config = {"library": str(library), **options, "injection": {**dict.fromkeys(ROOTS, str(self.folder)), **options.get("injection", {})}}
        self.daemon = Daemon(node, {"version": "v1", "listen": "", "plugins": [{"plugin": "gpu", "config": config}]}, f"gpu-{self.folder.name}")
        self.daemon.start()

    def uuid(self, index: int) -> str:
        return self.scenario.gpus[index].uuid

    def index(self, uuid: str) -> int:
        return next(i for i, gpu in enumerate(self.scenario.gpus) if gpu.uuid == uuid)

    def held(self, pod: str) -> set[int]:
        """The GPUs that a pod holds, by index."""
        return {self.index(one) for one in self.node.pod_devices(pod)[GPU]}

    def stop(self) -> None:
        status = self.daemon.end()
        self.node.clear()
        shutil.rmtree(self.node.work / "state", ignore_errors=True)
        assert status == 0, self.daemon.log.read_text()[-4000:]


@pytest.fixture
def dgx(node: Node) -> Iterator[Machine]:
    """Eight V100 whose NVLinks make a hybrid cube mesh."""
    machine = Machine(node, nvml.dgx1_v100())
    node.wait_resource(GPU, 8)
    yield machine
    machine.stop()


def mknods(machine: Machine) -> list[str]:
    return [f"c:{MAJOR}:{gpu.minor}" for gpu in machine.scenario.gpus]


def test_pod_gets_the_best_linked_gpus_and_nothing_else(node: Node, dgx: Machine) -> None:
    command = probe(*(f"/dev/nvidia{i}" for i in range(8)), mknod=mknods(dgx))
    with node.pod(Pod.single("pair", command=command, limits={GPU: 2})), node.pod(Pod.single("none", command=command)):
        pair = sorted(dgx.held("pair"))
        assert set(pair) in DOUBLE
        seen = node.probe("pair").devices
        assert {i for i in range(8) if seen[f"/dev/nvidia{i}"] != "ENOENT"} == set(pair)
        assert {i for i in range(8) if seen[f"c:{MAJOR}:{dgx.scenario.gpus[i].minor}"] != "EPERM"} == set(pair)
        assert sorted(node.pod_env("pair")["NVIDIA_VISIBLE_DEVICES"].split(",")) == sorted(dgx.uuid(i) for i in pair)
        nothing = node.probe("none").devices
        assert {nothing[device] for device in mknods(dgx)} == {"EPERM"}
        assert "NVIDIA_VISIBLE_DEVICES" not in node.pod_env("none")


def test_xid_marks_one_gpu_within_a_second_and_a_broken_one_stays_broken(node: Node, dgx: Machine) -> None:
    with node.pod(Pod.single("holder", limits={GPU: 1})):
        (broken,) = dgx.held("holder")
        began = time.monotonic()
        dgx.scenario.inject_xid(broken, 79)
        node.wait_resource(GPU, 7, SEEN_WITHIN)
        print(f"XID 79 seen by the kubelet after {time.monotonic() - began:.3f} s")
        node.wait_health("holder", GPU, {dgx.uuid(broken): "Unhealthy"}, timeout=5)
        with node.pod(Pod.single("rest", limits={GPU: 7})):
            assert broken not in dgx.held("rest")
        node.kill_kubelet()
        node.start_kubelet()
        node.wait_resource(GPU, 7)
        dgx.daemon.restart(signal.SIGKILL)
        node.wait_resource(GPU, 7)
        node.wait_health("holder", GPU, {dgx.uuid(broken): "Unhealthy"})


def test_gpu_recovers_after_the_quiet_that_its_rule_wants(node: Node) -> None:
    machine = Machine(node, nvml.one_t4(), faults={"xids": {"94": 2}})
    try:
        node.wait_resource(GPU, 1)
        machine.scenario.inject_xid(0, 94)
        node.wait_resource(GPU, 0, SEEN_WITHIN)
        node.wait_resource(GPU, 1, 10)
        with node.pod(Pod.single("after", limits={GPU: 1})):
            assert machine.held("after") == {0}
    finally:
        machine.stop()


def test_mig_is_repartitioned_while_other_pods_run(node: Node) -> None:
    scenario = nvml.dgx_h100()
    machine = Machine(node, scenario, migStrategy="mixed")
    try:
        node.wait_resource(GPU, 8)
        with node.pod(Pod.single("bystander", limits={GPU: 7})):
            pid, held = node.container_pid("bystander"), machine.held("bystander")
            (free,) = set(range(8)) - held
            nvml.write_host(scenario, machine.folder)
            scenario.partition(free, "3g.40gb", "1g.10gb", "1g.10gb")
            node.wait_resource("nvidia.com/mig-1g.10gb", 2)
            node.wait_resource("nvidia.com/mig-3g.40gb", 1)
            node.wait_resource(GPU, 7)
            scenario.unpartition(free)
            scenario.partition(free, "7g.80gb")
            node.wait_resource("nvidia.com/mig-7g.80gb", 1)
            node.wait_resource("nvidia.com/mig-1g.10gb", 0)
            assert node.container_pid("bystander") == pid
            assert machine.held("bystander") == held
    finally:
        machine.stop()


def test_gpu_is_injected_through_a_cdi_spec_that_the_plugin_made(cdi_node: Node) -> None:
    machine = Machine(cdi_node, nvml.l40s_pcie(), injection={"deviceListStrategy": ["cdi-cri"]})
    try:
        cdi_node.wait_resource(GPU, 4)
        command = probe(*(f"/dev/nvidia{i}" for i in range(4)), "/dev/nvidiactl", mknod=mknods(machine))
        with cdi_node.pod(Pod.single("cdi", command=command, limits={GPU: 1})):
            (held,) = machine.held("cdi")
            seen = cdi_node.probe("cdi").devices
            assert seen["/dev/nvidiactl"] != "ENOENT"
            assert {i for i in range(4) if seen[f"/dev/nvidia{i}"] != "ENOENT"} == {held}
            assert {i for i in range(4) if seen[f"c:{MAJOR}:{machine.scenario.gpus[i].minor}"] != "EPERM"} == {held}
            assert any(mount["destination"].endswith(f"libcuda.so.{machine.scenario.driver}") for mount in cdi_node.oci_spec("cdi")["mounts"])
            assert (cdi_node.cdi_dir / "k8s.device-plugin.nvidia.com-gpu.json").exists()
    finally:
        machine.stop()


@pytest.mark.timeout(300, func_only=True)
def test_a_hundred_pods_in_a_row_beside_a_lost_gpu(node: Node, dgx: Machine) -> None:
    """Each is admitted with two GPUs, then waits for a volume that never comes: so their number costs no containers."""
    dgx.scenario.lose(5)
    node.wait_resource(GPU, 7, 35)
    for i in range(PODS):
        pod = Pod.single(f"row-{i}", limits={GPU: 2})
        manifest = yaml.safe_load(pod.manifest(str(uuid.uuid4())))
        manifest["spec"]["volumes"] = [{"name": "never", "hostPath": {"path": "/nonexistent", "type": "Directory"}}]
        manifest["spec"]["containers"][0]["volumeMounts"] = [{"name": "never", "mountPath": "/never"}]
        path = node.manifests_dir / f"{pod.name}.yaml"
        path.with_name(f".{path.name}").write_text(yaml.safe_dump(manifest))
        path.with_name(f".{path.name}").rename(path)

        def held(name: str = f"{pod.name}-{node.name}") -> list[str]:
            pods = json.loads(node.get("pods")).get("items") or []
            failed = [p for p in pods if p["metadata"]["name"] == name and p["status"]["phase"] == "Failed"]
            assert not failed, failed[0]["status"].get("message")
            return sorted(node.pod_resources.list().get(name, {}).get("main", {}).get(GPU, {}))

        def given(read: Any = held) -> list[str] | None:
            return read() if len(read()) == 2 else None

        got = wait_for(given, 15, f"{pod.name} to hold two GPUs", (node.kubelet_log,), held)
        assert dgx.uuid(5) not in got
        Path(path).unlink()
        wait_for(lambda read=held: not read(), 15, f"{pod.name} to be gone", (node.kubelet_log,))  # type: ignore[misc]
