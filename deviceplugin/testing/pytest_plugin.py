# SPDX-License-Identifier: Apache-2.0
"""The ``kubelet`` fixture. pytest loads this in every run, so it imports nothing heavy before a test asks for a kubelet."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deviceplugin.testing.kubelet import Kubelet


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    """A started kubelet below a directory of its own with a short name, stopped and removed at the end.

    A test that needs another kind makes its own: ``Kubelet(short_root, semantics="post136")``.
    """
    from deviceplugin.testing.kubelet import Kubelet

    root = tempfile.mkdtemp(prefix="kubelet-", dir="/tmp")
    try:
        with Kubelet(root) as started:
            yield started
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def short_root() -> Iterator[str]:
    """An empty directory whose name is short enough for sockets below it."""
    root = tempfile.mkdtemp(prefix="node-", dir="/tmp")
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test that used the fixture shows the kubelet's seed, its state and what it did last."""
    report = yield
    used = getattr(item, "funcargs", {}).get("kubelet")
    if report.when == "call" and report.failed and hasattr(used, "events"):  # type: ignore[attr-defined]
        report.sections.append(("kubelet", f"{used.describe()}\nlast events:\n{used.events.last(30)}"))  # type: ignore[attr-defined, union-attr]
    return report
