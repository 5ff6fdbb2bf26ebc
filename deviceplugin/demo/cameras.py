# SPDX-License-Identifier: Apache-2.0
"""Four USB cameras, one of which is pulled out and plugged in again."""

from __future__ import annotations

import time
from collections.abc import Sequence

from deviceplugin.demo import story
from deviceplugin.demo.machine import Machine, Step
from deviceplugin.demo.stage import Stage
from deviceplugin.observe.tables import Cell
from deviceplugin.observe.words import count
from deviceplugin.testing import Pod, SimulatedHost

_CONFIG = """\
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


class Cameras(Machine):
    """Served by the plugin for device files, with no code at all."""

    resource = "example.com/camera"
    noun = "camera"
    count = 4

    def __init__(self) -> None:
        self._ports = {f"CAM{number}": f"1-{number}" for number in range(1, self.count + 1)}
        self.steps: Sequence[Step] = (
            ("A machine with cameras, and a kubelet", story.build),
            ("Start the daemon", story.start),
            ("A pod asks for a camera", lambda stage: _admit(stage, "viewer", 1)),
            ("Another pod asks for two", lambda stage: _admit(stage, "recorder", 2)),
            ("A pod asks for more than is left", lambda stage: story.refuse(stage, "greedy", 2)),
            ("The kubelet restarts", story.restart_kubelet),
            ("Start a second daemon", story.start_standby),
            ("Kill the first one (SIGKILL)", story.kill_active),
            ("Who has what: `deviceplugin devices`", story.show),
            ("Unplug a camera that a pod uses", self._unplug),
            ("Plug it in again", self._plug),
            ("Stop the daemon (SIGTERM)", story.stop),
        )

    def build(self, host: SimulatedHost) -> str:
        self._devices = {serial: host.usb(port, "046d", "0825", serial=serial) for serial, port in self._ports.items()}
        return _CONFIG

    def show(self, stage: Stage) -> None:
        stage.say(f"{count(self.count, self.noun)} plugged in; the kubelet runs and knows of none of them. The whole configuration:")

    def unplug(self, host: SimulatedHost, serial: str) -> str:
        """Takes a camera out; says what was done."""
        device = self._devices[serial]
        host.remove(device)
        return f"Camera {serial} is pulled out of port {self._ports[serial]}: {device.node} is gone"

    def plug(self, host: SimulatedHost, serial: str) -> str:
        """Puts it back; says what was done."""
        old = self._devices[serial].node
        self._devices[serial] = host.usb(self._ports[serial], "046d", "0825", serial=serial)
        new = self._devices[serial].node
        return (
            f"It comes back as {new}, and is the same device by its serial number.\n"
            f"A container that runs has {old} still; a new pod gets the new file"
        )

    def _victim(self, stage: Stage) -> tuple[Pod, str, str]:
        """The pod that has the accident, its device, and the serial number."""
        pod = stage.pods[0]
        device = min(stage.kubelet.held(pod))
        return pod, device, next(serial for serial in self._ports if device.endswith(serial))

    def _unplug(self, stage: Stage) -> None:
        pod, device, serial = self._victim(stage)
        began = time.monotonic()
        what = self.unplug(stage.host, serial)
        story.wait_status(stage, pod, device, "Unhealthy")
        seconds = time.monotonic() - began
        stage.say(what)
        stage.say("After ", stage.measured(seconds), f" the status of pod {pod.name}, which holds {device}, says ", Cell("Unhealthy", "bad"))
        stage.say(f"The node offers {stage.kubelet.allocatable(stage.resource)} healthy ones; this one stays listed for as long as the pod holds it")

    def _plug(self, stage: Stage) -> None:
        pod, device, serial = self._victim(stage)
        began = time.monotonic()
        what = self.plug(stage.host, serial)
        story.wait_status(stage, pod, device, "Healthy")
        seconds = time.monotonic() - began
        offered = stage.kubelet.allocatable(stage.resource)
        for line in what.splitlines():
            stage.say(line)
        stage.say(
            "After ", stage.measured(seconds), f" the status of pod {pod.name} says ", Cell("Healthy", "good"), f", and the node offers {offered}"
        )


def _admit(stage: Stage, name: str, number: int) -> None:
    config = story.admit(stage, name, number)
    for device in config.devices:
        stage.say(f"  device file  {device.container_path} ({device.permissions})")
    for key, value in sorted(config.environ.items()):
        stage.say(f"  variable     {key}={value}")
