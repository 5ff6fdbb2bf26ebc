# SPDX-License-Identifier: Apache-2.0
"""How log records are written: text for people, one JSON object a line for machines. Always to standard error, always one line a record."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Literal, TextIO

from deviceplugin.observe.words import one_line

_COLOURS = {logging.DEBUG: "\033[2m", logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[1;31m"}
_RESET = "\033[0m"


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z WARNING message``; on a terminal the time of day alone, and the level as a colour. A traceback follows on lines of
    its own.
    """

    def __init__(self, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(record.getMessage())
        if self._colours:
            clock = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
            colour = _COLOURS.get(record.levelno, "")
            line = f"\033[2m{clock}{_RESET} {colour}{text}{_RESET if colour else ''}"
        else:
            line = f"{_time(record)} {record.levelname:<7} {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line: ``time`` (RFC 3339, UTC), ``level``, ``message``, ``logger``, ``thread``, and ``exception`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            "thread": record.threadName or "",
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def setup(style: Literal["text", "json"] = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Sends all records of ``level`` and above to ``stream`` (standard error). May be called again, to change either."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter(colours=stream.isatty()))
    root = logging.getLogger()
    for old in [one for one in root.handlers if getattr(one, "deviceplugin", False)]:
        root.removeHandler(old)
    handler.deviceplugin = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(level.upper())
