# SPDX-License-Identifier: Apache-2.0
"""What a plugin advises is shown by a check, after what it found."""

from __future__ import annotations

import io
from collections.abc import Iterator

import msgspec

from deviceplugin import Device, Host, Plugin
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import make_plan
from deviceplugin.observe import report, survey
from deviceplugin.observe.tables import Screen


class Advising(Plugin):
    resource = "example.com/slot"
    lines: tuple[str, ...] = ("on the server:", "  set rate=7\x1b[0m")

    def discover(self) -> Iterator[Device]:
        yield Device("one")

    def advice(self) -> Iterator[str]:
        yield from self.lines


class Failing(Advising):
    def advice(self) -> Iterator[str]:
        raise OSError("no idea")


class Silent(Advising):
    lines = ()


def look(plugin: type[Plugin]) -> tuple[survey.Survey, str]:
    plan = make_plan(Settings(version="v1", plugins=[PluginSettings(plugin="one")], listen=""), Host("/nonexistent"), {"one": plugin})
    found = survey.survey(plan)
    stream = io.StringIO()
    report.show_survey(Screen(stream, terminal=False), found)
    return found, stream.getvalue()


def test_advice_is_shown_line_by_line_and_is_in_the_json() -> None:
    found, text = look(Advising)
    assert found.ok
    assert "plugin one advises:\n  on the server:\n    set rate=7" in text
    assert "\x1b" not in text
    encoded = msgspec.json.decode(msgspec.json.encode(found))
    assert encoded["advice"] == [{"plugin": "one", "lines": ["on the server:", "  set rate=7\x1b[0m"]}]


def test_a_plugin_without_advice_has_none() -> None:
    found, text = look(Silent)
    assert found.advice == ()
    assert "advises" not in text


def test_advice_that_fails_is_an_error_and_hides_no_device() -> None:
    found, text = look(Failing)
    assert found.errors == ("plugin one: advice() failed: OSError: no idea",)
    assert [one.name for one in found.resources] == ["example.com/slot"]
    assert "error: plugin one: advice() failed" in text
