# SPDX-License-Identifier: Apache-2.0
"""What the manual says of faults is what the plugin does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from deviceplugin.config import convert
from deviceplugin.plugins.gpu import GpuConfig, xid
from deviceplugin.plugins.gpu.config import EDGES, LEVELS, Action

MANUAL = (Path(__file__).parents[3] / "docs/gpu.md").read_text(encoding="utf-8")


def words(action: Action) -> str:
    return {"ignore": "ignored", "reset": "until a reset", "never": "for good"}.get(str(action), f"until {action} s of quiet".replace(".0", ""))


def rows(heading: str) -> list[list[str]]:
    section = MANUAL.split(f"\n{heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")][2:]


def test_the_manual_lists_every_xid_with_its_default() -> None:
    said: dict[int, tuple[str, str]] = {}
    for codes, meaning, end in rows("### XIDs"):
        for part in codes.split(", "):
            first, _, last = part.partition("-")
            said |= dict.fromkeys(range(int(first), int(last or first) + 1), (meaning, end))
    assert said == {code: (meaning, words(action)) for code, (meaning, action) in xid.TABLE.items()}


def test_the_manual_lists_every_other_fault_with_its_key_and_default() -> None:
    faults = GpuConfig().faults
    names = {field.replace("_", "-"): field for field in faults.__struct_fields__}
    said = {cause.strip("`"): (key.strip("`"), end) for cause, key, end, _ in rows("## Health")}
    assert said.pop("xid:N") == ("xids", "see below")
    keys = {cause: re.sub("_(.)", lambda found: found[1].upper(), names[cause.replace(":", "-")]) for cause in (*LEVELS, *EDGES)}
    assert said == {cause: (keys[cause], words(faults.action(cause))) for cause in keys}


def test_the_options_in_the_manual_are_the_defaults() -> None:
    shown = yaml.safe_load(MANUAL.split("\n## Options\n")[1].split("```yaml\n")[1].split("```")[0])
    assert convert(shown, GpuConfig, "manual") == GpuConfig()
    assert set(shown) == {re.sub("_(.)", lambda found: found[1].upper(), field) for field in GpuConfig.__struct_fields__}
