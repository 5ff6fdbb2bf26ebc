# SPDX-License-Identifier: Apache-2.0
"""The tests that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
DOCS = sorted((TOP / "docs").glob("*.md"))


def named(text: str) -> list[tuple[str, str]]:
    """Files of tests with a function each, or none. ``::name`` alone is of the file before it."""
    found: list[tuple[str, str]] = []
    for path, function in re.findall(r"`(tests/[\w/.]+)?(?:::(\w+))?`", text):
        if path or (function and found):
            found.append((path or found[-1][0], function))
    return found


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    missing = []
    for path, function in named(page.read_text()):
        at = TOP / path
        if not at.exists() or (function and not re.search(rf"^def {function}\(", at.read_text(), re.MULTILINE)):
            missing.append(f"{path}::{function}")
    assert missing == []


def test_some_pages_name_some() -> None:
    assert sum(len(named(page.read_text())) for page in DOCS) > 100
