# SPDX-License-Identifier: Apache-2.0
"""What the tests of the generic plugin share."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from deviceplugin import Device, Skipped
from deviceplugin.config import ConfigError, plugin_config
from deviceplugin.plugins.generic import Generic
from tests.unit.sysfs.tree import Tree


def plugin(tree: Tree, text: str) -> Generic:
    """The plugin as the daemon makes it from the YAML of its options."""
    return Generic(plugin_config(Generic, yaml.safe_load(text), "generic"), tree.host)


def discover(tree: Tree, text: str) -> tuple[list[Device], list[Skipped]]:
    found = list(plugin(tree, text).discover())
    return [one for one in found if isinstance(one, Device)], [one for one in found if isinstance(one, Skipped)]


def devices(tree: Tree, text: str) -> list[Device]:
    """The devices, where nothing may be left out."""
    found, skipped = discover(tree, text)
    assert skipped == []
    return found


def paths(tree: Tree, text: str) -> list[tuple[str, ...]]:
    """The device files of each device."""
    return [tuple(node.path for node in device.nodes) for device in discover(tree, text)[0]]


def refused(raw: dict[str, Any]) -> str:
    """What is said of options that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        plugin_config(Generic, raw, "generic")
    return str(caught.value).removeprefix("plugin generic: config: ")
