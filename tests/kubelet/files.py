# SPDX-License-Identifier: Apache-2.0
"""A plugin whose hardware is a directory: it is loaded by processes that tests start."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence

from deviceplugin import Device, Edits, Plugin


class Files(Plugin):
    """One device for each file in ``/devices``."""

    resource = "vendor.example/device"
    interval = 0.2

    def discover(self) -> Iterator[Device]:
        for name in sorted(os.listdir(self.host.path("/devices"))):
            yield Device(name, envs={"NAME": name})


class Programs(Files):
    """Runs a program in each hook, as a plugin that asks a vendor's tool does."""

    def discover(self) -> Iterator[Device]:
        subprocess.run(["true"], check=True)
        return super().discover()

    def allocate(self, devices: Sequence[Device]) -> Edits:
        said = subprocess.run(["echo", *(device.id for device in devices)], check=True, capture_output=True, text=True)
        return Edits(envs={"SAID": said.stdout.strip()})
