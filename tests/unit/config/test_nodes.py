# SPDX-License-Identifier: Apache-2.0
"""What some nodes have otherwise, in the same file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.config import ConfigError, Match, NodeSettings, PluginSettings, ResourceSettings
from deviceplugin.configfile import Configuration, check_plugins, load, matches, merged, read_labels
from deviceplugin.source import SourceMapping, line_of, parse

FILE = """\
version: v1
logLevel: info
plugins:
  - plugin: generic
    name: serial
    interval: 10
    config:
      domain: example.com
      devices:
        - name: tty
          groups: [{paths: [{path: /dev/ttyS0}]}]
  - {plugin: gpu, enabled: false}
resources:
  example.com/tty: {replicas: 2, policy: pack}
  example.com/other: {replicas: 3}
nodes:
  - name: big
    match:
      names: ["gpu-*", "dgx-[0-9]"]
    settings:
      plugins:
        - {plugin: gpu, enabled: true}
        - {plugin: more.py:More}
      resources:
        example.com/other: null
        example.com/tty:
          replicas: 8
  - name: edge
    match: {names: ["gpu-*", "edge-*"], labels: {example.com/pool: "e*"}}
    settings:
      logLevel: debug
      plugins:
        - name: serial
          interval: 5
          config:
            devices: []
