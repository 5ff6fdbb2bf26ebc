# SPDX-License-Identifier: Apache-2.0
"""A MIC plugin on a machine that is not there, with time in the test's hands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deviceplugin import Device, Health, Host, Skipped
from deviceplugin.config import convert
from deviceplugin.plugins.mic import Mic, MicConfig
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.mic import Flavour, SimulatedMics
from tests.helpers.core import Clock

FIXTURES = Path(__file__).parents[2] / "fixtures" / "mic"


class Rig:
    """Waiting makes the time pass, and the drivers' work go on."""

    def __init__(self, root: Path, flavour: Flavour = "mpss3", *, fixture: str = "", **options: Any) -> None:
        self.machine = SimulatedHost(root)
        self.host = Host(str(root))
        self.clock = Clock()
        if fixture:
            self.machine.populate(FIXTURES / f"{fixture}.yaml")
        else:
            self.mics = SimulatedMics(self.machine, flavour, clock=self.clock)
        self.configure(**options)

    def configure(self, **options: Any) -> None:
        """A new daemon, with these options."""
        config = convert(options, MicConfig, "config")
        self.plugin = Mic(config, self.host, clock=self.clock, wait=self._wait)

    def look(self) -> list[Device | Skipped]:
        return list(self.plugin.discover())

    def devices(self) -> list[Device]:
        return [one for one in self.look() if isinstance(one, Device)]

    def by_id(self) -> dict[str, Device]:
        return {device.id: device for device in self.devices()}

    def skipped(self) -> dict[str, str]:
        return {one.what: one.reason for one in self.look() if isinstance(one, Skipped)}

    def health(self) -> dict[str, str]:
        """Each card with its health, and after a colon why it is not healthy."""
        return {one.id: one.health.value + (f":{one.cause}" if one.health is not Health.HEALTHY else "") for one in self.devices()}

    def _wait(self, _host: Host, _paths: Sequence[str], seconds: float) -> None:
        self.clock.advance(seconds)
        self.mics.step()
