# SPDX-License-Identifier: Apache-2.0
"""The node's labels: NVIDIA's names, values that Kubernetes takes, and the same each time."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from deviceplugin import Host
from deviceplugin.plugins.gpu.labels import Sharing, labels
from deviceplugin.testing.nvml import A100, L40S, T4, Scenario, dgx_h100, h100_mig, l40s_pcie, one_t4
from tests.unit.gpu_injection.conftest import Machine

VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def test_a_node_of_one_model_has_all_labels(machine: Machine) -> None:
    snapshot = machine.look(l40s_pcie())
    machine.put("/sys/class/dmi/id/product_name", text="PowerEdge R760xa (SKU)\n")
    assert labels(snapshot, machine.host) == {
        "nvidia.com/cuda.driver-version.full": "550.90.07",
        "nvidia.com/cuda.driver-version.major": "550",
        "nvidia.com/cuda.driver-version.minor": "90",
        "nvidia.com/cuda.driver-version.revision": "07",
        "nvidia.com/cuda.driver.major": "550",
        "nvidia.com/cuda.driver.minor": "90",
        "nvidia.com/cuda.driver.rev": "07",
        "nvidia.com/cuda.runtime-version.full": "12.4",
        "nvidia.com/cuda.runtime-version.major": "12",
        "nvidia.com/cuda.runtime-version.minor": "4",
        "nvidia.com/cuda.runtime.major": "12",
        "nvidia.com/cuda.runtime.minor": "4",
        "nvidia.com/gpu.compute.major": "8",
        "nvidia.com/gpu.compute.minor": "9",
        "nvidia.com/gpu.count": "4",
        "nvidia.com/gpu.family": "ada-lovelace",
        "nvidia.com/gpu.machine": "PowerEdge-R760xa-SKU",
        "nvidia.com/gpu.memory": "46068",
        "nvidia.com/gpu.mode": "compute",
        "nvidia.com/gpu.product": "NVIDIA-L40S",
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/mig.capable": "false",
        "nvidia.com/mps.capable": "false",
    }


def test_a_node_without_gpus_has_none(machine: Machine) -> None:
    assert labels(replace(machine.look(one_t4()), gpus=()), machine.host) == {}


def test_the_time_is_said_only_where_it_is_given(machine: Machine) -> None:
    assert labels(machine.look(one_t4()), machine.host, timestamp=1700000000)["nvidia.com/gfd.timestamp"] == "1700000000"


@pytest.mark.parametrize(
    ("sharing", "product", "strategy", "mps"),
    [
        (Sharing(strategy="time-slicing", replicas=4), "Tesla-T4-SHARED", "time-slicing", "false"),
        (Sharing(strategy="time-slicing", replicas=4, renamed=True), "Tesla-T4", "time-slicing", "false"),
        (Sharing(strategy="mps", replicas=4), "Tesla-T4-SHARED", "mps", "true"),
    ],
)
def test_shared_gpus_say_so(machine: Machine, sharing: Sharing, product: str, strategy: str, mps: str) -> None:
    found = labels(machine.look(one_t4()), machine.host, sharing={"nvidia.com/gpu": sharing})
    names = ("gpu.product", "gpu.replicas", "gpu.sharing-strategy", "mps.capable")
    assert [found[f"nvidia.com/{name}"] for name in names] == [product, "4", strategy, mps]


def test_a_mixed_node_says_the_same_in_whatever_order_gpus_come(machine: Machine) -> None:
    models = [A100, T4, L40S, T4, L40S]
    snapshot = machine.look(Scenario([dataclasses.replace(model, minor=n, pci=f"0000:{n + 16:02x}:00.0") for n, model in enumerate(models)]))
    found = labels(snapshot, machine.host)
    assert found["nvidia.com/gpu.product"] == "Tesla-T4"  # as many as the other, and the first of them comes first
    assert found["nvidia.com/gpu.count"] == "2"
    for seed in range(5):
        gpus = list(snapshot.gpus)
        random.Random(seed).shuffle(gpus)
        assert labels(replace(snapshot, gpus=tuple(gpus)), machine.host) == found


def test_mig_devices_have_labels_for_each_profile(machine: Machine) -> None:
    found = labels(machine.look(h100_mig("media")), machine.host, mig_strategy="mixed")
    assert found["nvidia.com/mig.strategy"] == "mixed"
    assert found["nvidia.com/mig.capable"] == "true"
    assert found["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert found["nvidia.com/gpu.replicas"] == "0"  # it is in MIG mode
    small = {key.removeprefix("nvidia.com/mig-1g.10gb."): value for key, value in found.items() if key.startswith("nvidia.com/mig-1g.10gb.")}
    assert {key: value for key, value in small.items() if not key.startswith("me.")} == {
        "product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb",
        "count": "6",
        "replicas": "1",
        "sharing-strategy": "none",
        "memory": "9984",
        "multiprocessors": "16",
        "slices.gi": "1",
        "slices.ci": "1",
        "engines.copy": "1",
        "engines.decoder": "1",
        "engines.encoder": "0",
        "engines.jpeg": "1",
        "engines.ofa": "0",
    }
    assert (small["me.count"], small["me.engines.ofa"], small["me.product"]) == ("1", "1", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb.me")


def test_alike_mig_devices_are_what_gpus_are(machine: Machine) -> None:
    sharing = {"nvidia.com/gpu": Sharing(strategy="time-slicing", replicas=2)}
    found = labels(machine.look(h100_mig("all-3g.40gb")), machine.host, mig_strategy="single", sharing=sharing)
    names = ("product", "count", "replicas", "memory", "slices.gi")
    assert [found[f"nvidia.com/gpu.{name}"] for name in names] == ["NVIDIA-H100-80GB-HBM3-MIG-3g.40gb-SHARED", "2", "2", "40448", "3"]


@pytest.mark.parametrize("layout", ["balanced", "empty"])
def test_unlike_mig_devices_are_said_to_be_invalid(machine: Machine, layout: str) -> None:
    found = labels(machine.look(h100_mig(layout)), machine.host, mig_strategy="single")
    names = ("product", "count", "replicas", "memory")
    assert [found[f"nvidia.com/gpu.{name}"] for name in names] == ["NVIDIA-H100-80GB-HBM3-MIG-INVALID", "0", "0", "0"]


def test_gpus_of_one_fabric_have_its_name(machine: Machine) -> None:
    scenario = dgx_h100()
    assert "nvidia.com/gpu.clique" not in labels(machine.look(scenario), machine.host)  # a cluster of zeros is none
    for n in range(8):
        scenario.change(n, cluster="0123456789abcdef" * 2, clique=7)
    assert labels(machine.look(scenario), machine.host)["nvidia.com/gpu.clique"] == "01234567-89ab-cdef-0123-456789abcdef.7"
    scenario.change(3, clique=8)
    assert "nvidia.com/gpu.clique" not in labels(machine.look(scenario), machine.host)


def pci_config(*records: bytes, status: int = 0x10) -> bytes:
    """A PCI configuration with a power management capability and then a vendor's that has these records."""
    body = b"VF" + b"".join(records)
    vendor = bytes([0x09, 0x00, 3 + len(body)]) + body
    config = bytearray(256)
    config[6], config[0x34] = status, 0x60
    config[0x60:0x62] = bytes([0x01, 0x70])
    config[0x70 : 0x70 + len(vendor)] = vendor
    return bytes(config)


