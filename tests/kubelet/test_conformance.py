# SPDX-License-Identifier: Apache-2.0
"""The rules that every plugin must keep, held against our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from deviceplugin import Device, Host, Plugin
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.testing import Kubelet, PluginConformance
from tests.kubelet.serving import RESOURCE, Rack, Running, put_files, running, serving


@contextmanager
def served(kubelet: Kubelet, settings: Settings, classes: dict[str, type[Plugin]] | None = None) -> Iterator[Daemon]:
    plan = make_plan(settings, Host(kubelet.root), classes)
    daemon = Daemon(plan, Paths.below(kubelet.root), Host(kubelet.root))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


class Fuse(Plugin):
    """As long as the readme's."""

    resource = "example.com/fuse"

    def discover(self) -> Iterator[Device]:
        yield Device("fuse", nodes=["/dev/fuse"])


class TestSmallestPlugin(PluginConformance):
    resource = Fuse.resource

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        return served(kubelet, Settings(version="v1", plugins=[PluginSettings(plugin="fuse")], listen=""), {"fuse": Fuse})


class TestGeneric(PluginConformance):
    resource = "example.com/serial"

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        directory = os.path.join(kubelet.root, "dev")
        os.makedirs(directory, exist_ok=True)
        for n in range(4):
            with open(os.path.join(directory, f"ttyS{n}"), "w", encoding="ascii"):
                continue
        devices = [{"name": "serial", "groups": [{"paths": [{"path": "/dev/ttyS*", "type": "Mount"}]}]}]
        config = {"domain": "example.com", "devices": devices}
        return served(kubelet, Settings(version="v1", plugins=[PluginSettings(plugin="generic", config=config)], listen=""))


class TestPluginWithEveryHook(PluginConformance):
    resource = RESOURCE

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        rack = Rack(
            *(Device(f"n{node}d{n}", numa_nodes=[node], nodes=[f"/dev/{node}/{n}"]) for node in range(2) for n in range(3)),
            prefer=lambda _self, available, required, size: [*required, *(d for d in available if d not in required)][:size],
            prepare=lambda _self, _devices: None,
        )
        return serving(kubelet, rack)


class TestProcess(PluginConformance):
    resource = RESOURCE

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        put_files(kubelet, "a", "b")
        return self._running(kubelet)

    @contextmanager
    def _running(self, kubelet: Kubelet) -> Iterator[Running]:
        with running(kubelet) as self.process:
            yield self.process
            assert self.process.end() == 0, self.process.log()

    def pid(self) -> int:
        return self.process.pid
