# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from threading import Event

import pytest

from deviceplugin.observe.tables import Cell, Screen, progress

HEADINGS = ("RESOURCE", ">COUNT", "HELD BY", "?FACTS")
ROWS: list[tuple[Cell | str, ...]] = [("example.com/a", Cell("3", "good"), "default/a-long-name/main", "model=T4"), ("b", "12", "-", "")]


def shown(terminal: bool, width: int = 200, indent: int = 0) -> list[str]:
    stream = io.StringIO()
    Screen(stream, terminal=terminal, width=width, indent=indent).table(HEADINGS, ROWS)
    return stream.getvalue().splitlines()


def test_a_pipe_gets_aligned_complete_plain_lines() -> None:
    assert shown(terminal=False, width=20) == [
        "RESOURCE       COUNT  HELD BY                   FACTS",
        "example.com/a      3  default/a-long-name/main  model=T4",
        "b                 12  -",
    ]


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[32m3\033[0m" in shown(terminal=True)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in "".join(shown(terminal=True))


def test_on_a_narrow_terminal_facts_go_first_and_names_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(terminal=True, width=46)[1] == "example.com/a      3  default/a-long-name/main"
    assert shown(terminal=True, width=40)[1] == "example.com/a      3  default/a-long-na…"
    assert shown(terminal=True, width=10)[1] == "example.com/a      3  default…"
    assert all(len(line) <= 40 for line in shown(terminal=True, width=40, indent=4))


def test_names_from_hardware_do_not_drive_the_terminal() -> None:
    stream = io.StringIO()
    screen = Screen(stream, terminal=False)
    screen.line("a\x1b[2J", Cell("\n\udcff"))
    screen.table(("X",), [("\x07",)])
    assert stream.getvalue() == "a\\x1b[2J\\n\\udcff\nX\n\\x07\n"


class Shown(io.StringIO):
    """Says when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_what_takes_long_is_shown_on_a_terminal() -> None:
    stream = Shown()
    with progress(Screen(stream, terminal=True), after=0.01) as say:
        say("plugin a looks")
        assert stream.written.wait(5)
        say("plugin b looks")
    assert "plugin a looks ..." in stream.getvalue()
    assert "plugin b looks ..." in stream.getvalue()


@pytest.mark.parametrize(("terminal", "after"), [(True, 100.0), (False, 0.0)])
def test_what_is_quick_or_goes_into_a_pipe_shows_no_progress(terminal: bool, after: float) -> None:
    stream = io.StringIO()
    with progress(Screen(stream, terminal=terminal), after=after) as say:
        say("plugin a looks")
    assert stream.getvalue() == ""
