# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of mistakes, and that what the documentation shows can be loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deviceplugin.config import Settings, convert, plugin_config
from deviceplugin.plugins.generic import Generic
from deviceplugin.plugins.generic.config import PLACEHOLDERS
from tests.unit.generic.helpers import refused

DOCS = Path(__file__).parents[3] / "docs" / "generic.md"


def one(path: dict[str, Any] | None = None, group: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Options with one device, one group and one path."""
    return {"devices": [{"name": "dev", "groups": [{"paths": [{"path": "/dev/a", **(path or {})}], **(group or {})}], **spec}]}


def usb(**fields: Any) -> dict[str, Any]:
    return {"devices": [{"name": "dev", "groups": [{"usb": [fields]}]}]}


PATH = "devices[0].groups[0].paths[0]"
TWICE = "a device file can be in one device only; leave one out, or say shared: true in both"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"domain": "Example.com"}, "domain 'Example.com' must be a DNS name: lower-case letters, digits, '-' and '.', as in vendor.example"),
        ({"domain": "x.kubernetes.io"}, "domain 'x.kubernetes.io' is reserved: use a domain of your own"),
        ({"device": []}, "top level: unknown key 'device', did you mean 'devices'?"),
        ({"devices": [{"name": "x"}]}, "devices[0]: Object missing required field `groups`"),
        (
            one(name="squat.ai/fuse"),
            "devices[0]: name 'squat.ai/fuse' must be at most 63 letters, digits, '-', '_' and '.', and start and end with a letter or digit; "
            "what comes before the slash is domain",
        ),
        (
            one(name="x" * 64),
            f"devices[0]: name '{'x' * 64}' must be at most 63 letters, digits, '-', '_' and '.', and start and end with a letter "
            "or digit; what comes before the slash is domain",
        ),
        ({"devices": [{"name": "dev", "groups": []}]}, "devices[0]: device dev needs at least one group"),
        ({"devices": [{"name": "dev", "groups": [{}]}]}, "devices[0].groups[0]: a group needs paths or usb"),
        (
            one(group={"usb": [{"vendor": "0403", "product": "6001"}]}),
            "devices[0].groups[0]: a group has paths or usb, not both: put them into two groups, or find the USB device's file with match",
        ),
        (
            {"devices": [one()["devices"][0], {"name": "dev", "groups": [{"paths": [{"path": "/dev/b"}]}]}]},
            "two devices are called 'dev': make them groups of one device, or give one another name",
        ),
        (one(resourceName="x"), "devices[0]: device dev: resourceName goes with naming: per-device"),
        (one(naming="own"), "devices[0].naming: Invalid enum value 'own', allowed: pooled, per-device"),
        (one(group={"count": 0}), "devices[0].groups[0].count: Expected `int` >= 1"),
        (one({"limit": 0}), f"{PATH}.limit: Expected `int` >= 1"),
        (one({"path": "dev/a"}), f"{PATH}: path 'dev/a' must be an absolute path, as in /dev/fuse"),
        (one({"path": "/dev/../etc"}), f"{PATH}: path '/dev/../etc' must not have '..' in it"),
        (one({"path": "/dev/[^a]"}), f"{PATH}: path '/dev/[^a]': write [!...] for characters that must not match"),
        (one({"regex": "/dev/a"}), f"{PATH}: an entry of paths has one of path and regex"),
        (one({"path": ""}), f"{PATH}: an entry of paths has one of path and regex"),
        (
            one({"path": "", "regex": "/.*/video0"}),
            f"{PATH}: regex '/.*/video0' must be a plain directory and an expression for the names in it, as in /dev/video[0-9]+",
        ),
        (
            one({"path": "", "regex": "/dev/video("}),
            f"{PATH}: regex '/dev/video(': 'video(' is not a regular expression: missing ), unterminated subpattern at position 5",
        ),
        (one({"mountPath": "a"}), f"{PATH}: mountPath 'a' must be an absolute path, as in /dev/fuse"),
        (one({"permissions": "rx"}), f"{PATH}: permissions 'rx' must be of r (read), w (write) and m (make), each at most once"),
        (one({"permissions": "rr"}), f"{PATH}: permissions 'rr' must be of r (read), w (write) and m (make), each at most once"),
        (one({"permissions": ""}), f"{PATH}: permissions '' must be of r (read), w (write) and m (make), each at most once"),
        (one({"type": "mount"}), f"{PATH}.type: Invalid enum value 'mount', allowed: Device, Mount"),
        (one({"readOnly": True}), f"{PATH}: /dev/a: readOnly is for type: Mount; for a device file write permissions: r"),
        (one({"type": "Mount", "permissions": "r"}), f"{PATH}: /dev/a: permissions is for device files, not for type: Mount"),
        (one({"type": "Mount", "match": {"serial": "x"}}), f"{PATH}: /dev/a: match is for device files, not for type: Mount"),
        (one({"type": "Mount", "shared": True}), f"{PATH}: /dev/a: shared is for device files, not for type: Mount"),
        (one({"type": "Mount", "health": [{"openable": True}]}), f"{PATH}: /dev/a: a Mount can be checked with exists only"),
        (
            one({"match": {"idVendor": 403}}),
            f"{PATH}: match idVendor: put the value in quotes: YAML reads numbers as decimal or octal, which sysfs does not write",
        ),
        (one({"match": {"../x": "1"}}), f"{PATH}: attribute '../x' must be the name of a file in sysfs, as in idVendor or power/control"),
        (
            one({"path": "/dev/watchdog*", "health": [{"openable": True}]}),
            f"{PATH}: /dev/watchdog*: openable would start the watchdog, which then resets the machine",
        ),
        (one({"health": [{}]}), f"{PATH}.health[0]: a check has exactly one of exists, openable and attribute, this one has none"),
        (
            one({"health": [{"exists": "/a", "openable": True}]}),
            f"{PATH}.health[0]: a check has exactly one of exists, openable and attribute, this one has exists and openable",
        ),
        (one({"health": [{"exists": "a"}]}), f"{PATH}.health[0]: exists 'a' must be an absolute path, as in /dev/fuse"),
        (one({"health": [{"openable": True, "min": 3}]}), f"{PATH}.health[0]: min or max goes with attribute, not with openable"),
        (
            one({"health": [{"attribute": "state"}]}),
            f"{PATH}.health[0]: attribute state: say what it must be with one of equals, in, and min or max, not none",
        ),
        (
            one({"health": [{"attribute": "state", "equals": "a", "in": ["b"]}]}),
            f"{PATH}.health[0]: attribute state: say what it must be with one of equals, in, and min or max, not equals and in",
        ),
        (one({"health": [{"attribute": "t", "min": 3, "max": 1}]}), f"{PATH}.health[0]: attribute t: min 3 is above max 1"),
        (
            one(group={"envs": {"A": "{index}"}}),
            "devices[0].groups[0]: template '{index}': {index} is not known; known: " + ", ".join(f"{{{p}}}" for p in PLACEHOLDERS),
        ),
        (
            one(group={"cdi": ["{id.__class__}"]}),
            "devices[0].groups[0]: template '{id.__class__}': {id.__class__} is not known; known: " + ", ".join(f"{{{p}}}" for p in PLACEHOLDERS),
        ),
        (
            one(group={"annotations": {"a": "{id"}}),
            "devices[0].groups[0]: template '{id': expected '}' before end of string; write {{ and }} for braces",
        ),
        (
            usb(vendor=403, product="6001"),
            "devices[0].groups[0].usb[0]: vendor: put the four hexadecimal digits in quotes, as in '0403': YAML reads a bare 403 as a number",
        ),
        (usb(vendor="0403", product="601"), "devices[0].groups[0].usb[0]: product '601' must be four hexadecimal digits, as in '0403'"),
        (
            usb(vendor="0403", product="6001", serial=1),
            "devices[0].groups[0].usb[0]: serial: put it in quotes: YAML drops the zeros before a number",
        ),
        (
            {"devices": [*one()["devices"], {"name": "two", "groups": [{"paths": [{"path": "/dev/b"}, {"path": "/dev/a"}]}]}]},
            f"/dev/a is there twice, in group 1 of dev and in group 1 of two: {TWICE}",
        ),
        (
            {"devices": [{"name": "dev", "groups": [{"paths": [{"path": "/dev/v*"}]}, {"paths": [{"path": "/dev/v*"}]}]}]},
            f"/dev/v* is there twice, in group 1 of dev and in group 2 of dev: {TWICE}",
        ),
        (
            {"devices": [{"name": "dev", "groups": [{"paths": [{"path": "/dev/v"}, {"path": "/dev/v"}]}]}]},
            f"/dev/v is there twice, in group 1 of dev and in group 1 of dev: {TWICE}",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_to_do(raw: dict[str, Any], text: str) -> None:
    assert refused(raw) in (text, f"top level: {text}")


def test_the_same_path_may_be_told_apart_by_attributes_or_shared(tmp_path: Path) -> None:
    for extra in ({"match": {"serial": "1"}}, {"shared": True}):
        entry = {"path": "/dev/v*", **extra}
        raw = {"devices": [{"name": "dev", "groups": [{"paths": [entry]}, {"paths": [entry]}]}]}
        assert len(plugin_config(Generic, raw, "generic").devices[0].groups) == 2


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL), ids=lambda text: text.strip().splitlines()[0][:40])
def test_every_example_of_the_documentation_loads(text: str) -> None:
    raw = yaml.safe_load(text)
    if isinstance(raw, dict) and "version" in raw:
        settings = convert(raw, Settings, "docs")
        for plugin in settings.plugins:
            plugin_config(Generic, plugin.config, plugin.label)
    elif isinstance(raw, list):
        plugin_config(Generic, {"devices": raw}, "docs")
    else:
        assert set(raw) <= {"resources", "domain", "devices"}, "an example of a kind that nothing checks"
        if "devices" in raw:
            plugin_config(Generic, raw, "docs")
