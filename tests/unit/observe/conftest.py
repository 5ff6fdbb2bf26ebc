# SPDX-License-Identifier: Apache-2.0
"""A real daemon on a plugin that does as it is told, below a temporary root, without a kubelet."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.model import Device, Host, Skipped
from tests.unit.observe.told import Make, Told


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: the names of sockets below it are limited."""
    path = Path(tempfile.mkdtemp(prefix="dp", dir="/tmp"))
    (path / "var/lib/kubelet/device-plugins").mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make(root: Path) -> Iterator[Make]:
    """Starts a daemon that has looked once: ``make(devices..., error=..., labels=("told",))``."""
    running: list[Daemon] = []
    blocks: list[threading.Event] = []

    def start(
        *found: Device | Skipped,
        error: Exception | None = None,
        block: threading.Event | None = None,
        labels: tuple[str, ...] = ("told",),
        **settings: object,
    ) -> Daemon:
        cls = type("Told", (Told,), {"found": found, "error": error, "block": block})
        plugins = [PluginSettings(plugin="told", name=label, **settings) for label in labels]  # type: ignore[arg-type]
        plan = make_plan(Settings(version="v1", plugins=plugins, listen=""), Host(str(root), "node-1"), dict.fromkeys(labels, cls))
        daemon = Daemon(plan, Paths.below(str(root)), plan.plugins[0].plugin.host)
        running.append(daemon)
        if block is not None:
            blocks.append(block)
        daemon.start()
        assert daemon.wait_first_scan(10.0)
        return daemon

    yield start
    for block in blocks:
        block.set()
    for daemon in running:
        daemon.stop()
