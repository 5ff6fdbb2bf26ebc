# SPDX-License-Identifier: Apache-2.0
"""Runs on the machine's own driver, or on another library (the simulator's) with ``--library`` and the tree it belongs to with ``--host-root``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from deviceplugin.testing import Kubelet
from tests.hardware.machine import Machine, NoDriver


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hardware")
    group.addoption("--library", metavar="PATH", default="", help="the libnvidia-ml.so.1 to use instead of the machine's")
    group.addoption("--host-root", metavar="DIR", default="/", help="where the machine's files are")


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> Machine:
    try:
        return Machine.find(pytestconfig.getoption("--library"), pytestconfig.getoption("--host-root"))
    except NoDriver as error:
        pytest.skip(f"no NVIDIA driver here: {error}")


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    root = tempfile.mkdtemp(prefix="hw-", dir="/tmp")  # a short name, for unix sockets
    try:
        with Kubelet(root) as kubelet:
            yield kubelet
    finally:
        shutil.rmtree(root)
