# SPDX-License-Identifier: Apache-2.0
"""A simulated machine with FPGAs, and the plugin on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin import Host
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import Fpgas
from tests.unit.fpga.bench import Bench


@pytest.fixture
def machine(tmp_path: Path) -> SimulatedHost:
    return SimulatedHost(tmp_path)


@pytest.fixture
def host(machine: SimulatedHost) -> Host:
    return Host(machine.root)


@pytest.fixture
def fpgas(machine: SimulatedHost) -> Fpgas:
    return Fpgas(machine)


@pytest.fixture
def bench(fpgas: Fpgas) -> Iterator[Callable[..., Bench]]:
    """Makes plugins on the machine: ``bench(mode="region")``."""
    clock = [1000.0]
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(fpgas, clock, options))
        return made[-1]

    yield make
    for one in made:
        one.ioctls.gate.set()
        one.plugin.stop()