"""


def configuration(tmp_path: Path, text: str = FILE, node: str | None = "other", **more: Any) -> Configuration:
    path = tmp_path / "node.yaml"
    path.write_text(text)
    return load(str(path), {"nodeName": node}, {}, **more)


def mistake(tmp_path: Path, text: str, node: str | None = "other") -> str:
    with pytest.raises(ConfigError) as caught:
        check_plugins(configuration(tmp_path, text, node))
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_node_that_nothing_matches_has_the_common_part(tmp_path: Path) -> None:
    found = configuration(tmp_path)
    assert found.variant == ""
    assert [(one.label, one.enabled) for one in found.settings.plugins] == [("serial", True), ("gpu", False)]
    assert found.settings.resources["example.com/tty"].replicas == 2


def test_mappings_merge_null_takes_out_and_plugins_merge_by_what_they_are_called(tmp_path: Path) -> None:
    found = configuration(tmp_path, node="dgx-3")
    assert found.variant == "big"
    assert found.settings.plugins == [
        PluginSettings(
            plugin="generic",
            name="serial",
            interval=10,
            config={"domain": "example.com", "devices": [{"name": "tty", "groups": [{"paths": [{"path": "/dev/ttyS0"}]}]}]},
        ),
        PluginSettings(plugin="gpu"),
        PluginSettings(plugin="more.py:More"),
    ]
    assert found.settings.resources == {"example.com/tty": ResourceSettings(replicas=8, policy="pack")}


def test_lists_replace(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("example.com/pool=east\n")
    found = configuration(tmp_path, f"labelFiles: [{tmp_path}/labels]\n{FILE}", "edge-1")
    assert (found.variant, found.settings.log_level) == ("edge", "debug")
    (serial, _) = found.settings.plugins
    assert (serial.plugin, serial.interval, serial.config) == ("generic", 5, {"domain": "example.com", "devices": []})


def test_the_first_that_matches_counts(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("example.com/pool=east\n")
    assert configuration(tmp_path, f"labelFiles: [{tmp_path}/labels]\n{FILE}", "gpu-1").variant == "big"


def test_flags_and_variables_come_before_what_some_nodes_have(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(FILE.replace("      resources:\n", "      logLevel: debug\n      resources:\n", 1))
    assert load(str(path), {"nodeName": "gpu-1"}, {}).settings.log_level == "debug"
    assert load(str(path), {"nodeName": "gpu-1"}, {"DEVICEPLUGIN_LOG_LEVEL": "error"}).settings.log_level == "error"
    assert load(str(path), {"logLevel": "warning"}, {"DEVICEPLUGIN_NODE_NAME": "gpu-1"}).settings.log_level == "warning"


def test_a_node_whose_name_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    text = mistake(tmp_path, FILE, None)
    assert text.startswith("node.yaml: nodes are matched by name, but this node's is not known: set DEVICEPLUGIN_NODE_NAME")
    assert mistake(tmp_path, FILE, "") == text
    assert configuration(tmp_path, node=None, hostname="gpu-7").variant == "big"
    assert configuration(tmp_path, f"nodeName: gpu-7\n{FILE}", None).variant == "big"
    with pytest.raises(ConfigError, match=r"^the command line: logLevel: Invalid enum value 'loud'"):
        load(str(tmp_path / "node.yaml"), {}, {"DEVICEPLUGIN_LOG_LEVEL": "loud"})
    by_label = 'version: v1\nnodes: [{name: a, match: {labels: {x: "*"}}}]\n'
    assert configuration(tmp_path, by_label, None).variant == ""


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "          replicas: 8",
            "          replica: 8",
            "node.yaml:27: nodes 'big': resources[example.com/tty]: unknown key 'replica', did you mean",
        ),
        ("replicas: 8", "replicas: many", "node.yaml:27: nodes 'big': resources[example.com/tty].replicas: Expected `int`, got `str`"),
        ("          interval: 5", "          interval: 5s", "node.yaml:34: nodes 'edge': plugins[0].interval: Expected `float | null`, got `str`"),
        (
            "        - {plugin: more.py:More}",
            "        - {name: more}",
            "node.yaml:23: nodes 'big': plugins[2]: Object missing required field `plugin`",
        ),
        ("            devices: []", "            device: []", "node.yaml:36: nodes 'edge': plugin serial: config: top level: unknown key 'device'"),
        (
            "{plugin: more.py:More}",
            "{plugin: more.py:More}\n        - {plugin: more.py:Less}",
            "node.yaml: nodes 'big': plugins 2 and 3 are both called",
        ),
        ("      logLevel: debug", "      nodeName: x", "node.yaml:31: nodes[1].settings: nodeName is the same for all nodes"),
        ("      logLevel: debug", "      version: v1", "version is the same for all nodes"),
        ("      logLevel: debug", "      nodes: []", "nodes is the same for all nodes"),
        ("    settings:\n      plugins", "    setings:\n      plugins", "node.yaml:20: nodes[0]: unknown key 'setings', did you mean 'settings'?"),
        ('      names: ["gpu-*", "dgx-[0-9]"]', "      names: []", "node.yaml:18: nodes[0].match: match needs names or labels"),
        ("  - name: edge", '  - name: ""', "node.yaml:28: nodes[1].name: Expected `str` of length >= 1"),
        ("  - name: edge", "  - name: big", "two entries are called 'big'"),
        ('pool: "e*"', "pool: true", "node.yaml:29: nodes[1].match.labels[example.com/pool]: Expected `str`, got `bool`"),
        ("    interval: 10", "    interval: x", "node.yaml:6: plugins[0].interval: Expected `float | null`, got `str`"),
        ("      domain: example.com", "      domian: example.com", "node.yaml:8: plugin serial: config: top level: unknown key 'domian'"),
        ("version: v1", "version: v1\nlabelFiles: [labels]", "labelFiles: 'labels' must be an absolute path"),
    ],
)
def test_a_mistake_is_found_on_every_node_with_its_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert FILE.count(before) == 1
    text = FILE.replace("{plugin: more.py:More}", "{plugin: generic}") if "config: top" in message else FILE
    for node in ("other", "gpu-1"):
        assert message in mistake(tmp_path, text.replace(before, after), node)


def test_a_plugin_that_only_other_nodes_have_is_loaded_and_checked_too(tmp_path: Path) -> None:
    text = mistake(tmp_path, FILE)
    assert text == "node.yaml:23: nodes 'big': plugin 'more.py:More': there is no file more.py"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = mistake(tmp_path, FILE.replace("replicas: 8", "replicas: 0").replace("interval: 5", "interval: 0"))
    assert [line.partition(": plugins")[0].partition(": resources")[0] for line in text.splitlines()] == [
        "node.yaml:27: nodes 'big'",
        "node.yaml:34: nodes 'edge'",
    ]


def test_what_is_wrong_for_all_nodes_is_told_once(tmp_path: Path) -> None:
    assert len(mistake(tmp_path, FILE.replace("domain: example", "domian: example").replace("more.py:More", "generic")).splitlines()) == 1
    assert len(mistake(tmp_path, FILE.replace("interval: 10", "interval: 0")).splitlines()) == 1


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        (Match(names=["gpu-*"]), True),
        (Match(names=["GPU-*"]), False),
        (Match(names=["x", "gpu-?"]), True),
        (Match(names=["gpu-[!7]"]), False),
        (Match(labels={"pool": "a*"}), True),
        (Match(labels={"pool": "A*"}), False),
        (Match(labels={"pool": "*", "none": "*"}), False),
        (Match(labels={"empty": ""}), True),
        (Match(names=["gpu-*"], labels={"pool": "b"}), False),
        (Match(names=["cpu-*"], labels={"pool": "a1"}), False),
        (Match(names=["gpu-7"], labels={"pool": "a1"}), True),
    ],
)
def test_names_and_labels_both_must_fit(match: Match, fits: bool) -> None:
    assert matches(NodeSettings(name="n", match=match), "gpu-7", {"pool": "a1", "empty": ""}) is fits


def test_labels_are_read_as_the_downward_api_and_node_feature_discovery_write_them(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text(
        '# +expiry-time=2030-01-01T00:00:00Z\n\napp="plugin"\ntopology.kubernetes.io/zone="eu-1a"\nexample.com/pool=big\nflag\nempty=\nodd="\n'
    )
    labels, _ = read_labels(str(path))
    assert labels == {
        "app": "plugin",
        "topology.kubernetes.io/zone": "eu-1a",
        "example.com/pool": "big",
        "flag": "true",
        "empty": "",
        "odd": '"',
    }
    assert read_labels(str(tmp_path / "none")) == ({}, "")
    path.write_bytes(b"a=\xff\n")
    with pytest.raises(ConfigError, match="labels cannot be read"):
        read_labels(str(path))
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        read_labels(str(path))


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(0, 3), st.lists(st.integers(0, 3), max_size=2)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def patched(target: Any, patch: Any) -> Any:
    """The pseudo code of RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = copy.copy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


