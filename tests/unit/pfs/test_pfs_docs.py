# SPDX-License-Identifier: Apache-2.0
"""What the page says is what the plugin does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import yaml

from deviceplugin.plugins.pfs import PfsConfig, advice
from deviceplugin.plugins.pfs.config import FileSystem, HealthLimits, PrivateMount, Servers

TEXT = (Path(__file__).parents[3] / "docs" / "pfs.md").read_text(encoding="utf-8")


def example() -> PfsConfig:
    found = re.search(r"```yaml\n(plugins:.*?)```", TEXT, re.DOTALL)
    assert found
    return msgspec.convert(yaml.safe_load(found[1])["plugins"][0]["config"], PfsConfig)


def test_the_example_is_a_configuration() -> None:
    assert [one.tier for one in example().filesystems] == ["T1", "T3", "T2"]


def test_the_rules_on_the_page_are_those_that_are_printed() -> None:
    printed = [f"      {line}" for line in advice.of(example(), example().filesystems[0], 8, "node1")]
    found = re.search(r"    plugin pfs advises:\n(.*?)\n\n", TEXT, re.DOTALL)
    assert found
    for line in found[1].splitlines():
        assert line.strip() == "..." or line in printed


def test_every_option_is_on_the_page() -> None:
    for struct in (FileSystem, PfsConfig, PrivateMount, HealthLimits):
        for field in msgspec.structs.fields(struct):
            assert re.search(rf"\b{field.encode_name}\b", TEXT), f"{struct.__name__}.{field.encode_name}"
    assert all(one.encode_name in TEXT for one in msgspec.structs.fields(Servers))
