# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from deviceplugin.observe import logging as formats


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_has_the_time_in_utc_the_level_and_the_message() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%d devices", (3,), None)
    record.created = 0.5
    assert formats.TextFormatter().format(record) == "1970-01-01T00:00:00.500Z WARNING 3 devices"


def test_a_name_with_control_characters_forges_no_record_and_drives_no_terminal() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "id %s", ("a\n2026 ERROR b\x1b[31m\x7f\t",), None)
    assert formats.TextFormatter().format(record).endswith("id a\\n2026 ERROR b\\x1b[31m\\x7f\\t")


def test_colours_are_for_terminals_only() -> None:
    for stream, coloured in ((Terminal(), True), (io.StringIO(), False)):
        formats.setup("text", "info", stream)
        logging.getLogger("t").error("bad")
        assert ("\033[31m" in stream.getvalue()) is coloured


def test_json_is_one_object_a_line_with_the_exception_inside() -> None:
    stream = io.StringIO()
    formats.setup("json", "info", stream)
    try:
        raise ValueError("what\nwas wrong")
    except ValueError:
        logging.getLogger("deviceplugin.t").exception("failed\nbadly")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"], entry["logger"], entry["thread"]) == ("error", "failed\nbadly", "deviceplugin.t", "MainThread")
    assert "ValueError: what" in entry["exception"]


def test_setup_again_replaces_format_and_level() -> None:
    stream = io.StringIO()
    formats.setup("text", "debug", stream)
    formats.setup("json", "warning", stream)
    logging.getLogger("t").info("not seen")
    logging.getLogger("t").warning("seen once")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "seen once"
