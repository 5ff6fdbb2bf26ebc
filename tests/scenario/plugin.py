# SPDX-License-Identifier: Apache-2.0
"""The story's plugin: one device for each file in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from deviceplugin import Device, DeviceNode, Plugin
from deviceplugin.events import Events


class Options(msgspec.Struct):
    """folder: where the device files are, as the host names it."""

    folder: str


class Folder(Plugin):
    resource = "example.com/stage"
    Config = Options

    def discover(self) -> Iterator[Device]:
        for name in os.listdir(self.host.path(self.config.folder)):
            yield Device(name, nodes=[DeviceNode(f"{self.config.folder}/{name}", f"/dev/{name}")])

    def watch(self) -> Iterator[object]:
        yield from Events(self.host, paths=[self.config.folder])
