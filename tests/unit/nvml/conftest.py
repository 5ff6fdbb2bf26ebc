# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deviceplugin._native.nvml import Nvml, State
from deviceplugin.testing.nvml import Scenario

Start = Callable[[Scenario], Nvml]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Installs a scenario and opens NVML on it; closed after the test."""
    opened: list[Nvml] = []

    def run(machine: Scenario) -> Nvml:
        nvml = Nvml(machine.install(tmp_path / f"lib{len(opened)}"))
        opened.append(nvml)
        assert nvml.open() is State.READY, nvml.reason
        return nvml

    yield run
    for nvml in opened:
        nvml.close()
