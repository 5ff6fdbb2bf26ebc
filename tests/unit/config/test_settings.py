# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.config import ConfigError, ResourceSettings, Settings, advertised_name, convert, listen_address
from deviceplugin.configfile import load
from deviceplugin.model import Recovery, Rule

WHOLE: dict[str, Any] = {
    "version": "v1",
    "plugins": [
        {
            "plugin": "generic",
            "interval": 10,
            "deadlines": {"allocate": 2.5},
            "health": {"recovery": {"xid:79": {"after": "reset"}, "default": {"seconds": 5}}, "flaps": 3},
        }
    ],
    "resources": {"example.com/gpu": {"replicas": 4, "renameByDefault": True, "policy": "pack"}, "example.com/fuse": {"registration": "watcher"}},
    "logLevel": "debug",
    "tombstoneLimit": 60,
}


def mistake(raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        convert(raw, Settings, "node.yaml")
    return str(caught.value)


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """The whole configuration with another value at a path."""
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(WHOLE))
    at: Any = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = to
    return copy


def test_a_whole_file_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(WHOLE))
    settings = load(str(file), environ={}).settings
    (plugin,) = settings.plugins
    assert (plugin.label, plugin.interval, plugin.deadlines.by_hook()["allocate"], plugin.deadlines.prefer) == ("generic", 10, 2.5, 1.0)
    assert plugin.health.rules() == {"xid:79": Rule(Recovery.RESET, 0.0), "default": Rule(Recovery.QUIET, 5.0)}
    assert plugin.health.damping().flaps == 3
    assert settings.resources["example.com/gpu"].replicas == 4


def test_without_a_file_there_are_the_defaults() -> None:
    assert load(None, environ={}).settings == Settings(version="v1")


@pytest.mark.parametrize(
    ("path", "key", "message"),
    [
        ((), "plugin", "node.yaml: top level: unknown key 'plugin', did you mean 'plugins'?"),
        (("plugins", 0), "intervall", "node.yaml: plugins[0]: unknown key 'intervall', did you mean 'interval'?"),
        (("plugins", 0, "deadlines"), "alocate", "node.yaml: plugins[0].deadlines: unknown key 'alocate', did you mean 'allocate'?"),
        (("plugins", 0, "health"), "flap_window", "node.yaml: plugins[0].health: unknown key 'flap_window', did you mean 'flapWindow'?"),
        (
            ("plugins", 0, "health", "recovery", "xid:79"),
            "second",
            "node.yaml: plugins[0].health.recovery[xid:79]: unknown key 'second', did you mean 'seconds'?",
        ),
        (("resources", "example.com/gpu"), "replica", "node.yaml: resources[example.com/gpu]: unknown key 'replica', did you mean 'replicas'?"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest_known_one(path: tuple[str | int, ...], key: str, message: str) -> None:
    assert mistake(changed(*path, key, to=1)) == message


def test_a_key_that_is_like_no_other_is_answered_with_all_known_ones() -> None:
    assert "unknown key 'zzz', known here: allocate, discover, measure, prefer, prepare, reconcile, start" in mistake(
        changed("plugins", 0, "deadlines", "zzz", to=1)
    )


def test_all_unknown_keys_are_told_at_once_each_on_its_line() -> None:
    raw = changed("logLevl", to="info")
    raw["resources"]["example.com/fuse"]["polcy"] = "any"
    assert mistake(raw).splitlines() == [
        "node.yaml: resources[example.com/fuse]: unknown key 'polcy', did you mean 'policy'?",
        "node.yaml: top level: unknown key 'logLevl', did you mean 'logLevel'?",
    ]


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("version",), "v2", "version: "),
        (("plugins",), {}, "plugins: "),
        (("plugins", 0), "generic", "plugins[0]: "),
        (("plugins", 0, "plugin"), 7, "plugins[0].plugin: "),
        (("plugins", 0, "interval"), "10s", "plugins[0].interval: "),
        (("plugins", 0, "interval"), 0, "plugins[0].interval: "),
        (("plugins", 0, "config"), [], "plugins[0].config: "),
        (("plugins", 0, "deadlines", "prepare"), 30, "plugins[0].deadlines.prepare: "),
        (("plugins", 0, "health", "recovery", "default", "after"), "rest", "plugins[0].health.recovery[default].after: "),
        (("resources", "example.com/fuse"), None, "resources[example.com/fuse]: "),
        (("resources", "example.com/fuse", "replicas"), "two", "resources[example.com/fuse].replicas: "),
        (("resources", "example.com/fuse", "replicas"), 0, "resources[example.com/fuse].replicas: "),
        (("resources", "example.com/fuse", "policy"), "random", "resources[example.com/fuse].policy: "),
        (("resources", "example.com/fuse", "rename"), "fuse", "resources[example.com/fuse]: "),
        (("resources", 7), {}, "the keys of resources: "),
        (("logLevel",), "loud", "logLevel: "),
        (("registration",), ["socket"], "registration: "),
        (("tombstoneLimit",), -1, "tombstoneLimit: "),
    ],
)
def test_a_wrong_value_is_told_with_its_place(path: tuple[str | int, ...], value: Any, place: str) -> None:
    text = mistake(changed(*path, to=value))
    assert text.startswith(f"node.yaml: {place}")
    assert "\n" not in text


