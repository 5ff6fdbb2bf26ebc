# SPDX-License-Identifier: Apache-2.0
"""What a vendor's tests need: a kubelet and a machine to run a plugin against, and the rules that every plugin must keep.

::

    def test_a_pod_gets_a_device(kubelet):  # the fixture comes with the package
        with serving(kubelet):  # however the plugin is started
            kubelet.wait_for("vendor.example/device", healthy=2)
            pod = Pod.requesting("vendor.example/device")
            assert kubelet.admit(pod)
            assert kubelet.start_container(pod).devices

Nothing here needs root, a network or a cluster, and of the framework only the generated protocol buffers: it tests any plugin, in any language.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deviceplugin.testing.admission import Admission, SyncLoopBlocked
    from deviceplugin.testing.conformance import PluginConformance
    from deviceplugin.testing.containers import ContainerConfig, CreateContainerConfigError
    from deviceplugin.testing.events import Event, NotReached
    from deviceplugin.testing.host import SimulatedHost
    from deviceplugin.testing.kubelet import Kubelet
    from deviceplugin.testing.pods import Container, Pod
    from deviceplugin.testing.settings import KubeletPanicked, KubeletStopped
    from deviceplugin.testing.trees import TreeError

__all__ = [
    "Admission",
    "Container",
    "ContainerConfig",
    "CreateContainerConfigError",
    "Event",
    "Kubelet",
    "KubeletPanicked",
    "KubeletStopped",
    "NotReached",
    "PluginConformance",
    "Pod",
    "SimulatedHost",
    "SyncLoopBlocked",
    "TreeError",
]

_MODULES = {
    "Admission": "admission",
    "Container": "pods",
    "ContainerConfig": "containers",
    "CreateContainerConfigError": "containers",
    "Event": "events",
    "Kubelet": "kubelet",
    "KubeletPanicked": "settings",
    "KubeletStopped": "settings",
    "NotReached": "events",
    "PluginConformance": "conformance",
    "Pod": "pods",
    "SimulatedHost": "host",
    "SyncLoopBlocked": "admission",
    "TreeError": "trees",
}


def __getattr__(name: str) -> object:
    # Loaded on first use: pytest imports this package in every run, for the fixture, and gRPC is slow to load.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
