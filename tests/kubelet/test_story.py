# SPDX-License-Identifier: Apache-2.0
"""The story on the fake kubelet, with both behaviours of registration."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from deviceplugin import Host
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.testing import Container, Kubelet, Pod
from tests.scenario.story import EXPECTED, RESOURCE, Ask, Stage, Story


class FakeStage(Stage):
    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self.pods: dict[str, Pod] = {}
        self.given: dict[str, frozenset[str]] = {}
        self.daemon: Daemon | None = None
        os.makedirs(os.path.join(kubelet.root, "stage"))

    def plug(self, name: str) -> None:
        open(os.path.join(self.kubelet.root, "stage", name), "w").close()

    def unplug(self, name: str) -> None:
        os.unlink(os.path.join(self.kubelet.root, "stage", name))

    def start_plugin(self) -> None:
        host = Host(self.kubelet.root)
        settings = Settings(version="v1", plugins=[PluginSettings(plugin="tests.scenario.plugin:Folder", config={"folder": "/stage"})])
        self.daemon = Daemon(make_plan(settings, host), Paths.below(self.kubelet.root), host)
        self.daemon.start()

    def kill_plugin(self) -> None:
        assert self.daemon is not None
        self.daemon.stop()
        self.daemon = None

    def restart_kubelet(self) -> None:
        # A pod whose init container held a device is only taken up again if the plugin has listed by then (kubernetes/kubernetes#138446). The real
        # kubelet takes pods up some 100 ms after its socket is there, and we list within 20.
        self.kubelet.restart(readmit=False)
        self.kubelet.wait_for(RESOURCE, healthy=3)
        self.kubelet.readmit()

    def wait_healthy(self, count: int) -> None:
        self.kubelet.wait_for(RESOURCE, healthy=count)

    def create(self, ask: Ask) -> str:
        init = (Container("first", {ask.resource: ask.init}),) if ask.init else ()
        pod = self.pods[ask.name] = Pod(ask.name, (Container("main", {ask.resource: ask.count}),), init, static=True)
        admission = self.kubelet.admit(pod)
        if not admission:
            return f"Failed: {admission.reason}: {admission.message}"
        if ask.init:
            self.kubelet.start_container(pod, "first")
        config = self.kubelet.start_container(pod)
        self.given[ask.name] = frozenset(os.path.basename(device.host_path) for device in config.devices)
        return "Running"

    def delete(self, name: str) -> None:
        self.kubelet.delete_pod(self.pods.pop(name))

    def held(self, name: str) -> frozenset[str]:
        return frozenset(self.kubelet.held(self.pods[name], resource=RESOURCE))

    def wait_held(self, name: str, devices: frozenset[str]) -> None:
        self.kubelet.wait_until(lambda: self.held(name) == devices, f"{name} holding {set(devices)}")

    def files(self, name: str) -> frozenset[str]:
        return self.given[name]

    def wait_health(self, name: str, health: Mapping[str, str]) -> None:
        pod = self.pods[name]
        self.kubelet.wait_until(lambda: self.kubelet.pod_status(pod)["main"].get(RESOURCE) == health, f"{name} with {dict(health)}")


@pytest.mark.parametrize("semantics", ["v136", "post136"])
def test_the_story_on_the_fake_kubelet(semantics: str, short_root: str) -> None:
    with Kubelet(short_root, semantics=semantics) as kubelet:  # type: ignore[arg-type]
        stage = FakeStage(kubelet)
        try:
            assert Story(stage).play() == EXPECTED
        finally:
            if stage.daemon is not None:
                stage.daemon.stop()
