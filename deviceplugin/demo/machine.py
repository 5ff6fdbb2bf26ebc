# SPDX-License-Identifier: Apache-2.0
"""The simulated hardware of the demonstration: what is there, how it is configured, and how one piece is pulled out and plugged in again."""

from __future__ import annotations

from typing import Protocol

from deviceplugin.testing import SimulatedHost


class Machine(Protocol):
    """One kind of hardware to play with. Another machine in its place gets the same story."""

    resource: str
    noun: str
    count: int
    config: str
    """The daemon's configuration file."""

    def build(self, host: SimulatedHost) -> None:
        """Puts ``count`` devices into the machine."""

    def unplug(self, host: SimulatedHost, device_id: str) -> str:
        """Takes a device out; says in a line or two what was done."""

    def plug(self, host: SimulatedHost, device_id: str) -> str:
        """Puts it back; says in a line or two what was done."""


class Cameras(Machine):
    """Four USB cameras, served by the plugin for device files with no code at all."""

    resource = "example.com/camera"
    noun = "camera"
    count = 4
    config = """\
version: v1
plugins:
  - plugin: generic
    config:
      domain: example.com
      devices:
        - name: camera
          groups:
            - usb: [{vendor: "046d", product: "0825"}]
              envs: {CAMERA_SERIAL: "{serial}"}
"""

    def __init__(self) -> None:
        self._ports = {f"CAM{number}": f"1-{number}" for number in range(1, self.count + 1)}

    def build(self, host: SimulatedHost) -> None:
        self._devices = {serial: host.usb(port, "046d", "0825", serial=serial) for serial, port in self._ports.items()}

    def unplug(self, host: SimulatedHost, device_id: str) -> str:
        serial = self._serial(device_id)
        device = self._devices[serial]
        host.remove(device)
        return f"Camera {serial} is pulled out of port {self._ports[serial]}: {device.node} is gone"

    def plug(self, host: SimulatedHost, device_id: str) -> str:
        serial = self._serial(device_id)
        old = self._devices[serial].node
        self._devices[serial] = host.usb(self._ports[serial], "046d", "0825", serial=serial)
        new = self._devices[serial].node
        return (
            f"It comes back as {new}, and is the same device by its serial number.\n"
            f"A container that runs has {old} still; a new pod gets the new file"
        )

    def _serial(self, device_id: str) -> str:
        return next(serial for serial in self._ports if device_id.endswith(serial))
