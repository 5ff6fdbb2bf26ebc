# SPDX-License-Identifier: Apache-2.0
"""Tables and colours for a terminal; plain, complete lines for a pipe."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from deviceplugin.observe.words import one_line

_CODES = {"": "", "good": "32", "warn": "33", "bad": "31", "dim": "2", "bold": "1"}

MIN_COLUMN = 8
"""No column is made narrower than this to fit a terminal."""


class Cell(NamedTuple):
    """A text and how it is meant: ``good``, ``warn``, ``bad``, ``dim``, ``bold``, or as any other text."""

    text: str
    style: str = ""


class Screen:
    """Where text goes. On a terminal it has colours (unless NO_COLOR is set) and a width; elsewhere neither."""

    def __init__(self, stream: TextIO, *, terminal: bool | None = None, width: int | None = None, indent: int = 0) -> None:
        self.stream = stream
        self._indent = " " * indent
        self.terminal = stream.isatty() if terminal is None else terminal
        self.width = (width or shutil.get_terminal_size((120, 24)).columns) if self.terminal else None
        self._colours = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def indented(self, columns: int) -> Screen:
        """The same screen, for lines that begin further to the right."""
        return Screen(self.stream, terminal=self.terminal, width=self.width, indent=len(self._indent) + columns)

    def paint(self, text: str, style: str) -> str:
        code = _CODES[style]
        return f"\033[{code}m{text}\033[0m" if code and self._colours else text

    def line(self, *parts: Cell | str, style: str = "") -> None:
        """One line; control characters in it are shown, not sent. ``style`` is for the parts that have none of their own."""
        cells = [_cell(part) for part in parts]
        text = "".join(self.paint(cell.text, cell.style or style) for cell in cells)
        print(self._indent + text if text else "", file=self.stream, flush=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> None:
        """Aligned columns, two spaces apart. On a terminal the columns behind the first two give way, the last one first.

        A heading that begins with ``>`` aligns its column to the right; the last one, with ``?``, leaves it out where there is no room.
        """
        right = [heading.startswith(">") for heading in headings]
        body = [[_cell(one) for one in row] for row in rows]
        head = [Cell(heading.lstrip(">?"), "dim") for heading in headings]
        widths = [max(len(row[i].text) for row in [head, *body]) for i in range(len(headings))]
        if self.width is not None:
            widths = _fit(widths, self.width - len(self._indent), optional=headings[-1].startswith("?"))
        for row in [head, *body]:
            print((self._indent + "  ".join(self._padded(row[: len(widths)], widths, right))).rstrip(), file=self.stream, flush=True)

    def _padded(self, row: Sequence[Cell], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            text = _cut(cell.text, width)
            space = " " * (width - len(text))
            painted = self.paint(text, cell.style)
            yield space + painted if right[i] else painted + space


def _cell(value: Cell | str) -> Cell:
    text, style = value if isinstance(value, Cell) else (value, "")
    return Cell(one_line(text), style)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _fit(widths: list[int], total: int, *, optional: bool) -> list[int]:
    """Takes from the columns, from the right, until the line fits. What names a row is never cut: rather the line is too long."""
    spare = sum(widths) + 2 * (len(widths) - 1) - total
    if spare > 0 and optional and widths[-1] - spare < MIN_COLUMN:
        widths = widths[:-1]
        spare = sum(widths) + 2 * (len(widths) - 1) - total
    fitted = list(widths)
    for i in range(len(widths) - 1, 1, -1):
        step = min(max(0, spare), max(0, widths[i] - MIN_COLUMN))
        fitted[i] -= step
        spare -= step
    return fitted


@contextmanager
def progress(screen: Screen, after: float = 2.0) -> Iterator[Callable[[str], None]]:
    """A function that takes what is being done; on a terminal, what takes longer than ``after`` seconds is shown, and all that follows."""
    current: list[str] = []
    slow, over = threading.Event(), threading.Event()

    def say(text: str) -> None:
        current.append(text)
        if slow.is_set():
            screen.line(f"{text} ...", style="dim")

    def wait() -> None:
        if not over.wait(after):
            slow.set()
            screen.line(f"{current[-1] if current else 'working'} ...", style="dim")

    if screen.terminal:
        threading.Thread(target=wait, name="progress", daemon=True).start()
    try:
        yield say
    finally:
        over.set()
