# SPDX-License-Identifier: Apache-2.0
"""What the document says is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from deviceplugin.plugins.fpga import FpgaConfig
from deviceplugin.plugins.fpga.health import RECOVERY

DOCS = (Path(__file__).resolve().parents[3] / "docs/fpga.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCS, re.S)]


def options() -> dict[str, Any]:
    (found,) = [block for block in BLOCKS if "busyTimeout" in block]
    return dict(found)


def test_every_option_is_there_with_its_default() -> None:
    assert msgspec.convert(options(), FpgaConfig) == FpgaConfig()
    assert set(options()) == {field.encode_name for field in msgspec.structs.fields(FpgaConfig)}


def test_examples_are_valid() -> None:
    configs = [plugin.get("config", {}) for block in BLOCKS for plugin in block.get("plugins", [])] if BLOCKS else []
    configs += [block for block in BLOCKS if set(block) == {"managers"}]
    assert len(configs) == 3
    for config in configs:
        msgspec.convert(config, FpgaConfig)


def test_every_cause_that_the_code_knows_is_in_the_table() -> None:
    code = "\n".join(path.read_text() for path in (Path(__file__).resolve().parents[3] / "plugins/fpga").glob("*.py"))
    causes = set(re.findall(r'f?"([a-z][a-z-]*): ', code)) - {"managers", "functions", "nodes"}
    assert {"dead", "catfatal", "node", "program", "bitstream", "moving", "aer"} <= causes
    assert {cause for cause in causes if f"`{cause}`" not in DOCS} == set()
    assert RECOVERY["aer"].seconds == 600
