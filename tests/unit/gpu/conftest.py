# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin.config import convert
from deviceplugin.plugins.gpu import GpuConfig
from deviceplugin.testing.nvml import Scenario
from tests.unit.gpu.rig import Rig

Make = Callable[..., Rig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A plugin on a simulated machine; stopped after the test."""
    rigs: list[Rig] = []

    def run(machine: Scenario, **options: Any) -> Rig:
        rigs.append(Rig(machine, tmp_path / str(len(rigs)), options))
        return rigs[-1]

    yield run
    for rig in rigs:
        rig.close()


@pytest.fixture
def parse() -> Callable[..., GpuConfig]:
    return lambda **options: convert(options, GpuConfig, "config")
