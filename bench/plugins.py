# SPDX-License-Identifier: Apache-2.0
"""The plugins that are measured."""

from __future__ import annotations

import os
from collections.abc import Iterator

from deviceplugin import Device, Health, Plugin
from deviceplugin.events import Events


class Fuse(Plugin):
    """The README's plugin."""

    resource = "example.com/fuse"

    def discover(self) -> Iterator[Device]:
        yield Device("fuse", nodes=["/dev/fuse"])


class Flip(Plugin):
    """One device that is healthy while a file is there: the way from an event to the kubelet."""

    resource = "example.com/flip"

    def discover(self) -> Iterator[Device]:
        there = os.path.exists(self.host.path("/flip/there"))
        yield Device("flip", nodes=["/dev/fuse"], health=Health.HEALTHY if there else Health.UNHEALTHY, cause="" if there else "away")

    def watch(self) -> Iterator[object]:
        yield from Events(self.host, paths=["/flip"])


class Rack(Plugin):
    """A device for each file in ``/rack``; what a file holds is why its device is broken."""

    resource = "example.com/rack"

    def discover(self) -> Iterator[Device]:
        for name in sorted(os.listdir(self.host.path("/rack"))):
            with open(self.host.path(f"/rack/{name}"), encoding="ascii") as file:
                cause = file.read()
            yield Device(name, envs={"RACK": name}, health=Health.UNHEALTHY if cause else Health.HEALTHY, cause=cause)

    def watch(self) -> Iterator[object]:
        yield from Events(self.host, paths=["/rack"])
