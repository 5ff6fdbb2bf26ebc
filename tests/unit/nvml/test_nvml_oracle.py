# SPDX-License-Identifier: Apache-2.0
"""The binding and NVIDIA's own Python binding, on one library, must say the same of any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deviceplugin._native.nvml import Nvml, State
from deviceplugin.testing import nvml as sim
from tests.oracles import nvml as oracle
from tests.unit.nvml.conftest import Start

MACHINES: dict[str, Callable[[], sim.Scenario]] = {
    "dgx-h100": sim.dgx_h100,
    "dgx-a100": sim.dgx_a100,
    "dgx1-v100": sim.dgx1_v100,
    "dgx2-v100": sim.dgx2_v100,
    "l40s": sim.l40s_pcie,
    "t4": sim.one_t4,
    "nothing": sim.Scenario,
    **{f"mig-{name}": lambda name=name: sim.h100_mig(name) for name in sim.H100_LAYOUTS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_ready_machine_reads_the_same_through_both_bindings(name: str, start: Start) -> None:
    machine = MACHINES[name]()
    seen = start(machine).snapshot()
    assert machine.path is not None
    assert seen == oracle.snapshot(machine.path.parent / sim.SONAME)
    assert len(seen.gpus) == len(machine.gpus)
    assert [g.uuid for g in seen.gpus] == [g.uuid for g in machine.gpus]


FUNCTIONS = [
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetAttributes",
    "nvmlDeviceGetGpuInstanceById",
    "nvmlDeviceGetGpuInstanceProfileInfo",
    "nvmlComputeInstanceGetInfo",
    "nvmlGpuInstanceGetComputeInstanceProfileInfo",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetNvLinkVersion",
    "nvmlDeviceGetNvLinkRemotePciInfo",
    "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetUtilizationRates",
    "nvmlSystemGetDriverVersion",
    "*",
]
SMALL = st.integers(-1, 3)


@st.composite
def machines(draw: st.DrawFn) -> sim.Scenario:
    count = draw(st.integers(0, 4))
    gpus = [
        replace(
            draw(st.sampled_from([sim.H100, sim.A100, sim.V100, sim.T4])),
            uuid=f"GPU-{n}",
            pci=f"{draw(st.sampled_from([0, 1, 0x10000])):04x}:{draw(st.integers(0, 255)):02x}:{draw(st.integers(0, 31)):02x}.0",
            tree=".".join(str(draw(st.integers(0, 1))) for _ in range(5)),
            numa=draw(st.integers(-1, 255)),
            serial=draw(st.sampled_from(["", "1654122000000", "x" * 29])),
            name=draw(st.sampled_from(["NVIDIA H100", "n" * 60, "Grün GPU"])),
            minor=draw(SMALL),
            memory=draw(st.integers(1 << 30, 1 << 40)),
            links=draw(st.sampled_from([0, 1, 4, 18, 36])),
            fabric_state=draw(SMALL),
            fabric_health=draw(st.integers(0, 0xFFFF)),
            cluster=draw(st.sampled_from(["", "0" * 32, "0123456789abcdef" * 2])),
            clique=draw(st.integers(0, 0xFFFFFFFF)),
            ecc_mode=draw(SMALL) % 3 - 1,
            ecc_uncorrected_aggregate=draw(st.integers(0, 1 << 62)),
            remap_corrected=draw(SMALL),
            remap_pending=draw(st.integers(0, 1)),
            temperature=draw(st.integers(-1, 120)),
            use_gpu=draw(st.integers(-1, 100)),
            lost=int(draw(st.integers(0, 5)) == 0),
        )
        for n in range(count)
    ]
    gpu = st.integers(0, count - 1)
    links = st.builds(
        sim.Link,
        gpu=gpu,
        link=st.integers(0, 35),
        remote=st.one_of(st.just(""), st.sampled_from([g.pci for g in gpus] or [""])),
        type=st.sampled_from([0, 1, 2, 255]),
        version=st.integers(0, 8),
        state=st.integers(0, 1),
    )
    machine = sim.Scenario(gpus, links=draw(st.lists(links, max_size=12)) if count else ())
    for n in range(count):
        profiles = sim.MIG_PROFILES.get(machine.gpus[n].profiles)
        if profiles and draw(st.booleans()):
            wanted = draw(st.lists(st.sampled_from([p.name for p in profiles]), max_size=5))
            with suppress(ValueError):  # what does not fit stays unpartitioned
                machine.partition(n, *wanted)
    rules = st.builds(
        sim.Rule, function=st.sampled_from(FUNCTIONS), gpu=st.integers(-1, max(count - 1, 0)), result=st.sampled_from([2, 3, 4, 6, 7, 15, 18, 999])
    )
    machine.rules = [r for r in draw(st.lists(rules, max_size=3)) if r.function != "*" or r.gpu >= 0]
    return machine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Nvml]]:
    folder = tmp_path_factory.mktemp("nvml")
    with Nvml(sim.Scenario().install(folder)) as nvml:
        assert nvml.state is State.READY
        yield folder, nvml


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machine=machines())
def test_any_machine_with_any_failures_reads_the_same_through_both_bindings(place: tuple[Path, Nvml], machine: sim.Scenario) -> None:
    folder, nvml = place
    machine.write(folder / "scenario")
    assert nvml.snapshot() == oracle.snapshot(folder / sim.SONAME)


def test_without_topology_and_health_the_rest_is_the_same(start: Start) -> None:
    nvml = start(sim.dgx_h100())
    whole, part = nvml.snapshot(), nvml.snapshot(topology=False, health=False)
    assert part.ancestors == ()
    for full, lean in zip(whole.gpus, part.gpus, strict=True):
        left_out = {"links", "fabric", "ecc", "remapped_rows", "retired_pages_pending", "temperature", "power", "power_limit", "failures"}
        left_out |= {"gpu_utilization", "memory_utilization"}
        for field in set(type(full).__struct_fields__) - left_out:
            assert getattr(full, field) == getattr(lean, field)
        assert lean.links == ()
        assert lean.temperature is None