def test_a_missing_version_is_told() -> None:
    assert "version" in mistake({"plugins": []})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"resources": {"gpu": {}}}, ["'gpu'", "exactly one slash"]),
        ({"resources": {"a.b/c": {"rename": "x.kubernetes.io/c"}}}, ["a.b/c", "reserved"]),
        ({"resources": {"a.b/c": {"rename": "a.b/d", "renameByDefault": True}}}, ["exclude each other"]),
        ({"resources": {"a.b/" + "c" * 60: {"renameByDefault": True, "replicas": 2}}}, ["67 characters"]),
        ({"resources": {"a.b/c": {"rename": "a.b/d"}, "a.b/d": {}}}, ["a.b/c", "a.b/d", "both"]),
        ({"resources": {"a.b/c": {"renameByDefault": True, "replicas": 2}, "a.b/c.shared": {}}}, ["a.b/c.shared", "both"]),
        ({"plugins": [{"plugin": "x"}, {"plugin": "x"}]}, ["0", "1", "both called 'x'"]),
        ({"plugins": [{"plugin": "a/x.py:A"}, {"plugin": "b/x.py:B"}]}, ["both called 'x'"]),
        ({"listen": "nowhere"}, ["'nowhere'", "host:port"]),
    ],
)
def test_what_cannot_be_together_is_refused(raw: dict[str, Any], words: list[str]) -> None:
    text = mistake({"version": "v1", **raw})
    assert [word for word in words if word in text] == words


def test_a_share_gets_a_name_of_its_own_only_when_there_are_shares() -> None:
    assert advertised_name("a.b/c", None) == "a.b/c"
    assert advertised_name("a.b/c", ResourceSettings(rename_by_default=True)) == "a.b/c"
    assert advertised_name("a.b/c", ResourceSettings(rename_by_default=True, replicas=2)) == "a.b/c.shared"
    assert advertised_name("a.b/c", ResourceSettings(rename="a.b/d", replicas=2)) == "a.b/d"


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9808", ("127.0.0.1", 9808)), (":80", ("", 80)), ("[::1]:0", ("::1", 0)), ("node.local:65535", ("node.local", 65535))],
)
def test_addresses_to_listen_on(text: str, address: tuple[str, int]) -> None:
    assert listen_address(text) == address


@pytest.mark.parametrize("text", ["9808", "host", "host:", "host:http", "host:65536", "host:-1", "[::1]", "host:²"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="host:port, as in 127"):
        listen_address(text)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["plugin", "health", "recovery", "a.b/c", "rename"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.one_of(st.sampled_from(["version", "plugins", "resources", "listen", "x"]), st.integers()), VALUES, max_size=4))
def test_whatever_the_file_holds_the_answer_is_settings_or_lines_of_text(raw: dict[Any, Any]) -> None:
    try:
        text = "" if isinstance(convert(raw, Settings, "f"), Settings) else "f is something else"
    except ConfigError as error:
        text = str(error)
    assert all(line.startswith("f: ") for line in text.splitlines())
