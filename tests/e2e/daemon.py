# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process on a node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.e2e.harness import Node, wait_for

EXIT_SECONDS = 5.0


@dataclass(frozen=True)
class Usage:
    """What a process holds. rss: MiB."""

    threads: int
    descriptors: int
    rss: float


def generic(*devices: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """A configuration that serves device files. devices: entries of the generic plugin; settings: the rest of the file."""
    return {
        "version": "v1",
        "listen": "",
        "plugins": [{"plugin": "generic", "config": {"domain": "example.com", "devices": list(devices)}}],
        **settings,
    }


def files(name: str, path: str | Path) -> dict[str, Any]:
    """A resource example.com/<name> with the device files that a glob finds; a container sees them below /dev."""
    return {"name": name, "groups": [{"paths": [{"path": str(path), "mountPath": "/dev/"}]}]}


FUSE = files("fuse", "/dev/fuse")


def make_files(node: Node, *names: str) -> Path:
    """Makes device files, each another way to /dev/fuse's driver, in a folder of the node's own, and returns the folder."""
    folder = node.work / "dev"
    folder.mkdir(exist_ok=True)
    for name in names:
        node.make_device(folder / name, 10, 229)
    return folder


class Daemon:
    """``deviceplugin run`` inside a node's mount namespace. name: of its log."""

    def __init__(self, node: Node, config: Mapping[str, Any], name: str = "deviceplugin") -> None:
        self.node = node
        self.name = name
        self.config = node.work / f"{name}.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        state = node.work / "state"
        state.mkdir(exist_ok=True)
        self.write({"stateDirectory": str(state), **config})

    def write(self, config: Mapping[str, Any]) -> None:
        """Replaces the configuration file; the process hears of it with send(SIGHUP)."""
        aside = self.config.with_suffix(".new")
        aside.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        aside.replace(self.config)

    @property
    def log(self) -> Path:
        return self.node.log(self.name)

    @property
    def pid(self) -> int:
        assert self.process is not None, "the daemon is not started"
        return self.process.pid

    def start(self) -> None:
        """Starts the process and returns at once."""
        self.process = self.node.run([sys.executable, "-m", "deviceplugin", "run", "--config", self.config], self.name)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends the process with a signal and returns its exit status, negative for a signal that killed it."""
        assert self.process is not None
        if self.process.poll() is None:
            self.send(number)
        return self.process.wait(EXIT_SECONDS)

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.end(number)
        self.start()

    def usage(self) -> Usage:
        process = psutil.Process(self.pid)
        return Usage(process.num_threads(), process.num_fds(), process.memory_info().rss / (1 << 20))

    def devices(self) -> list[dict[str, Any]]:
        """What ``deviceplugin devices -o json`` says inside the node, one entry for each daemon.

        Raises ConnectionError where it fails, as while a daemon has only just started; to wait_for that is "not yet".
        """
        argv = ["nsenter", f"--mount={self.node.namespace}", "--", sys.executable, "-m", "deviceplugin", "devices", "-o", "json"]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode != 0:
            raise ConnectionError(done.stderr.strip())
        found: list[dict[str, Any]] = json.loads(done.stdout)["daemons"]
        return found

    def wait_complete(self, timeout: float = 10.0) -> None:
        """Waits until the process has started completely: it answers on its status socket, which comes last."""
        directory = Path(f"/proc/{self.pid}/root/run/deviceplugin")
        wait_for(lambda: list(directory.glob(f"{self.pid}-*.status.sock")), timeout, "the daemon to answer", (self.log,))

    def wait_view(self, seen: Callable[[], object], timeout: float = 25.0) -> None:
        """Waits until the daemon's own view shows something; it asks the kubelet every 10 s."""
        wait_for(seen, timeout, "the daemon to see it", (self.log,), self.devices)

    def wait_log(self, text: str, timeout: float = 10.0) -> None:
        wait_for(lambda: text in self.log.read_text(), timeout, f"{text!r} in the daemon's log", (self.log,))


@contextlib.contextmanager
def running(node: Node, config: Mapping[str, Any], name: str = "deviceplugin") -> Iterator[Daemon]:
    """A daemon for the length of a with block; it must then end by itself, with status 0, on SIGTERM."""
    daemon = Daemon(node, config, name)
    daemon.start()
    try:
        yield daemon
    finally:
        status = daemon.end()
        node.clear()
    assert status == 0, f"the daemon ended with status {status}:\n{daemon.log.read_text()[-4000:]}"
