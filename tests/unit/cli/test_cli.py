# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

import deviceplugin
from deviceplugin import cli

FUSE = """\
from deviceplugin import Device, Plugin
class Fuse(Plugin):
    resource = "example.com/fuse"
    def discover(self):
        yield Device("fuse0", nodes=["/dev/fuse"])
"""


@pytest.fixture
def fuse(tmp_path: Path) -> str:
    (tmp_path / "fuse.py").write_text(FUSE)
    return f"{tmp_path}/fuse.py:Fuse"


@pytest.fixture
def config(tmp_path: Path, fuse: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(f"version: v1\nplugins:\n  - plugin: {fuse}\n")
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"deviceplugin {deviceplugin.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["fly"], ["run", "--frob"], ["check"], ["devices", "-o", "xml"]])
def test_a_wrong_command_line_is_one_line_and_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["run"], "nothing to serve: give --config FILE or --plugin SPEC"),
        (["run", "--plugin", "nowhere"], "plugin 'nowhere' is not installed"),
        (["run", "--plugin", "nowhere.py:X"], "there is no file nowhere.py"),
        (["run", "--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read: No such file or directory"),
        (["run", "--root", "/nowhere", "--plugin", "x"], "--root /nowhere: there is no such directory"),
        (["run", "--plugin", "a:A", "--plugin", "a:B"], "plugins 0 and 1 are both called 'a'"),
        (["run", "--plugin", "a:A", "--listen", "here"], "'here' is not an address"),
        (["run", "--plugin", "a:A", "--log-level", "loud"], "logLevel"),
        (["devices", "--root", "/nowhere"], "there is no such directory"),
    ],
)
def test_a_mistake_of_the_users_is_one_line_and_status_2(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert text in err


def test_check_shows_what_would_be_advertised(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(config)]) == 0
    out = capsys.readouterr().out
    assert "fuse0" in out
    assert out.splitlines()[-1] == f"{config}: ok (1 resource, 1 device)"


def test_check_as_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(config), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["ok"], found["source"]) == ("v1", True, str(config))
    assert found["resources"][0]["devices"][0]["id"] == "fuse0"


@pytest.mark.parametrize("output", ["table", "json"])
def test_check_of_a_wrong_file_says_where_and_has_status_1(config: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + "resourcez: {}\n")
    assert cli.main(["check", str(config), "-o", output]) == 1
    out = capsys.readouterr().out
    assert f"{config}:4: top level: unknown key 'resourcez', did you mean 'resources'?" in out


def test_devices_without_a_daemon_looks_by_itself_and_says_so(fuse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--root", str(tmp_path), "--plugin", fuse]) == 0
    out = capsys.readouterr().out
    assert out.startswith("no daemon runs here; this is what one would advertise\n")
    assert "fuse0" in out


def test_devices_without_a_daemon_and_without_a_plugin_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == ("deviceplugin devices: no daemon runs here; --config FILE or --plugin SPEC shows what one would advertise\n")


def test_devices_as_json_says_that_none_runs(fuse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--root", str(tmp_path), "--plugin", fuse, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["daemons"] == []
    assert found["survey"]["resources"][0]["name"] == "example.com/fuse"


def test_devices_that_may_not_ask_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/deviceplugin").write_text("not a directory")
    assert cli.main(["devices", "--root", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{tmp_path}/run/deviceplugin: Not a directory" in err
