"""Nodes for the tests of this folder. Where a machine cannot have one the tests are skipped, but with CI=true they fail: there it must."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Node, Runtime

PROVISION = Path(__file__).resolve().parents[2] / "tools" / "e2e" / "provision.py"
MISSING = 77
TEST_SECONDS = 180  # the first test of a run also pays for its node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test here the time that a real kubelet may need; the project's own limit is meant for unit tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS, func_only=True))


@pytest.fixture(scope="session")
def e2e_bin(pytestconfig: pytest.Config) -> Path:
    """The folder with the binaries, built first if need be, which takes minutes."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with (
        capture.global_and_fixture_disabled(),
        subprocess.Popen([sys.executable, str(PROVISION)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        last = ""
        for line in process.stdout:
            if last:
                print(last, flush=True)  # progress; what remains at the end is the folder
            last = line.rstrip()
        errors = process.stderr.read().strip()
    if process.returncode == 0:
        return Path(last)
    if process.returncode == MISSING and os.environ.get("CI") != "true":
        pytest.skip(errors)
    pytest.fail(f"tools/e2e/provision.py ended with status {process.returncode}: {errors}", pytrace=False)


@pytest.fixture(scope="session")
def node(e2e_bin: Path) -> Iterator[Node]:
    """A running node with the distribution's containerd. Each test takes its own pods and plugins away."""
    node = Node(e2e_bin)
    node.start()
    yield node
    node.stop()


@pytest.fixture(scope="session")
def cdi_node(e2e_bin: Path) -> Iterator[Node]:
    """A running node whose containerd knows CDI."""
    node = Node(e2e_bin, Runtime.BUILT)
    node.start()
    yield node
    node.stop()
