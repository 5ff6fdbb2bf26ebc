# SPDX-License-Identifier: Apache-2.0
"""A GPU plugin on a machine that is not there, with time in the test's hands."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from deviceplugin import Device, Health, Host, Skipped
from deviceplugin.config import convert
from deviceplugin.health import HealthBook
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Inventory
from deviceplugin.plugins.gpu import Gpu, GpuConfig
from deviceplugin.tally import Tally
from deviceplugin.testing.nvml import Scenario, write_host


class Rig:
    """``found()`` is what the plugin says, ``advertised()`` what the framework makes of it."""

    def __init__(self, machine: Scenario, folder: Path, options: dict[str, Any]) -> None:
        self.machine = machine
        self.root = folder / "root"
        self.library = machine.install(folder / "lib")
        write_host(machine, self.root)
        self.load_driver()
        self.now = 1000.0
        self.config = convert({"library": str(self.library), "monitorTimeout": 86400, **options}, GpuConfig, "config")
        self.plugin = self.another()
        self.inventory = self.remember()
        self._watching: Generator[object, None, None] | None = None

    def another(self) -> Gpu:
        """The plugin as after a restart of the daemon."""
        return Gpu(self.config, Host(str(self.root)), clock=lambda: self.now)

    def remember(self) -> Inventory:
        book = HealthBook(self.plugin.recovery, boot_id="a")
        self.hooks = Hooks(self.plugin, "gpu", Tally())
        return Inventory("gpu", book=book, clock=lambda: self.now)

    def restart_daemon(self) -> None:
        """A new process: the plugin knows nothing, and the framework what it wrote down."""
        state = self.inventory.book.dump()
        self.close()
        self.plugin = self.another()
        self.inventory = self.remember()
        self.inventory.book.load(state)

    def load_driver(self) -> None:
        """What the kernel shows when the module is loaded: a directory that was not there before."""
        module = self.root / "sys/module/nvidia"
        kept = module.with_name(f"was-{len(list(module.parent.glob('was-*')))}") if module.exists() else None
        if kept:
            module.rename(kept)  # its inode number is not given to the next
        module.mkdir(parents=True)

    def found(self) -> list[Device | Skipped]:
        return list(self.plugin.discover())

    def devices(self) -> list[Device]:
        return [one for one in self.found() if isinstance(one, Device)]

    def skipped(self) -> dict[str, str]:
        return {one.what: one.reason for one in self.found() if isinstance(one, Skipped)}

    def health(self) -> dict[int, tuple[Health, str]]:
        """What the plugin says of the GPUs that are not healthy, by number."""
        numbers = {gpu.uuid: n for n, gpu in enumerate(self.machine.gpus)}
        return {numbers[d.unit]: (d.health, d.cause) for d in self.devices() if d.health is not Health.HEALTHY}

    def advertised(self) -> dict[int, tuple[Health, str]]:
        """What the framework advertises of the GPUs that are not healthy, by number."""
        self.inventory.update(self.hooks.call("discover"), self.hooks)
        numbers = {gpu.uuid: n for n, gpu in enumerate(self.machine.gpus)}
        rows = [row for snapshot in self.inventory.snapshots.values() for row in snapshot.rows]
        return {numbers[row.device.unit]: (row.health, row.cause) for row in rows if row.health is not Health.HEALTHY}

    def listen(self) -> None:
        """Starts to watch, and returns once the events are registered."""
        watching = self.plugin.watch()
        assert isinstance(watching, Generator)
        self._watching = watching
        self.next()

    def next(self) -> object:
        """Waits for the next reason to look again."""
        assert self._watching is not None
        return next(self._watching)

    def background(self) -> tuple[threading.Thread, list[object]]:
        """Watches on a thread, as the framework does."""
        reasons: list[object] = []
        thread = threading.Thread(target=lambda: reasons.extend(self.plugin.watch()), daemon=True)
        thread.start()
        return thread, reasons

    def close(self) -> None:
        if self._watching is not None:
            self._watching.close()  # as the end of the thread that iterates it does
            self._watching = None
        self.plugin.stop()
        self.hooks.close()


UNHEALTHY, UNKNOWN = Health.UNHEALTHY, Health.UNKNOWN
