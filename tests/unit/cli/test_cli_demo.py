# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from deviceplugin import demo
from deviceplugin.demo.machine import Cameras
from deviceplugin.demo.stage import Stage
from deviceplugin.demo.story import STEPS
from deviceplugin.testing import SimulatedHost


def test_every_step_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert re.findall(r"^ ?(\d+)\. ", out, re.MULTILINE) == [str(number) for number in range(1, len(STEPS) + 1)]
    assert f"All {len(STEPS)} steps did what they say" in out
    assert "\033" not in out


class Glued(Cameras):
    """Its cameras cannot be pulled out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def unplug(self, host: SimulatedHost, device_id: str) -> str:
        self._monkeypatch.setattr(Stage, "patience", 0.3)
        return "nothing happens"


def test_a_step_that_does_not_do_what_it_says_is_owned_up_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(machine=Glued(monkeypatch)) == 1
    out = capsys.readouterr().out
    assert "waited 0.3 s for the status of pod viewer to say Unhealthy" in out
    assert "| pid " in out, "the daemon's log is shown"
    assert out.endswith("This step did not do what it says.\n")
