# SPDX-License-Identifier: Apache-2.0
"""What the manual says of options is what the plugin takes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from deviceplugin.config import convert
from deviceplugin.plugins.mic import MicConfig
from deviceplugin.plugins.mic.config import Boot

MANUAL = (Path(__file__).parents[3] / "docs/mic.md").read_text(encoding="utf-8")


def camel(names: tuple[str, ...]) -> set[str]:
    return {re.sub("_(.)", lambda found: found[1].upper(), name) for name in names}


def test_the_options_in_the_manual_are_the_defaults() -> None:
    shown = yaml.safe_load(MANUAL.split("\n## Options\n")[1].split("```yaml\n")[1].split("```")[0])
    assert convert(shown, MicConfig, "manual") == MicConfig()
    assert set(shown) == camel(MicConfig.__struct_fields__)
    assert set(shown["boot"]) == camel(Boot.__struct_fields__)
