# SPDX-License-Identifier: Apache-2.0
"""``deviceplugin check`` of a file that says something else for some nodes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deviceplugin import cli

PLUGIN = """\
from deviceplugin import Device, Plugin
class Fuse(Plugin):
    resource = "example.com/fuse"
    def discover(self):
        yield Device("fuse0", nodes=["/dev/fuse"])
"""

FILE = """\
version: v1
plugins: [{{plugin: "{plugin}:Fuse"}}]
labelFiles: [{labels}]
nodes:
  - name: many
    match: {{names: ["gpu-*"]}}
    settings: {{resources: {{example.com/fuse: {{replicas: 3}}}}}}
  - name: none
    match: {{names: ["cpu-*", "{own}"]}}
    settings: {{plugins: [{{name: fuse, enabled: false}}]}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "fuse.py").write_text(PLUGIN)
    path = tmp_path / "c.yaml"
    path.write_text(FILE.format(plugin=tmp_path / "fuse.py", labels=tmp_path / "labels", own=os.uname().nodename))
    return path


def test_what_another_node_would_run_is_shown(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(config), "--node", "gpu-1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("node gpu-1 has the settings of 'many' in nodes\n")
    assert "(1 resource, 3 devices)" in out
    assert f"warning: labelFiles: {config.parent}/labels is not there, so no label in it" in out
    assert "nothing says this node's name" not in out


def test_a_node_that_has_nothing_is_well(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(config), "--node", "cpu-1"]) == 0
    assert "no devices" in capsys.readouterr().out


def test_where_the_node_is_not_named_it_is_this_machine_and_that_is_said(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEVICEPLUGIN_NODE_NAME", raising=False)
    assert cli.main(["check", str(config), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["node"], found["variant"], found["plugins"]) == (os.uname().nodename, "none", [])
    assert [text for text in found["warnings"] if "nothing says this node's name" in text]


def test_the_merged_settings_are_in_the_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(config), "--node", "gpu-1", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["resources"]["example.com/fuse"]["replicas"] == 3
    assert "nodes" not in found["settings"] or found["settings"]["nodes"] == []


def test_a_mistake_that_is_meant_for_other_nodes_fails_the_check(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("replicas: 3", "replica: 3"))
    assert cli.main(["check", str(config), "--node", "cpu-1"]) == 1
    assert f"error: {config}:7: nodes 'many': resources[example.com/fuse]: unknown key 'replica', did you mean 'replicas'?" in capsys.readouterr().out
