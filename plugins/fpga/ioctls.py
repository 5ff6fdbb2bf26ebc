# SPDX-License-Identifier: Apache-2.0
"""The system calls that program a card, behind an interface: a test records them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from deviceplugin import Host
from deviceplugin._native import fpga
from deviceplugin.plugins.fpga.hardware import Driver


class Ioctls(Protocol):
    """What is done to device files. Paths are the host's."""

    def exclusive(self, node: str) -> AbstractContextManager[None]:
        """Keeps everybody else from a port for the length of a with block. OSError (EBUSY) if somebody has it open."""

    def program(self, node: str, driver: Driver, port: int, image: memoryview) -> None:
        """Reconfigures a port through its card's management engine; seconds may pass. Raises OSError."""


class Files:
    """The real ones."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @contextlib.contextmanager
    def exclusive(self, node: str) -> Iterator[None]:
        """The last one who closes a port resets it and unmaps its memory (afu_release, drivers/fpga/dfl-afu-main.c), so that it comes back clean."""
        fd = os.open(self._host.path(node), os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(fd)

    def program(self, node: str, driver: Driver, port: int, image: memoryview) -> None:
        which = fpga.OPAE if driver is Driver.OPAE else fpga.DFL
        fd = os.open(self._host.path(node), os.O_RDWR | os.O_CLOEXEC)
        try:
            version = fpga.api_version(fd, which)
            if version < 0:
                raise OSError(-version, f"the driver does not tell its version: {os.strerror(-version)}", node)
            result, bits = fpga.port_pr(fd, port, image, which)
            if result < 0:
                told = f", error bits {bits:#x}" if bits else ""
                raise OSError(-result, f"programming port {port} failed: {os.strerror(-result)}{told}", node)
        finally:
            os.close(fd)
