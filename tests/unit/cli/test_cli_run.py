# SPDX-License-Identifier: Apache-2.0
"""``deviceplugin run`` in this process, and in one of its own where it is about how a process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deviceplugin
from deviceplugin import Device, Plugin, cli
from deviceplugin.daemon import Daemon
from deviceplugin.kubelet.paths import Paths
from deviceplugin.observe import client, serving
from deviceplugin.observe.status import Status

FUSE = """\
import os, threading, time
from deviceplugin import Device, Plugin
class Fuse(Plugin):
    resource = "example.com/fuse"
    def discover(self):
        {body}
        yield Device("fuse0", nodes=["/dev/fuse"])
"""


class Wrench(Plugin):
    resource = "example.com/wrench"

    def discover(self) -> Iterator[Device]:
        yield Device("wrench0")


def eventually(truth: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (found := truth()):
        assert time.monotonic() < deadline, "did not come true"
        pause.wait(0.01)
    return found


def status(root: Path) -> Status | None:
    daemons, _ = client.ask_all(Paths.below(str(root)).locks)
    return daemons[0] if daemons else None


def running(root: Path, act: Callable[[], None]) -> threading.Thread:
    """Once the daemon answers: does ``act``, then ends it with SIGTERM. What ``act`` raised is raised by :func:`join`."""
    errors: list[Exception] = []

    def drive() -> None:
        try:
            eventually(lambda: status(root))
            act()
        except (AssertionError, LookupError, AttributeError) as error:
            errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=drive)
    thread.errors = errors  # type: ignore[attr-defined]
    thread.start()
    return thread


def join(thread: threading.Thread) -> None:
    thread.join()
    for error in thread.errors:  # type: ignore[attr-defined]
        raise error


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_run_serves_until_sigterm_and_leaves_nothing_behind(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Status | None] = []
    thread = running(root, lambda: seen.append(status(root)))
    code = deviceplugin.run(Wrench, argv=["--root", str(root), "--listen", "", "--node-name", "n1"])
    join(thread)
    assert code == 0
    (picture,) = seen
    assert picture is not None
    assert (picture.node, picture.resources[0].name, picture.resources[0].role) == ("n1", "example.com/wrench", "active")
    assert client.sockets(Paths.below(str(root)).locks) == []
    err = capfd.readouterr().err
    assert "example.com/wrench: 1 device, all healthy" in err
    assert f"no kubelet at {root}/var/lib/kubelet/device-plugins/kubelet.sock yet: waiting for it" in err


def test_a_vendors_configuration_names_its_plugin_by_its_class(root: Path) -> None:
    config = write(root / "c.yaml", "version: v1\nplugins:\n  - plugin: Wrench\n    interval: 5\n")
    names: list[str] = []
    thread = running(root, lambda: names.extend(one.name for one in eventually(lambda: status(root)).plugins))
    assert deviceplugin.run(Wrench, argv=["--root", str(root), "--listen", "", "--config", str(config)]) == 0
    join(thread)
    assert names == ["Wrench"]


def test_sighup_applies_all_of_a_good_file_and_nothing_of_a_bad_one(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plugin = write(root / "fuse.py", FUSE.format(body=""))
    text = f"version: v1\nplugins:\n  - plugin: {plugin}:Fuse\n"
    config = write(root / "c.yaml", text)

    def resources() -> dict[str, int]:
        found = status(root)
        return {one.name: one.replicas for one in found.resources} if found else {}

    def act() -> None:
        eventually(lambda: resources() == {"example.com/fuse": 1})
        config.write_text(text + "resourcez: {}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        found = eventually(lambda: (one := status(root)) and one.config_error and one)
        assert "did you mean 'resources'" in found.config_error
        assert next(check.name for check in found.checks if not check.ok) == "config"
        assert resources() == {"example.com/fuse": 1}
        config.write_text(text + "resources: {example.com/fuse: {replicas: 3}}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        eventually(lambda: resources() == {"example.com/fuse": 3})
        assert eventually(lambda: status(root)).config_error == ""

    thread = running(root, act)
    assert cli.main(["run", "--config", str(config), "--root", str(root), "--listen", ""]) == 0
    join(thread)
    assert "nothing was changed" in capfd.readouterr().err


def test_a_device_plugins_directory_that_is_dead_ends_the_run_with_status_75(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(Daemon):
        def start(self) -> None:
            super().start()
            self.on_lost("/var/lib/kubelet/device-plugins")

        def __init__(self, *args: Any, on_lost: Callable[[str], None]) -> None:
            self.on_lost = on_lost
            super().__init__(*args, on_lost=on_lost)

    monkeypatch.setattr(serving, "Daemon", Losing)
    assert deviceplugin.run(Wrench, argv=["--root", str(root), "--listen", ""]) == 75


def test_devices_shows_the_active_instance_and_the_standby(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "")
    plugin = write(root / "fuse.py", FUSE.format(body=""))
    other = start(root, plugin)
    try:
        eventually(lambda: (one := status(root)) and one.resources)

        def act() -> None:
            eventually(lambda: len(client.ask_all(Paths.below(str(root)).locks)[0]) == 2)
            capsys.readouterr()
            assert cli.main(["devices", "--root", str(root)]) == 0

        thread = running(root, act)
        assert cli.main(["run", "--plugin", f"{plugin}:Fuse", "--root", str(root), "--listen", ""]) == 0
        join(thread)
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("example.com/fuse")]
        assert lines[0] == ["example.com/fuse", "active", "not", "registered", "1", "1", "?", "pid", str(other.pid)]
        assert lines[1] == ["example.com/fuse", "standby", "waits", "for", "pid", str(other.pid), "1", "1", "?", "pid", str(os.getpid())]
        assert lines[2][:2] == ["example.com/fuse", "fuse0"]
    finally:
        other.kill()
        other.wait()


def start(root: Path, plugin: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deviceplugin", "run", "--plugin", f"{plugin}:Fuse", "--root", str(root), "--listen", "", "--log-format", "json"]
    with open(root / "log", "wb") as log:
        return subprocess.Popen(command, stderr=log)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "threading.Thread(target=threading.Event().wait, name='stuck', daemon=False).start()",
            "leaving without waiting for threads that hang: stuck",
        ),
        ("import deviceplugin.daemon as d; d.Daemon.stop = lambda self: time.sleep(60)", "stopping takes too long; leaving now"),
    ],
)
def test_sigterm_ends_the_process_within_two_seconds_whatever_hangs(root: Path, body: str, words: str) -> None:
    process = start(root, write(root / "fuse.py", FUSE.format(body=body)))
    try:
        eventually(lambda: (one := status(root)) and one.resources)
        began = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 2.5
        assert words in (root / "log").read_text()
    finally:
        process.kill()
        process.wait()
