# SPDX-License-Identifier: Apache-2.0
"""CDI: the toolkit's specs where they are, ours where they are not, and no container without one."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

import pytest
from msgspec.structs import replace

from deviceplugin._native.nvml import Snapshot
from deviceplugin.plugins.gpu.injection import InjectionError, grants
from deviceplugin.testing.nvml import dgx_h100, h100_mig, l40s_pcie
from tests.unit.gpu_injection.conftest import CONTROL, LIBRARIES, Machine

OURS = "k8s.device-plugin.nvidia.com/gpu"
CRI: dict[str, Any] = {"deviceListStrategy": ["cdi-cri"]}


@pytest.fixture
def l40s(machine: Machine) -> Snapshot:
    snapshot = machine.look(l40s_pcie())
    machine.install_driver(snapshot.driver_version)
    return snapshot


def publish(machine: Machine, path: str, *names: str, kind: str = "nvidia.com/gpu") -> None:
    devices = "".join(f"- name: '{name}'\n  containerEdits: {{}}\n" for name in names)
    machine.put(path, text=f"cdiVersion: 0.5.0\nkind: {kind}\ndevices:\n{devices}")


def test_every_gpu_is_in_the_spec_by_uuid_and_by_index(machine: Machine, l40s: Snapshot) -> None:
    injector = machine.injector(**CRI)
    injector.refresh(l40s)
    spec = machine.spec("gpu")
    assert spec["cdiVersion"] == "0.5.0"  # for names that start with a digit
    assert {device["name"] for device in spec["devices"]} == {*(gpu.uuid for gpu in l40s.gpus), "0", "1", "2", "3"}
    nodes = {device["name"]: [node["path"] for node in device["containerEdits"]["deviceNodes"]] for device in spec["devices"]}
    assert nodes[l40s.gpus[3].uuid] == nodes["3"] == ["/dev/nvidia3"]
    edits = injector.edits(list(grants(l40s))[1:3])
    assert edits.cdi == (f"{OURS}={l40s.gpus[1].uuid}", f"{OURS}={l40s.gpus[2].uuid}")
    assert (dict(edits.envs), edits.nodes, edits.mounts, dict(edits.annotations)) == ({}, (), (), {})


def test_the_spec_has_the_control_files_and_this_version_of_the_driver(machine: Machine, l40s: Snapshot) -> None:
    machine.injector(**CRI).refresh(l40s)
    common = machine.spec("gpu")["containerEdits"]
    version = l40s.driver_version
    assert [node["path"] for node in common["deviceNodes"]] == CONTROL
    assert common["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    mounts = {mount["containerPath"]: mount["hostPath"] for mount in common["mounts"]}
    for name in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler", "libnvcuvid", "libGLX_nvidia", "vdpau/libvdpau_nvidia"):
        assert mounts[f"{LIBRARIES}/{name}.so.{version}"] == f"{LIBRARIES}/{name}.so.{version}"
    for path in (f"{LIBRARIES}/libnvidia-nvvm.so.4.0.0", "/usr/bin/nvidia-smi", "/run/nvidia-persistenced/socket"):
        assert mounts[path] == path
    assert f"/lib/firmware/nvidia/{version}/gsp_tu10x.bin" in mounts
    assert not {f"{LIBRARIES}/libcuda.so.1.2.3", f"{LIBRARIES}/libnvidia-ml.so.1.0.0", f"{LIBRARIES}/libc.so.6"} & mounts.keys()


def test_without_the_toolkit_libraries_are_there_under_the_names_that_programs_open(machine: Machine, l40s: Snapshot) -> None:
    machine.injector(**CRI).refresh(l40s)
    common = machine.spec("gpu")["containerEdits"]
    mounts = {mount["containerPath"]: mount["hostPath"] for mount in common["mounts"]}
    for name in ("libcuda.so", "libcuda.so.1"):
        assert mounts[f"{LIBRARIES}/{name}"] == f"{LIBRARIES}/libcuda.so.{l40s.driver_version}"
    assert "hooks" not in common


@pytest.mark.parametrize(("program", "start"), [("/usr/bin/nvidia-ctk", ["nvidia-ctk", "hook"]), ("/usr/bin/nvidia-cdi-hook", ["nvidia-cdi-hook"])])
@pytest.mark.parametrize("configured", [False, True])
def test_with_the_toolkit_its_hooks_make_the_links_and_the_cache(
    machine: Machine, l40s: Snapshot, program: str, start: list[str], configured: bool
) -> None:
    if configured:
        program = f"/opt/toolkit/{os.path.basename(program)}"  # on the host: this process need not see it
    else:
        machine.put(program)
    machine.injector(**CRI, **({"nvidiaCDIHookPath": program} if configured else {})).refresh(l40s)
    common = machine.spec("gpu")["containerEdits"]
    links, cache = common["hooks"]
    assert all(hook["hookName"] == "createContainer" and hook["path"] == program for hook in (links, cache))
    assert links["args"][: len(start) + 1] == [*start, "create-symlinks"]
    assert f"libcuda.so.{l40s.driver_version}::{LIBRARIES}/libcuda.so.1" in links["args"]
    assert cache["args"] == [*start, "update-ldcache", "--folder", LIBRARIES, "--folder", f"{LIBRARIES}/vdpau"]
    assert not [mount for mount in common["mounts"] if mount["containerPath"].endswith(".so.1")]


def test_a_driver_root_is_on_the_host_and_not_in_the_container(machine: Machine) -> None:
    snapshot = machine.look(l40s_pcie(), dev_root="/run/nvidia/driver")
    machine.install_driver(snapshot.driver_version, root="/run/nvidia/driver")
    machine.injector(**CRI, driverRoot="/run/nvidia/driver").refresh(snapshot)
    spec = machine.spec("gpu")
    library = f"{LIBRARIES}/libcuda.so.{snapshot.driver_version}"
    assert {mount["containerPath"]: mount["hostPath"] for mount in spec["containerEdits"]["mounts"]}[library] == f"/run/nvidia/driver{library}"
    node = {"path": "/dev/nvidia0", "hostPath": "/run/nvidia/driver/dev/nvidia0", "permissions": "rw"}
    assert node in [node for device in spec["devices"] for node in device["containerEdits"]["deviceNodes"]]


def test_a_driver_root_mounted_into_this_container_is_read_there(machine: Machine, l40s: Snapshot) -> None:
    mounted = machine.path("/mounted")
    machine.install_driver("999.1", root="/mounted")
    machine.injector(**CRI, driverRoot="/run/nvidia/driver", containerDriverRoot=str(mounted)).refresh(replace(l40s, driver_version="999.1"))
    hosts = [mount["hostPath"] for mount in machine.spec("gpu")["containerEdits"]["mounts"]]
    assert f"/run/nvidia/driver{LIBRARIES}/libcuda.so.999.1" in hosts
    assert not [path for path in hosts if not path.startswith("/run/nvidia/driver/")]


def test_device_files_below_a_driver_root_that_is_mounted_are_found_there(machine: Machine, l40s: Snapshot) -> None:
    """The driver's container has them too, and nobody mounts the driver's root at its own path in ours."""
    mounted = machine.path("/mounted")
    machine.install_driver(l40s.driver_version, root="/mounted")
    machine.put(*(f"/mounted/dev/nvidia{gpu.minor}" for gpu in l40s.gpus), "/mounted/dev/nvidiactl")
    machine.injector(**CRI, driverRoot="/run/nvidia/driver", containerDriverRoot=str(mounted)).refresh(l40s)
    nodes = [node for device in machine.spec("gpu")["devices"] for node in device["containerEdits"]["deviceNodes"]]
    assert {"path": "/dev/nvidia3", "hostPath": "/run/nvidia/driver/dev/nvidia3", "permissions": "rw"} in nodes


def test_mig_devices_are_in_the_spec_with_their_capabilities(machine: Machine) -> None:
    snapshot = machine.look(h100_mig())
    machine.install_driver(snapshot.driver_version)
    machine.put(*(f"/dev/nvidia-caps/nvidia-cap{n}" for n in range(200)))
    injector = machine.injector(**CRI)
    injector.refresh(snapshot)
    nodes = {device["name"]: [node["path"] for node in device["containerEdits"]["deviceNodes"]] for device in machine.spec("gpu")["devices"]}
    assert nodes["0:1"] == nodes[snapshot.gpus[0].migs[1].uuid] == ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"]
    assert injector.edits([list(grants(snapshot))[2]]).cdi == (f"{OURS}={snapshot.gpus[0].migs[1].uuid}",)


def test_looking_again_writes_nothing_and_a_new_partition_is_written(machine: Machine) -> None:
    scenario = h100_mig()
    snapshot = machine.look(scenario)
    machine.install_driver(snapshot.driver_version)
    machine.put(*(f"/dev/nvidia-caps/nvidia-cap{n}" for n in range(200)))
    injector = machine.injector(**CRI)
    injector.refresh(snapshot)
    path = machine.path("/var/run/cdi/k8s.device-plugin.nvidia.com-gpu.json")
    before = path.stat().st_ino
    injector.refresh(machine.look(scenario))
    assert path.stat().st_ino == before
    scenario.partition(0, "7g.80gb")
    snapshot = machine.look(scenario)
    injector.refresh(snapshot)
    assert path.stat().st_ino != before
    assert {device["name"] for device in machine.spec("gpu")["devices"]} == {snapshot.gpus[0].uuid, snapshot.gpus[0].migs[0].uuid, "0", "0:0"}


def test_no_spec_is_written_where_no_strategy_needs_one(machine: Machine, l40s: Snapshot) -> None:
    machine.injector().refresh(l40s)
    assert not machine.path("/var/run/cdi").exists()


@pytest.mark.parametrize("path", ["/etc/cdi/nvidia.yaml", "/var/run/cdi/nvidia.yaml", "/var/run/cdi/nvidia-gpus.yaml"])
def test_what_the_toolkit_published_is_used(machine: Machine, l40s: Snapshot, path: str) -> None:
    publish(machine, path, "all", *(gpu.uuid for gpu in l40s.gpus))
    injector = machine.injector(**CRI)
    injector.refresh(l40s)
    assert injector.edits([next(grants(l40s))]).cdi == (f"nvidia.com/gpu={l40s.gpus[0].uuid}",)


def test_a_gpu_that_the_toolkit_did_not_publish_comes_from_ours(machine: Machine, l40s: Snapshot) -> None:
    publish(machine, "/etc/cdi/nvidia.yaml", "0", "1", l40s.gpus[0].uuid)
    injector = machine.injector(**CRI)
    injector.refresh(l40s)
    gpus = list(grants(l40s))
    assert injector.edits(gpus[:1]).cdi == (f"nvidia.com/gpu={gpus[0].uuid}",)
    assert injector.edits(gpus[:2]).cdi == (f"{OURS}={gpus[0].uuid}", f"{OURS}={gpus[1].uuid}")
    by_index = machine.injector(**CRI, deviceIDStrategy="index")
    by_index.refresh(l40s)
    assert by_index.edits(gpus[:2]).cdi == ("nvidia.com/gpu=0", "nvidia.com/gpu=1")


def test_the_toolkits_spec_is_seen_when_it_comes_changes_and_goes(machine: Machine, l40s: Snapshot) -> None:
    injector, gpu = machine.injector(**CRI), next(grants(l40s))

    def kind() -> str:
        injector.refresh(l40s)
        return injector.edits([gpu]).cdi[0].partition("=")[0]

    assert kind() == OURS
    publish(machine, "/etc/cdi/nvidia.yaml", gpu.uuid)
    assert kind() == "nvidia.com/gpu"
    publish(machine, "/etc/cdi/nvidia.yaml", gpu.uuid, kind="nvidia.com/other")
    assert kind() == OURS
    machine.path("/etc/cdi/nvidia.yaml").unlink()
    assert kind() == OURS


def test_a_broken_spec_of_the_toolkit_is_named_and_left_aside(machine: Machine, l40s: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    machine.put("/etc/cdi/nvidia.yaml", text="a: [")
    injector = machine.injector(**CRI)
    injector.refresh(l40s)
    injector.refresh(l40s)
    assert injector.edits([next(grants(l40s))]).cdi[0].startswith(OURS)
    assert [record.message.count("nvidia.yaml") for record in caplog.records] == [1]


def test_a_spec_that_cannot_be_written_fails_the_container_with_the_reason(
    machine: Machine, l40s: Snapshot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    injector, gpu = machine.injector(**CRI), next(grants(l40s))
    with monkeypatch.context() as patch:

        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        injector.refresh(l40s)
        injector.refresh(l40s)
    with pytest.raises(InjectionError, match=r"No space left on device: free some space"):
        injector.edits([gpu])
    assert [record.levelno for record in caplog.records] == [logging.ERROR]  # said once, not at each look
    injector.refresh(l40s)
    assert injector.edits([gpu]).cdi


def test_the_toolkits_spec_does_when_ours_cannot_be_written(machine: Machine, l40s: Snapshot) -> None:
    publish(machine, "/etc/cdi/nvidia.yaml", *(gpu.uuid for gpu in l40s.gpus))
    machine.path(f"{LIBRARIES}/libcuda.so.{l40s.driver_version}").unlink()
    injector = machine.injector(**CRI)
    injector.refresh(l40s)
    assert injector.edits([next(grants(l40s))]).cdi[0].startswith("nvidia.com/gpu=")


def test_a_driver_whose_libraries_are_not_found_fails_the_container(machine: Machine) -> None:
    snapshot = machine.look(l40s_pcie())
    injector = machine.injector(**CRI)
    with pytest.raises(InjectionError, match="not been looked at"):
        injector.edits([next(grants(snapshot))])
    injector.refresh(snapshot)
    with pytest.raises(InjectionError, match=rf"libcuda\.so\.{snapshot.driver_version}"):
        injector.edits([next(grants(snapshot))])


def test_a_gpu_whose_file_is_missing_is_not_in_the_spec_and_its_siblings_are(machine: Machine, l40s: Snapshot) -> None:
    machine.path("/dev/nvidia2").unlink()
    injector = machine.injector(**CRI)
    injector.refresh(l40s)
    gpus = list(grants(l40s))
    assert injector.edits([gpus[1]]).cdi
    with pytest.raises(InjectionError, match="/dev/nvidia2 is not there"):
        injector.edits([gpus[2]])


def test_annotations_are_few_short_and_tell_the_same_names(machine: Machine) -> None:
    snapshot = machine.look(dgx_h100())
    machine.install_driver(snapshot.driver_version)
    injector = machine.injector(deviceListStrategy=["cdi-annotations", "cdi-cri"], cdiAnnotationPrefix="cdi.example.com/")
    injector.refresh(snapshot)
    edits = injector.edits(list(grants(snapshot)))
    ((key, value),) = edits.annotations.items()
    assert key.startswith("cdi.example.com/nvidia-device-plugin_")
    assert len(key.partition("/")[2]) <= 63
    assert tuple(value.split(",")) == edits.cdi
    other = injector.edits(list(grants(snapshot))[:1])
    assert other.annotations.keys().isdisjoint(edits.annotations)


def test_features_and_channels_have_specs_of_their_own_where_they_are(machine: Machine, l40s: Snapshot) -> None:
    options = {**CRI, "gdsEnabled": True, "mofedEnabled": True, "gdrcopyEnabled": True, "imex": {"channelIDs": [0]}}
    machine.put("/dev/nvidia-fs0", "/etc/cufile.json", "/dev/gdrdrv")
    injector = machine.injector(**options)
    injector.refresh(l40s)
    gpu = next(grants(l40s))
    vendor = "k8s.device-plugin.nvidia.com"
    assert injector.edits([gpu]).cdi == (f"{OURS}={gpu.uuid}", f"{vendor}/gdrcopy=all", f"{vendor}/gds=all")
    assert machine.spec("gds")["devices"][0]["containerEdits"]["mounts"][0]["hostPath"] == "/etc/cufile.json"
    machine.put("/dev/nvidia-caps-imex-channels/channel0", "/dev/infiniband/rdma_cm")
    injector.refresh(l40s)
    assert injector.edits([gpu]).cdi[1:] == tuple(f"{vendor}/{name}" for name in ("imex-channel=0", "gdrcopy=all", "gds=all", "mofed=all"))
    assert [device["name"] for device in machine.spec("imex-channel")["devices"]] == ["0"]


def test_the_specs_are_left_over_under_any_strategy_and_a_strangers_are_not(machine: Machine, l40s: Snapshot) -> None:
    machine.injector(**CRI).refresh(l40s)
    publish(machine, "/var/run/cdi/nvidia.yaml", "0")
    later = machine.injector()
    ours = ["CDI spec /var/run/cdi/k8s.device-plugin.nvidia.com-gpu.json"]
    assert list(later.leftovers(remove=False)) == ours
    assert list(later.leftovers(remove=True)) == ours
    assert list(later.leftovers(remove=True)) == []
    assert os.listdir(machine.path("/var/run/cdi")) == ["nvidia.yaml"]
