# SPDX-License-Identifier: Apache-2.0
"""Video codecs of an imaginary vendor, which load a firmware for each use."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from deviceplugin import Device, DeviceNode, Edits, Mount, Plugin, run, sysfs

CLASS = "/sys/class/acme_codec"


class CodecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The options, checked before the plugin is made. A ValueError becomes one line that names the place."""

    firmware: Literal["h264", "av1"] = "h264"
    firmware_directory: str = "/lib/firmware/acme"

    def __post_init__(self) -> None:
        if not self.firmware_directory.startswith("/"):
            raise ValueError(f"firmwareDirectory {self.firmware_directory!r} must be an absolute path")


class Codecs(Plugin):
    Config = CodecConfig
    config: CodecConfig
    resource = "acme.example/codec"

    def discover(self) -> Iterator[Device]:
        for name in sysfs.entries(self.host, CLASS):
            serial = sysfs.read(self.host, f"{CLASS}/{name}/serial")
            if serial:
                yield Device(serial, nodes=[f"/dev/{name}"], attributes={"name": name})

    def allocate(self, devices: Sequence[Device]) -> Edits:
        """The same answer each time and nothing done: the kubelet keeps it and uses it again after every restart."""
        return Edits(
            nodes=tuple(DeviceNode(node.path, f"/dev/codec{n}") for n, device in enumerate(devices) for node in device.nodes),
            mounts=(Mount(self.config.firmware_directory, "/firmware"),),
            envs={"ACME_CODECS": ",".join(device.id for device in devices)},
        )

    def prepare(self, devices: Sequence[Device]) -> None:
        """Before each start of a container, and more than once for all we know. Raising keeps the container from starting."""
        for device in devices:
            control = f"{CLASS}/{device.attributes['name']}/firmware"
            if sysfs.read(self.host, control) == self.config.firmware:
                continue
            fd = os.open(self.host.path(control), os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(fd, self.config.firmware.encode())
            finally:
                os.close(fd)


if __name__ == "__main__":
    raise SystemExit(run(Codecs))
