# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

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


def test_progress_is_shown_on_terminals_once_it_takes_long() -> None:
    stream = io.StringIO()
    say = progress(Screen(stream, terminal=True), after=0.0)
    say("first look")
    assert "first look" in stream.getvalue()
    quiet = io.StringIO()
    progress(Screen(quiet, terminal=True), after=100.0)("first look")
    progress(Screen(quiet, terminal=False), after=0.0)("first look")
    assert quiet.getvalue() == ""
