# SPDX-License-Identifier: Apache-2.0
"""A plugin that does as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from deviceplugin.daemon import Daemon
from deviceplugin.model import Device, Skipped
from deviceplugin.plugin import Plugin

Make = Callable[..., Daemon]


class Told(Plugin):
    """Finds what the test puts into ``found``; raises what it puts into ``error``; hangs while ``block`` is set."""

    resource = "example.com/told"
    interval = 3600.0
    found: tuple[Device | Skipped, ...] = ()
    error: Exception | None = None
    block: threading.Event | None = None

    def discover(self) -> Iterator[Device | Skipped]:
        if self.block is not None:
            self.block.wait()
        if self.error is not None:
            raise self.error
        yield from self.found
