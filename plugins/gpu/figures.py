# SPDX-License-Identifier: Apache-2.0
"""What NVML measures of each GPU, as metrics: what most users take from dcgm-exporter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from deviceplugin import Measure, Measurement
from deviceplugin._native.nvml import Gpu, Snapshot

MEASURES: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        "gpu_info": Measure("1 for each GPU, with what it is.", labels=("model", "pci_address", "index", "driver_version")),
        "gpu_utilization_ratio": Measure("Part of the last sample period in which a kernel ran, from 0 to 1."),
        "gpu_memory_utilization_ratio": Measure("Part of the last sample period in which memory was read or written, from 0 to 1."),
        "gpu_memory_total_bytes": Measure("Memory of the GPU."),
        "gpu_memory_used_bytes": Measure("Memory that is in use by whoever it be, without what the driver keeps."),
        "gpu_temperature_celsius": Measure("Temperature of the GPU's die."),
        "gpu_power_watts": Measure("Power that the GPU draws."),
        "gpu_power_limit_watts": Measure("Power that the GPU is held to."),
        "gpu_ecc_errors_total": Measure("ECC errors since the driver was loaded, or in the GPU's life.", "counter", ("kind", "since")),
        "gpu_remapped_rows_total": Measure("Rows of memory replaced by spare ones, by the errors that were the reason.", "counter", ("kind",)),
        "gpu_row_remap_pending": Measure("Whether rows wait for a reset to be replaced."),
        "gpu_row_remap_failed": Measure("Whether replacing a row has failed, for want of spare ones."),
        "gpu_nvlinks": Measure("NVLinks by whether they are up.", labels=("state",)),
        "gpu_xids_total": Measure("XID errors that the driver told since this process started, harmless ones included.", "counter", ("xid",)),
    }
)


def figures(snapshot: Snapshot | None, xids: Mapping[tuple[str, int], int]) -> Iterator[Measurement]:
    """``xids`` is how often each was told, by UUID and code. What a GPU does not answer is left out; without a driver, all but those."""
    if snapshot is not None:
        for gpu in snapshot.gpus:
            if gpu.uuid:
                yield Measurement("gpu_info", 1, gpu.uuid, (gpu.name, gpu.bus_id, str(gpu.index), snapshot.driver_version))
                yield from _state(gpu)
                yield from _errors(gpu)
    for (uuid, code), number in sorted(xids.items()):
        yield Measurement("gpu_xids_total", number, uuid, (str(code),))


def _state(gpu: Gpu) -> Iterator[Measurement]:
    values = {
        "gpu_utilization_ratio": (gpu.gpu_utilization, 100),
        "gpu_memory_utilization_ratio": (gpu.memory_utilization, 100),
        "gpu_memory_total_bytes": (gpu.memory.total if gpu.memory else None, 1),
        "gpu_memory_used_bytes": (gpu.memory.used if gpu.memory else None, 1),
        "gpu_temperature_celsius": (gpu.temperature, 1),
        "gpu_power_watts": (gpu.power, 1000),
        "gpu_power_limit_watts": (gpu.power_limit, 1000),
    }
    for name, (value, divisor) in values.items():
        if value is not None:
            yield Measurement(name, value / divisor, gpu.uuid)
    if gpu.links:
        up = sum(link.active for link in gpu.links)
        yield Measurement("gpu_nvlinks", up, gpu.uuid, ("up",))
        yield Measurement("gpu_nvlinks", len(gpu.links) - up, gpu.uuid, ("down",))


def _errors(gpu: Gpu) -> Iterator[Measurement]:
    if gpu.ecc is not None:
        counts = {
            ("corrected", "load"): gpu.ecc.corrected_volatile,
            ("uncorrected", "load"): gpu.ecc.uncorrected_volatile,
            ("corrected", "ever"): gpu.ecc.corrected_aggregate,
            ("uncorrected", "ever"): gpu.ecc.uncorrected_aggregate,
        }
        for labels, count in counts.items():
            if count is not None:
                yield Measurement("gpu_ecc_errors_total", count, gpu.uuid, labels)
    if gpu.remapped_rows is not None:
        yield Measurement("gpu_remapped_rows_total", gpu.remapped_rows.corrected, gpu.uuid, ("corrected",))
        yield Measurement("gpu_remapped_rows_total", gpu.remapped_rows.uncorrected, gpu.uuid, ("uncorrected",))
        yield Measurement("gpu_row_remap_pending", int(gpu.remapped_rows.pending), gpu.uuid)
        yield Measurement("gpu_row_remap_failed", int(gpu.remapped_rows.failure), gpu.uuid)
