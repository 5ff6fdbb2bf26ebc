# SPDX-License-Identifier: Apache-2.0
"""A plugin under test: what it lists, what it answers, and time that only passes when told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from deviceplugin import Allocation, Device, Health, Host, Skipped, Verdict
from deviceplugin.plugins.fpga import Fpga, FpgaConfig
from deviceplugin.sysfs import SysfsError, entries_many, read_many, realpath_many
from deviceplugin.testing.fpga import Fpgas, RecordedIoctls

AF_NLB0 = "fpga.intel.com/af-695.d84.aVKNtusxV3qMNmj5-qCB9thCTcSko8QT-J5DNoP5BAs"
AF_NLB3 = "fpga.intel.com/af-695.f7d.aVKNtusxV3qMNmj5-qCB9vffQFy9es9yIvFEsLk6zRg"
REGION = "fpga.intel.com/region-69528db6eb31577a8c3668f9faa081f6"


class Faulty:
    """Sysfs with faults: ``wrong`` has, by the end of a path, what reading it answers."""

    def __init__(self, wrong: Mapping[str, str | int | None] | None = None) -> None:
        self.wrong = dict(wrong or {})

    def read_many(self, host: Host, paths: Sequence[str]) -> list[str | SysfsError | None]:
        return [self._one(path, found) for path, found in zip(paths, read_many(host, paths), strict=True)]

    def entries_many(self, host: Host, paths: Sequence[str]) -> list[list[str] | SysfsError]:
        return entries_many(host, paths)

    def realpath_many(self, host: Host, paths: Sequence[str]) -> list[str | SysfsError]:
        return realpath_many(host, paths)

    def _one(self, path: str, found: str | SysfsError | None) -> str | SysfsError | None:

        for end, value in self.wrong.items():
            if path.endswith(end):
                return SysfsError(path, os.strerror(value)) if isinstance(value, int) else value
        return found


class Bench:
    def __init__(self, fpgas: Fpgas, clock: list[float], options: dict[str, Any]) -> None:
        self.fpgas = fpgas
        self.clock = clock
        self.ioctls = RecordedIoctls(fpgas)
        self.source = Faulty()
        self.options = options
        self.plugin = self._start()

    def restart(self, **options: Any) -> None:
        """The daemon is started anew, with another configuration if one is given."""
        self.plugin.stop()
        self.options = options or self.options
        self.plugin = self._start()

    def _start(self) -> Fpga:
        config = msgspec.convert(self.options, FpgaConfig)
        plugin = Fpga(config, Host(self.fpgas.host.root), ioctls=self.ioctls, source=self.source, clock=lambda: self.clock[0])
        plugin.start()
        plugin.watch()  # a daemon does, and `check` does not
        return plugin

    def look(self) -> dict[str, Device]:
        """What is listed, by id. An id is there once."""
        found = [one for one in self.plugin.discover() if isinstance(one, Device)]
        assert len({one.id for one in found}) == len(found)
        return {one.id: one for one in found}

    def one(self) -> Device:
        (found,) = self.look().values()
        return found

    def skipped(self) -> dict[str, str]:
        return {one.what: one.reason for one in self.plugin.discover() if isinstance(one, Skipped)}

    def health(self) -> dict[str, tuple[str, str]]:
        """Of each device: health, and the cause up to its first colon."""
        return {one.id: (one.health.value, one.cause.partition(":")[0]) for one in self.look().values()}

    def well(self) -> set[str]:
        return {one.id for one in self.look().values() if one.health is Health.HEALTHY}

    def hold(self, *devices: Device) -> list[Allocation]:
        return [Allocation("default", f"pod-{one.id}", "main", one.resource, (one,)) for one in devices]

    def judge(self, *devices: Device) -> list[Verdict]:
        return list(self.plugin.reconcile(self.hold(*devices)))

    def passes(self, seconds: float) -> None:
        self.clock[0] += seconds
