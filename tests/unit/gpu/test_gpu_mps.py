# SPDX-License-Identifier: Apache-2.0
"""Sharing through MPS, as far as it is the plugin's to decide."""

from __future__ import annotations

import pytest

from deviceplugin import Health
from deviceplugin.testing import nvml as sim
from tests.unit.gpu.conftest import Make
from tests.unit.gpu.rig import UNHEALTHY


def test_gpus_whose_mps_daemon_does_not_run_are_unhealthy_and_the_others_are_not(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    rig = make(
        sim.l40s_pcie(),
        resources=[{"match": {"index": 0}, "name": "gpu.mps"}],
        injection={"mps": {"nvidia.com/gpu.mps": 4}, "mpsRoot": "/run/nvidia/mps", "deviceListStrategy": ["envvar"]},
    )
    assert rig.health() == {0: (UNHEALTHY, "mps")}
    assert "nvidia.com/gpu.mps" in rig.skipped()


def test_containers_of_a_resource_with_mps_become_clients_and_others_do_not(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    rig = make(
        sim.l40s_pcie(),
        resources=[{"match": {"index": 0}, "name": "gpu.mps"}],
        injection={"mps": {"nvidia.com/gpu.mps": 4}, "mpsRoot": "/run/nvidia/mps", "deviceListStrategy": ["envvar"]},
    )
    first, *others = rig.devices()
    assert "CUDA_MPS_PIPE_DIRECTORY" in rig.plugin.allocate([first]).envs
    assert "CUDA_MPS_PIPE_DIRECTORY" not in rig.plugin.allocate(others).envs
    assert {device.health for device in others} == {Health.HEALTHY}
