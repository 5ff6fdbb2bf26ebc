# SPDX-License-Identifier: Apache-2.0
"""What the plugin says is there is what NVIDIA's own Python binding says is there."""

from __future__ import annotations

import pynvml
from msgspec.structs import replace

from deviceplugin._native.nvml import XID, Gpu, Nvml, Snapshot, State
from deviceplugin.plugins.gpu import Gpu as Plugin
from deviceplugin.plugins.gpu import GpuConfig
from deviceplugin.testing import Kubelet
from tests.hardware.machine import RESOURCE, SOON, Machine
from tests.oracles import nvml as oracle


def steady(snapshot: Snapshot) -> Snapshot:
    """Without the readings that differ from one moment to the next."""
    return replace(snapshot, gpus=tuple(map(at_rest, snapshot.gpus)))


def at_rest(gpu: Gpu) -> Gpu:
    memory = gpu.memory and replace(gpu.memory, free=0, used=0)
    return replace(gpu, memory=memory, temperature=None, power=None, gpu_utilization=None, memory_utilization=None)


def test_everything_reads_the_same_through_both_bindings(machine: Machine) -> None:
    with Nvml(machine.library) as nvml:
        assert nvml.state is State.READY, nvml.reason
        seen = nvml.snapshot()
    assert steady(seen) == steady(oracle.snapshot(machine.library))


def test_every_gpu_is_listed_once_healthy_and_by_its_uuid(machine: Machine, kubelet: Kubelet) -> None:
    with oracle.library(machine.library):
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        uuids = sorted(pynvml.nvmlDeviceGetUUID(handle) for handle in handles)
    with machine.serving(kubelet):
        kubelet.wait_for(RESOURCE, healthy=len(uuids), unhealthy=0, timeout=SOON)
        assert sorted(kubelet.devices(RESOURCE)) == uuids
        assert kubelet.events.of("list", RESOURCE)[-1].detail["listed"] == len(uuids)


def test_events_of_every_gpu_that_has_any_are_listened_to(machine: Machine) -> None:
    with Nvml(machine.library) as nvml:
        gpus = nvml.snapshot(topology=False).gpus
        with nvml.events() as events:
            assert not events.failures
            for gpu in gpus:
                assert events.registered[gpu.index] & XID == (gpu.event_types or 0) & XID, gpu.uuid
            events.wait(0.3)  # raises where the driver does not let us wait


def test_the_plugin_watches_and_its_gpus_stay_known(machine: Machine, kubelet: Kubelet) -> None:
    plugin = Plugin(GpuConfig(library=machine.library if machine.given else ""), machine.host(kubelet.root))
    try:
        found = list(plugin.discover())
        watching = iter(plugin.watch())
        assert next(watching) == "registered"
        assert list(plugin.discover()) == found
    finally:
        plugin.stop()
