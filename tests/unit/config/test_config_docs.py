# SPDX-License-Identifier: Apache-2.0
"""What docs/configuration.md says is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from deviceplugin.config import Deadlines, PluginSettings, Settings, convert, plugin_label
from deviceplugin.configfile import _VARIABLES, Configuration, check_plugins, load
from deviceplugin.hooks import DEADLINES

PAGE = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
REFERENCE, CONFIG_MAP, _POD, PER_NODE = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def keys(kind: Any) -> Iterator[str]:
    for field in kind.fields:
        yield field.encode_name
        inner = getattr(field.type, "item_type", None) or getattr(field.type, "value_type", None) or field.type
        if isinstance(inner, msgspec.inspect.StructType) and field.encode_name != "nodes":
            yield from keys(inner)


def test_the_reference_has_every_key_and_is_a_configuration() -> None:
    settings = convert(yaml.safe_load(REFERENCE), Settings, "docs")
    missing = {key for key in keys(msgspec.inspect.type_info(Settings)) if not re.search(rf"\b{key}\b", REFERENCE)}
    assert missing == set()
    assert settings.plugins[0].label == "serial"


def test_the_reference_shows_the_defaults() -> None:
    raw = yaml.safe_load(REFERENCE)
    assert convert(raw, Settings, "docs").plugins[0].deadlines == Deadlines()
    health = raw["plugins"][0]["health"]
    defaults = PluginSettings(plugin="x")
    assert (health["flaps"], health["flapWindow"], health["flapHold"]) == (
        defaults.health.flaps,
        defaults.health.flap_window,
        defaults.health.flap_hold,
    )
    assert raw["plugins"][0]["unknownAfter"] == defaults.unknown_after
    top = msgspec.to_builtins(Settings(version="v1"))
    shown = {key: value for key, value in raw.items() if key not in ("plugins", "resources", "stateDirectory")}
    assert shown == {key: top[key] for key in shown}


def test_every_deadline_that_can_be_set_has_the_default_of_its_hook() -> None:
    assert Deadlines().by_hook().items() <= DEADLINES.items()


def test_the_table_of_flags_is_right() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| `(DEVICEPLUGIN_[A-Z_]+)` \| `(\w+)` \|$", PAGE, re.MULTILINE)
    assert {variable: key for _, variable, key in rows} == _VARIABLES
    assert all(variable == "DEVICEPLUGIN_" + flag[2:].upper().replace("-", "_") for flag, variable, _ in rows)


def loaded(tmp_path: Path, text: str, node: str) -> Configuration:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    found = load(str(path), {"nodeName": node}, {})
    check_plugins(found)
    return found


@pytest.mark.parametrize(("node", "variant", "replicas"), [("dev-1", "shared", 4), ("prod-1", "", 1)])
def test_the_config_map_is_a_configuration(tmp_path: Path, node: str, variant: str, replicas: int) -> None:
    found = loaded(tmp_path, yaml.safe_load(CONFIG_MAP)["data"]["config.yaml"], node)
    assert found.variant == variant
    assert (found.settings.resources["nvidia.com/gpu"].replicas if found.settings.resources else 1) == replicas


@pytest.mark.parametrize(
    ("node", "labels", "variant", "running", "resources"),
    [
        ("other", "", "", ["serial"], ["example.com/tty"]),
        ("dgx-7", "", "gpu", ["serial", "gpu"], ["example.com/tty"]),
        ("edge-1", "", "", ["serial"], ["example.com/tty"]),
        ("edge-1", "example.com/pool=tty4\n", "dedicated", ["serial"], []),
    ],
)
def test_the_example_for_some_nodes_does_what_it_says(
    tmp_path: Path, node: str, labels: str, variant: str, running: list[str], resources: list[str]
) -> None:
    (tmp_path / "labels").write_text(labels)
    found = loaded(tmp_path, PER_NODE.replace("/etc/deviceplugin-node/labels", str(tmp_path / "labels")), node)
    assert found.variant == variant
    assert [plugin_label(one.plugin, one.name) for one in found.settings.plugins if one.enabled] == running
    assert list(found.settings.resources) == resources
