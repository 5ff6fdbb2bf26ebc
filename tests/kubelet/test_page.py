# SPDX-License-Identifier: Apache-2.0
"""docs/kubelet-behaviour.md tells of every case, and of tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/kubelet-behaviour.md"

CASES = [*range(1, 46), *range(50, 81)]
"""The numbers of all cases that are known."""


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| E\d", line)]


def names_in(path: Path) -> set[str]:
    """Functions and classes of a file, and methods as ``Class::method``."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return names


def test_every_case_is_there_once() -> None:
    assert [int(row[0].removeprefix("E")) for row in rows()] == CASES


def test_every_case_says_what_happens_what_we_do_and_how_it_is_tested() -> None:
    for case, kubelet, ours, tested in rows():
        assert len(kubelet) > 20, case
        assert len(ours) > 8, case
        assert "::test_" in tested or re.match(r"Not tested: .{10}", tested), case


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > len(CASES)
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert not name or name in names_in(ROOT / path), f"{path}::{name}"
