# SPDX-License-Identifier: Apache-2.0
"""The document names the options that there are, with their defaults, and the words that the plugin uses."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import yaml

from deviceplugin.plugins import llc
from deviceplugin.plugins.llc import LlcConfig

TEXT = (Path(__file__).parents[3] / "docs/llc.md").read_text(encoding="utf-8")
SOURCE = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(llc.__file__).parent.glob("*.py")))


def test_options() -> None:
    table = TEXT.partition("## Options")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", table, re.MULTILINE))
    defaults = msgspec.to_builtins(LlcConfig())
    assert set(told) == set(defaults)
    for name, text in told.items():
        assert yaml.safe_load(text.strip().strip("`") or "null") == defaults[name], name


def test_configuration_of_the_example() -> None:
    (example,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(version.*?)```", TEXT, re.DOTALL)]
    assert msgspec.convert(example["plugins"][0]["config"], LlcConfig).mode == "reserve"


def test_words_of_the_table_of_symptoms_are_the_plugins() -> None:
    table = TEXT.partition("## What can go wrong")[2]
    theirs = (
        "unresolvable CDI devices",
        "cannot be made: No space left on device (Out of CLOSIDs)",
        "cannot be made: Device or resource busy (Out of RMIDs)",
    )
    for words in re.findall(r"^\| [^|]*?`([^`|]+)`", table, re.MULTILINE):
        assert words in theirs or words.rstrip(".: ") in SOURCE, words