def written(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    made = SourceMapping({key: written(one) for key, one in value.items()})
    made.lines = dict.fromkeys(made, 1)
    return made


@given(VALUES, VALUES)
def test_merging_is_json_merge_patch_and_changes_neither_side(target: Any, patch: Any) -> None:
    one, two = written(target), written(patch)
    assert merged(one, two) == patched(target, patch)
    assert (one, two) == (target, patch)


@given(VALUES, VALUES)
def test_every_key_of_a_merged_mapping_has_its_line(target: Any, patch: Any) -> None:
    def check(value: Any) -> None:
        if isinstance(value, SourceMapping):
            assert value.keys() <= value.lines.keys()
            for one in value.values():
                check(one)

    check(merged(written(target), written(patch)))


def test_lines_are_found_through_lists_mappings_and_keys_with_dots() -> None:
    raw = parse(FILE.encode(), "f")
    assert line_of(raw, "plugins[0].config.devices[0].name") == 10
    assert line_of(raw, "resources[example.com/tty].policy") == 14
    assert line_of(raw, "nodes[1].settings.plugins[0].config.devices") == 36
    assert line_of(raw, "nodes[1].settings.unknown.deep") == 30
    assert line_of(raw, "nowhere") == 0
    assert line_of({}, "plugins[0]") == 0
