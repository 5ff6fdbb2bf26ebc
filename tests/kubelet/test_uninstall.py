# SPDX-License-Identifier: Apache-2.0
"""What instances leave on a node is listed and removed once none of them serves, and never before."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from deviceplugin import cli
from deviceplugin.testing import Kubelet
from tests.kubelet.serving import FILES, RESOURCE, put_files, running, wait_until

LEAVING = """\
import os
from deviceplugin import Device, Plugin


class Leaving(Plugin):
    resource = "vendor.example/device"

    def start(self):
        raise AssertionError("nothing is started to be removed")

    def discover(self):
        yield Device("a")

    def uninstall(self, remove):
        for name in ("groups", "broken"):
            path = self.host.path(f"/{name}")
            if os.path.exists(path):
                if remove:
                    os.rmdir(path)
                yield f"directory {path}"
"""


def left(kubelet: Kubelet) -> set[str]:
    """Everything below the root that is not the kubelet's own."""
    places = ("var/lib/kubelet/device-plugins", "run", "var/lib/deviceplugin")
    found = {str(path.relative_to(kubelet.root)) for place in places for path in Path(kubelet.root, place).rglob("*")}
    return {one for one in found if not one.endswith(("kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"))} - {"run"}


@pytest.fixture
def killed(kubelet: Kubelet) -> Kubelet:
    """A node on which two instances, an active and a standby, were killed."""
    put_files(kubelet, "a")
    with running(kubelet) as one:
        kubelet.wait_for(RESOURCE, healthy=1)
        with running(kubelet) as other:
            other.wait_log("ready to take over")
            other.end(signal.SIGKILL)
        one.end(signal.SIGKILL)
    return kubelet


def uninstall(kubelet: Kubelet, *flags: str, plugin: str = FILES) -> int:
    return cli.main(["uninstall", "--root", kubelet.root, "--plugin", plugin, *flags])


def test_nothing_is_touched_while_an_instance_serves(kubelet: Kubelet, capsys: pytest.CaptureFixture[str]) -> None:
    put_files(kubelet, "a")
    with running(kubelet) as one:
        kubelet.wait_for(RESOURCE, healthy=1)
        wait_until(lambda: any(name.endswith(".status.sock") for name in left(kubelet)), "the last of its sockets")
        before = left(kubelet)
        assert uninstall(kubelet) == 1
        assert capsys.readouterr().err == (
            f"deviceplugin uninstall: pid {one.pid} still serves vendor.example_device: "
            "stop it first (kubectl delete the DaemonSet, or end the process)\n"
        )
        assert left(kubelet) == before
        assert kubelet.streams(RESOURCE) == 1


def test_what_is_listed_is_what_is_removed(killed: Kubelet, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = os.path.join(killed.device_plugins, "other-vendor.sock")
    Path(stranger).touch()
    before = left(killed)
    assert uninstall(killed, "--dry-run") == 0
    listed = capsys.readouterr().out.splitlines()
    assert left(killed) == before
    assert any(line.startswith(f"socket {killed.device_plugins}/vendor.example_device-") for line in listed)
    assert sum(line.endswith(".heir") for line in listed) == 1
    assert f"directory {killed.root}/run/deviceplugin" in listed
    assert uninstall(killed) == 0
    assert capsys.readouterr().out.splitlines() == [f"removed {line}" for line in listed]
    assert left(killed) == {os.path.relpath(stranger, killed.root)}
    assert uninstall(killed) == 0
    assert capsys.readouterr().out == "nothing is left here\n"


def test_a_plugin_removes_its_own_and_a_failure_hides_nothing(killed: Kubelet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "leaving.py"
    plugin.write_text(LEAVING)
    Path(killed.root, "groups").mkdir()
    Path(killed.root, "broken/not-empty").mkdir(parents=True)
    assert uninstall(killed, "-o", "json", plugin=f"{plugin}:Leaving") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["removed"]
    assert len(said["errors"]) == 1
    assert "uninstall() failed: OSError: [Errno 39] Directory not empty" in said["errors"][0]
    assert left(killed) == set(), "the daemon's own is removed all the same"
    Path(killed.root, "broken/not-empty").rmdir()
    assert uninstall(killed, plugin=f"{plugin}:Leaving") == 0
    assert capsys.readouterr().out == f"removed directory {killed.root}/broken\n"
