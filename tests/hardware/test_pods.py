# SPDX-License-Identifier: Apache-2.0
"""What a container gets is complete: device files that open, a CDI spec whose files are there, and CUDA that starts with these and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deviceplugin._native.nvml import Nvml
from deviceplugin.cdi import DYNAMIC
from deviceplugin.testing import ContainerConfig, Kubelet, Pod
from tests.hardware import jail
from tests.hardware.machine import RESOURCE, SOON, Machine, View


def start(kubelet: Kubelet, count: int) -> tuple[set[str], ContainerConfig]:
    """A pod's container: its devices, and what the runtime is told."""
    pod = Pod.requesting(RESOURCE, count)
    admission = kubelet.admit(pod)
    assert admission, admission.message
    return kubelet.held(pod), kubelet.start_container(pod)


def total(machine: Machine) -> int:
    with Nvml(machine.library) as nvml:
        return len(nvml.snapshot(topology=False).gpus)


def opens(host: View, path: str) -> None:
    os.close(os.open(host.path(path), os.O_RDWR | os.O_CLOEXEC))


def minors(paths: Sequence[str]) -> list[str]:
    return sorted(path for path in paths if re.fullmatch(r"/dev/nvidia\d+", path))


def test_every_device_file_is_there_and_opens(machine: Machine, kubelet: Kubelet) -> None:
    count = total(machine)
    with machine.serving(kubelet) as host:
        kubelet.wait_for(RESOURCE, healthy=count, timeout=SOON)
        held, config = start(kubelet, count)
        paths = [device.host_path for device in config.devices]
        for path in paths:
            opens(host, path)
        assert "/dev/nvidiactl" in paths
        assert len(minors(paths)) == count
        assert set(config.environ["NVIDIA_VISIBLE_DEVICES"].split(",")) == held


def test_one_gpu_brings_one_gpus_device_file(machine: Machine, kubelet: Kubelet) -> None:
    with Nvml(machine.library) as nvml:
        by_uuid = {gpu.uuid: gpu.minor for gpu in nvml.snapshot(topology=False).gpus}
    with machine.serving(kubelet):
        kubelet.wait_for(RESOURCE, healthy=len(by_uuid), timeout=SOON)
        (uuid,), config = start(kubelet, 1)
        assert minors([device.host_path for device in config.devices]) == [f"/dev/nvidia{by_uuid[uuid]}"]


def spec_of(machine: Machine, kubelet: Kubelet) -> tuple[View, dict[str, Any], dict[str, Any], str]:
    """One GPU through CDI: what all devices of the spec bring, what this one does, and its UUID."""
    with machine.serving(kubelet, deviceListStrategy=["cdi-cri"]) as host:
        kubelet.wait_for(RESOURCE, healthy=total(machine), timeout=SOON)
        (uuid,), config = start(kubelet, 1)
        assert not config.devices
        (name,) = config.cdi_devices
        kind, _, device = name.partition("=")
        path = f"{DYNAMIC}/{kind.replace('/', '-')}.json"
        spec = json.loads(Path(host.path(path)).read_text(encoding="utf-8"))
        assert spec["kind"] == kind
        (edits,) = (one["containerEdits"] for one in spec["devices"] if one["name"] == device)
        return host, spec["containerEdits"], edits, uuid


def test_the_spec_names_the_drivers_libraries_and_all_that_it_names_is_there(machine: Machine, kubelet: Kubelet) -> None:
    with Nvml(machine.library) as nvml:
        version = nvml.snapshot(topology=False).driver_version
    host, common, own, uuid = spec_of(machine, kubelet)
    names = {os.path.basename(mount["containerPath"]) for mount in common["mounts"]}
    assert {f"libcuda.so.{version}", f"libnvidia-ml.so.{version}"} <= names
    linked = {link.rpartition("/")[2] for hook in common.get("hooks", ()) for link in hook["args"]}
    assert {"libcuda.so.1", "libnvidia-ml.so.1"} <= names | linked, "programs open the libraries under these names"
    for mount in common["mounts"]:
        assert os.path.exists(host.path(mount["hostPath"])), mount
    for node in (*common["deviceNodes"], *own["deviceNodes"]):
        opens(host, node.get("hostPath", node["path"]))
    assert len(minors([node["path"] for node in own["deviceNodes"]])) == 1, uuid


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace takes root")
def test_cuda_starts_with_what_the_spec_names_and_nothing_else(machine: Machine, kubelet: Kubelet, tmp_path: Path) -> None:
    host, common, own, uuid = spec_of(machine, kubelet)
    with Nvml(machine.library) as nvml:
        if any(gpu.uuid == uuid and gpu.mig_mode for gpu in nvml.snapshot(topology=False).gpus):
            pytest.skip(f"{uuid} is in MIG mode, where CUDA finds MIG devices only")
    ran = jail.run(jail.contents(host, common, own), tmp_path)
    if ran.returncode == jail.REFUSED:
        pytest.skip(f"no mount namespace can be made here: {ran.stderr.strip()}")
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    assert json.loads(ran.stdout) == {"cuInit": 0, "cuDeviceGetCount": 0, "devices": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace takes root")
def test_cuda_does_not_start_without_the_device_files(machine: Machine, kubelet: Kubelet, tmp_path: Path) -> None:
    """Else the test before this one would prove nothing: something of the machine would leak in."""
    host, common, _ = spec_of(machine, kubelet)[:3]
    ran = jail.run(jail.contents(host, {**common, "deviceNodes": []}, {}), tmp_path)
    if ran.returncode == jail.REFUSED:
        pytest.skip(f"no mount namespace can be made here: {ran.stderr.strip()}")
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    assert json.loads(ran.stdout)["devices"] == 0
