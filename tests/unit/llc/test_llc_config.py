# SPDX-License-Identifier: Apache-2.0
"""Options are refused with the place and the reason, before anything runs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from deviceplugin.plugins.llc import LlcConfig


def test_defaults_take_nothing_from_the_node() -> None:
    config = LlcConfig()
    assert (config.mode, config.resource, config.collect.after) == ("limit", "devices.local/llc", 120.0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mode": "steal"}, "mode"),
        ({"waysPerSlot": 0}, "waysPerSlot"),
        ({"sharedWays": 32}, "sharedWays"),
        ({"memoryBandwidth": 0}, "memoryBandwidth"),
        ({"collect": {"after": 1}}, "collect.after"),
        ({"collect": {"sightings": 1}}, "collect.sightings"),
        ({"resource": "llc"}, "resource 'llc' must be a domain"),
        ({"resource": "kubernetes.io/llc"}, "must be a domain"),
        ({"resource": "x.y/1"}, "must be a domain"),
        ({"mountPoint": "sys/fs/resctrl"}, "must be an absolute path"),
        ({"mountPoint": "/sys/../etc"}, "must be an absolute path"),
        ({"ways": 3}, "unknown field `ways`"),
    ],
)
def test_mistakes(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.convert(options, LlcConfig)
