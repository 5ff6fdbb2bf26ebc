# SPDX-License-Identifier: Apache-2.0
"""The machine under test, and the GPU plugin at work on it beside a fake kubelet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deviceplugin import Host
from deviceplugin._native.nvml import SONAME, Nvml, State
from deviceplugin.cdi import DYNAMIC, STATIC
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.testing import Kubelet

RESOURCE = "nvidia.com/gpu"

SOON = 3.0
"""Seconds within which the kubelet has the list, once the plugin has looked."""


@dataclass(frozen=True, slots=True)
class View(Host):
    """The machine, but for the directories of CDI specs, which are in ``scratch``: a run changes nothing that is used by others."""

    scratch: str = ""

    def path(self, path: str) -> str:
        ours = any(path == folder or path.startswith(f"{folder}/") for folder in (DYNAMIC, STATIC))
        return self.scratch + path if ours else Host.path(self, path)


class NoDriver(Exception):
    """There is nothing to test with. The text says why."""


@dataclass(frozen=True, slots=True)
class Machine:
    """``library`` is NVML's path, and ``given`` whether that was asked for; ``root`` is where the host's files are."""

    library: str
    given: bool
    root: str

    @classmethod
    def find(cls, library: str = "", root: str = "/") -> Machine:
        """Raises NoDriver."""
        with Nvml(library or None, root) as nvml:
            if nvml.state is not State.READY:
                raise NoDriver(f"{nvml.state.value}: {nvml.reason}")
            if not nvml.snapshot(topology=False).gpus:
                raise NoDriver(f"{nvml.path} works and lists no GPU")
            return cls(_mapped(nvml.path), bool(library), os.path.abspath(root))

    def host(self, scratch: str) -> View:
        return View(self.root, "", scratch)

    @contextmanager
    def serving(self, kubelet: Kubelet, **injection: Any) -> Iterator[View]:
        """The plugin in a daemon of this process, below the kubelet's root, which serves once it has looked."""
        host = self.host(kubelet.root)
        config = {"library": self.library if self.given else "", "injection": injection}
        settings = Settings(version="v1", plugins=[PluginSettings(plugin="gpu", config=config)], listen="")
        daemon = Daemon(make_plan(settings, host), Paths.below(kubelet.root), host)
        daemon.start()
        try:
            daemon.wait_first_scan(20.0)
            yield host
        finally:
            daemon.stop()


def _mapped(path: str) -> str:
    """The file behind a library that the dynamic linker found by its name."""
    if os.path.isabs(path):
        return path
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        files = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}
    return next(file for file in sorted(files) if os.path.basename(file).startswith(SONAME.partition(".so")[0]))
