# SPDX-License-Identifier: Apache-2.0
"""A framework for Kubernetes device plugins: a vendor says what hardware is there, and pods can ask for it.

The names below are the public ones. ``deviceplugin.testing`` holds what a vendor's tests need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deviceplugin.model import (
    Allocation,
    Connection,
    Device,
    DeviceNode,
    Edits,
    Enforcement,
    Health,
    Host,
    Measure,
    Measurement,
    Mount,
    Recovery,
    Rule,
    Sharing,
    Skipped,
    Verdict,
)
from deviceplugin.plugin import Plugin

if TYPE_CHECKING:
    from deviceplugin.plugin import Plugin as _Plugin

__all__ = [
    "Allocation",
    "Connection",
    "Device",
    "DeviceNode",
    "Edits",
    "Enforcement",
    "Health",
    "Host",
    "Measure",
    "Measurement",
    "Mount",
    "Plugin",
    "Recovery",
    "Rule",
    "Sharing",
    "Skipped",
    "Verdict",
    "run",
]

__version__ = "0.1.0"


def run(*plugins: type[_Plugin], argv: Sequence[str] | None = None) -> int:
    """Serves the given plugins until SIGTERM: a vendor's whole ``main``.

    ``argv`` (by default the process's) takes the flags of ``deviceplugin run``. Returns the exit status.
    """
    from deviceplugin.cli import run_plugins  # the daemon is only loaded by those who run it

    return run_plugins(plugins, argv)
