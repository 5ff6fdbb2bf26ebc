# SPDX-License-Identifier: Apache-2.0
"""What a container gets, by strategy."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from deviceplugin import DeviceNode, Mount
from deviceplugin.plugins.gpu.injection import Grant, InjectionError, InjectionOptions, grants
from deviceplugin.testing.nvml import dgx_h100, h100_mig, l40s_pcie
from tests.unit.gpu_injection.conftest import CONTROL, Machine


def test_by_default_the_runtime_is_told_in_a_variable_and_the_kubelet_in_device_files(machine: Machine) -> None:
    gpus = list(grants(machine.look(l40s_pcie())))
    edits = machine.injector().edits([gpus[2], gpus[1]])
    assert dict(edits.envs) == {"NVIDIA_VISIBLE_DEVICES": f"{gpus[1].uuid},{gpus[2].uuid}"}
    assert [node.container_path for node in edits.nodes] == [*CONTROL, "/dev/nvidia1", "/dev/nvidia2"]
    assert all(node.permissions == "rw" and node.path == node.container_path for node in edits.nodes)
    assert (edits.mounts, dict(edits.annotations), edits.cdi) == ((), {}, ())


def test_the_order_of_the_question_does_not_change_the_answer(machine: Machine) -> None:
    snapshot = machine.look(dgx_h100())
    machine.install_driver(snapshot.driver_version)
    injector = machine.injector(deviceListStrategy=["envvar", "device-specs", "volume-mounts", "cdi-annotations", "cdi-cri"])
    injector.refresh(snapshot)
    gpus = list(grants(snapshot))
    answer = injector.edits(gpus)
    for seed in range(5):
        random.Random(seed).shuffle(gpus)
        assert injector.edits(gpus) == answer
    again = machine.injector(deviceListStrategy=["envvar", "device-specs", "volume-mounts", "cdi-annotations", "cdi-cri"])
    again.refresh(snapshot)
    assert again.edits(gpus) == answer


def test_indices_are_used_where_configured(machine: Machine) -> None:
    snapshot = machine.look(h100_mig())
    gpus = list(grants(snapshot))
    edits = machine.injector(deviceListStrategy=["envvar"], deviceIDStrategy="index").edits([gpus[2], gpus[1]])
    assert dict(edits.envs) == {"NVIDIA_VISIBLE_DEVICES": "0:0,0:1"}
    assert edits.nodes == ()


def test_ten_gpus_are_in_the_order_of_their_numbers(machine: Machine) -> None:
    gpus = [Grant(f"GPU-{n}", str(n), n) for n in (10, 9, 2)]
    assert machine.injector(deviceListStrategy=["envvar"], deviceIDStrategy="index").edits(gpus).envs == {"NVIDIA_VISIBLE_DEVICES": "2,9,10"}


def test_volume_mounts_replace_the_list_in_the_variable(machine: Machine) -> None:
    gpus = list(grants(machine.look(l40s_pcie())))[:2]
    edits = machine.injector(deviceListStrategy=["envvar", "volume-mounts"]).edits(gpus)
    assert dict(edits.envs) == {"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices"}
    assert edits.mounts == tuple(Mount("/dev/null", f"/var/run/nvidia-container-devices/{gpu.uuid}", read_only=False) for gpu in gpus)


def test_features_are_named_to_the_runtime_and_their_device_files_given(machine: Machine) -> None:
    gpus = list(grants(machine.look(l40s_pcie())))[:1]
    machine.put("/dev/nvidia-fs1", "/dev/nvidia-fs0", "/dev/infiniband/uverbs0", "/dev/infiniband/rdma_cm", "/dev/infiniband/umad0", "/dev/gdrdrv")
    on = {"gdsEnabled": True, "mofedEnabled": True, "gdrcopyEnabled": True}
    edits = machine.injector(**on).edits(gpus)
    assert {key: value for key, value in edits.envs.items() if key != "NVIDIA_VISIBLE_DEVICES"} == {
        "NVIDIA_GDS": "enabled",
        "NVIDIA_MOFED": "enabled",
        "NVIDIA_GDRCOPY": "enabled",
    }
    extra = ["/dev/gdrdrv", "/dev/nvidia-fs0", "/dev/nvidia-fs1", "/dev/infiniband/uverbs0", "/dev/infiniband/rdma_cm"]
    assert [node.path for node in edits.nodes][len(CONTROL) + 1 :] == extra
    assert dict(machine.injector(deviceListStrategy=["device-specs"], **on).edits(gpus).envs) == {}


def test_device_files_are_taken_from_the_device_root(machine: Machine) -> None:
    snapshot = machine.look(l40s_pcie(), dev_root="/run/nvidia/driver")
    edits = machine.injector(deviceListStrategy=["device-specs"], driverRoot="/run/nvidia/driver").edits([next(grants(snapshot))])
    assert edits.nodes[-1] == DeviceNode("/run/nvidia/driver/dev/nvidia0", "/dev/nvidia0")
    edits = machine.injector(deviceListStrategy=["device-specs"], devRoot="/run/nvidia/driver").edits([next(grants(snapshot))])
    assert edits.nodes[-1] == DeviceNode("/run/nvidia/driver/dev/nvidia0", "/dev/nvidia0")


def test_a_driver_root_without_device_files_leaves_them_at_the_top(machine: Machine) -> None:
    snapshot = machine.look(l40s_pcie())
    edits = machine.injector(deviceListStrategy=["device-specs"], driverRoot="/run/nvidia/driver").edits([next(grants(snapshot))])
    assert edits.nodes[-1] == DeviceNode("/dev/nvidia0")


def test_control_files_that_are_not_there_are_left_out(machine: Machine) -> None:
    snapshot = machine.look(l40s_pcie())
    machine.path("/dev/nvidia-modeset").unlink()
    edits = machine.injector().edits([next(grants(snapshot))])
    assert [node.path for node in edits.nodes] == [*CONTROL[:3], "/dev/nvidia0"]


def test_mig_devices_of_one_gpu_share_its_file_and_have_capabilities_of_their_own(machine: Machine) -> None:
    migs = list(grants(machine.look(h100_mig())))[1:3]
    machine.put(*(f"/dev/nvidia-caps/nvidia-cap{n}" for n in range(200)))
    edits = machine.injector().edits(migs)
    own = [node.path for node in edits.nodes][len(CONTROL) :]
    # gpu0/gi1/access is 3 + 9, and each compute instance one more; then gpu0/gi2.
    assert own == ["/dev/nvidia0", *(f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in (12, 13, 21, 22))]


@pytest.mark.parametrize("loss", ["capability files", "capability table", "minor"])
def test_a_gpu_without_its_files_depends_on_the_runtime_and_fails_where_there_is_only_the_file(machine: Machine, loss: str) -> None:
    mig = list(grants(machine.look(h100_mig())))[1]
    if loss == "capability table":
        machine.path("/proc/driver/nvidia-caps/mig-minors").unlink()
    if loss == "minor":
        mig = Grant(mig.uuid, mig.index, None)
    assert mig.uuid in machine.injector().edits([mig]).envs["NVIDIA_VISIBLE_DEVICES"]
    with pytest.raises(InjectionError, match=mig.uuid):
        machine.injector(deviceListStrategy=["device-specs"]).edits([mig])


@pytest.mark.parametrize("strategies", [["envvar"], ["volume-mounts"], ["device-specs"]])
def test_an_imex_channel_is_given_where_it_is(machine: Machine, strategies: list[str]) -> None:
    gpu = next(grants(machine.look(l40s_pcie())))
    injector = machine.injector(deviceListStrategy=strategies, imex={"channelIDs": [0]})
    without = injector.edits([gpu])
    machine.put("/dev/nvidia-caps-imex-channels/channel0")
    edits = injector.edits([gpu])
    assert "NVIDIA_IMEX_CHANNELS" not in without.envs
    assert ("NVIDIA_IMEX_CHANNELS" in edits.envs) == (strategies == ["envvar"])
    assert ([*without.mounts, Mount("/dev/null", "/var/run/nvidia-container-devices/imex/0", read_only=False)] == [*edits.mounts]) == (
        strategies == ["volume-mounts"]
    )
    assert ([*without.nodes, DeviceNode("/dev/nvidia-caps-imex-channels/channel0")] == [*edits.nodes]) == (strategies == ["device-specs"])


def test_a_required_imex_channel_that_is_missing_fails_the_container(machine: Machine) -> None:
    gpu = next(grants(machine.look(l40s_pcie())))
    injector = machine.injector(imex={"channelIDs": [0], "required": True})
    with pytest.raises(InjectionError, match=r"imex\.required"):
        injector.edits([gpu])
    machine.put("/dev/nvidia-caps-imex-channels/channel0")
    assert injector.edits([gpu]).envs["NVIDIA_IMEX_CHANNELS"] == "0"


def test_clients_of_mps_get_its_pipes_and_shared_memory(machine: Machine) -> None:
    gpu = next(grants(machine.look(l40s_pcie())))
    injector = machine.injector(deviceListStrategy=["envvar"], mpsRoot="/run/nvidia/mps", mps={"nvidia.com/gpu": 4})
    edits = injector.edits([gpu], "nvidia.com/gpu")
    assert edits.envs["CUDA_MPS_PIPE_DIRECTORY"] == "/mps/nvidia.com/gpu/pipe"
    assert edits.mounts == (
        Mount("/run/nvidia/mps/nvidia.com/gpu/pipe", "/mps/nvidia.com/gpu/pipe", read_only=False),
        Mount("/run/nvidia/mps/shm", "/dev/shm", read_only=False),
    )
    assert injector.edits([gpu], "nvidia.com/other").mounts == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deviceListStrategy": []}, "at least one"),
        ({"deviceListStrategy": ["env"]}, "'env'"),
        ({"deviceIDStrategy": "name"}, "'name'"),
        ({"driverRoot": "run"}, "absolute"),
        ({"cdiAnnotationPrefix": "cdi.k8s.io"}, "a slash"),
        ({"imex": {"channelIDs": [1]}}, "1"),
        ({"imex": {"channelIDs": [0, 0]}}, "must be"),
        ({"mps": {"nvidia.com/gpu": 2}}, "mpsRoot"),
        ({"deviceListStrategies": ["envvar"]}, "deviceListStrategies"),
        ({"gds_enabled": True}, "gds_enabled"),
    ],
)
def test_mistakes_in_the_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(options, InjectionOptions)
    assert words in str(caught.value)
