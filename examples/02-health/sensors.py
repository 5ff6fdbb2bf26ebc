# SPDX-License-Identifier: Apache-2.0
"""Sensor cards of an imaginary vendor: /dev/acme0, /dev/acme1, ... with a state in sysfs."""

from __future__ import annotations

from collections.abc import Iterator

from deviceplugin import Device, Health, Host, Plugin, Skipped, run, sysfs
from deviceplugin.events import Events

CLASS = "/sys/class/acme"


class Sensors(Plugin):
    resource = "acme.example/sensor"
    interval = 5.0  # seconds: a state that changes makes no event

    def __init__(self, config: None = None, host: Host | None = None) -> None:
        super().__init__(config, host)
        self.events: Events | None = None

    def discover(self) -> Iterator[Device | Skipped]:
        for name in sysfs.entries(self.host, CLASS):
            try:
                yield self.look(name)
            except sysfs.SysfsError as error:  # one broken card never hides the others
                yield Skipped(name, str(error))

    def look(self, name: str) -> Device | Skipped:
        directory = sysfs.realpath(self.host, f"{CLASS}/{name}")
        serial = sysfs.attribute(self.host, directory, "serial")
        if not serial:
            return Skipped(name, "has no serial number: its firmware is too old")
        state = sysfs.attribute(self.host, directory, "state")
        numa = sysfs.numa_node_of(self.host, directory)
        return Device(
            serial,  # never the name: acme0 may be another card after a reboot
            nodes=[f"/dev/{name}"],
            health=Health.HEALTHY if state == "online" else Health.UNHEALTHY if state else Health.UNKNOWN,
            cause="" if state == "online" else f"state: {state or 'not known'}",
            numa_nodes=[] if numa is None else [numa],
            attributes={"name": name},
        )

    def watch(self) -> Iterator[object]:
        self.events = Events(self.host, paths=[CLASS], subsystems=["acme"])
        return iter(self.events)

    def stop(self) -> None:
        if self.events:
            self.events.close()


if __name__ == "__main__":
    raise SystemExit(run(Sensors))
