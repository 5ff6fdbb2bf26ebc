# SPDX-License-Identifier: Apache-2.0
"""The story on a real kubelet, through kubelet.sock and through the plugin watcher."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.harness import Container, Node, Pod, wait_for
from tests.scenario.story import EXPECTED, RESOURCE, Ask, Stage, Story


class RealStage(Stage):
    def __init__(self, node: Node, registration: str) -> None:
        self.node = node
        self.folder = node.work / f"stage-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir()
        plugin = {"plugin": "tests.scenario.plugin:Folder", "config": {"folder": str(self.folder)}}
        self.daemon = Daemon(node, {"version": "v1", "listen": "", "registration": registration, "plugins": [plugin]})

    def plug(self, name: str) -> None:
        self.node.make_device(self.folder / name, 10, 229)

    def unplug(self, name: str) -> None:
        (self.folder / name).unlink()

    def start_plugin(self) -> None:
        self.daemon.start()

    def kill_plugin(self) -> None:
        self.daemon.end(signal.SIGKILL)

    def restart_kubelet(self) -> None:
        self.node.kill_kubelet()
        self.node.start_kubelet()

    def wait_healthy(self, count: int) -> None:
        self.node.wait_resource(RESOURCE, count)

    def create(self, ask: Ask) -> str:
        init = [Container("first", command=["/bin/true"], limits={ask.resource: ask.init})] if ask.init else []
        self.node.create_pod(Pod(ask.name, [Container("main", limits={ask.resource: ask.count})], init))

        def outcome() -> str:
            status = self.node.pod_status(ask.name)
            if status and status.phase == "Failed":
                return f"Failed: {status.reason}: {status.message}"
            return "Running" if status and status.all_running else ""

        return wait_for(outcome, 30, f"pod {ask.name} to run or fail", (self.node.kubelet_log,), lambda: self.node.pod_status(ask.name))

    def delete(self, name: str) -> None:
        self.node.delete_pod(name)

    def held(self, name: str) -> frozenset[str]:
        return frozenset(self.node.pod_devices(name).get(RESOURCE, []))

    def wait_held(self, name: str, devices: frozenset[str]) -> None:
        wait_for(lambda: self.held(name) == devices, 30, f"{name} to hold {set(devices)}", (self.node.kubelet_log,), lambda: self.held(name))

    def files(self, name: str) -> frozenset[str]:
        devices = self.node.oci_spec(name)["linux"]["devices"]
        plugged = set(os.listdir(self.folder))
        return frozenset(Path(device["path"]).name for device in devices) & plugged

    def wait_health(self, name: str, health: Mapping[str, str]) -> None:
        self.node.wait_health(name, RESOURCE, health)


@pytest.mark.parametrize("registration", ["socket", "watcher"])
def test_the_story_on_a_real_kubelet(node: Node, registration: str) -> None:
    stage = RealStage(node, registration)
    try:
        assert Story(stage).play() == EXPECTED
    finally:
        assert stage.daemon.end() == 0
        node.clear()