HOST_DRIVER = bytes([0, 22]) + b"535.104.06" + b"r535_96\0\0\0"


@pytest.mark.parametrize("before", [b"", bytes([1, 4, 9, 9])])
def test_virtual_gpus_tell_the_hypervisors_driver(machine: Machine, before: bytes) -> None:
    snapshot = machine.look(one_t4())
    path = machine.path(f"/sys/bus/pci/devices/{snapshot.gpus[0].bus_id}/config")
    path.write_bytes(pci_config(before, HOST_DRIVER))
    found = labels(snapshot, machine.host)
    assert {key: value for key, value in found.items() if "vgpu" in key} == {
        "nvidia.com/vgpu.present": "true",
        "nvidia.com/vgpu.host-driver-version": "535.104.06",
        "nvidia.com/vgpu.host-driver-branch": "r535_96",
    }
    path.write_bytes(pci_config(before, HOST_DRIVER, status=0))
    assert not [key for key in labels(snapshot, machine.host) if "vgpu" in key]


@given(st.binary(min_size=256, max_size=256))
def test_no_pci_configuration_is_too_broken_to_read(tmp_path_factory: pytest.TempPathFactory, config: bytes) -> None:
    from deviceplugin.plugins.gpu import labels as module

    root = tmp_path_factory.mktemp("pci")
    place = root / "sys/bus/pci/devices/0000:10:00.0"
    place.mkdir(parents=True)
    (place / "config").write_bytes(bytes([*config[:6], 0x10, *config[7:]]))

    class Anything:
        bus_id = "00000000:10:00.0"
        index = 0

    found = module._vgpu([Anything()], Host(root=str(root)))  # type: ignore[list-item]
    assert set(found) <= {"vgpu.present", "vgpu.host-driver-version", "vgpu.host-driver-branch"}
