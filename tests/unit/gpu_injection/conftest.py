# SPDX-License-Identifier: Apache-2.0
"""A machine made of plain files, with simulated GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deviceplugin import Host
from deviceplugin._native.nvml import Nvml, Snapshot, State
from deviceplugin.plugins.gpu.injection import InjectionOptions, Injector
from deviceplugin.testing.nvml import Scenario, write_host

CONTROL = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"]
LIBRARIES = "/usr/lib/x86_64-linux-gnu"


class Machine:
    """A root directory that stands for the host."""

    def __init__(self, root: Path, libraries: Path) -> None:
        self.root = root
        self.host = Host(root=str(root))
        self._libraries = libraries
        self._count = 0

    def put(self, *paths: str, text: str = "") -> None:
        for path in paths:
            target = self.path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def look(self, scenario: Scenario, dev_root: str = "") -> Snapshot:
        """What NVML says of the scenario; the kernel's files are put there too."""
        write_host(scenario, self.root)
        self._count += 1
        with Nvml(scenario.install(self._libraries / str(self._count))) as nvml:
            assert nvml.open() is State.READY, nvml.reason
            snapshot = nvml.snapshot()
        self.put(*(dev_root + path for path in CONTROL), *(f"{dev_root}/dev/nvidia{gpu.minor}" for gpu in snapshot.gpus))
        return snapshot

    def install_driver(self, version: str, root: str = "") -> None:
        names = ["libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler", "libnvcuvid", "libGLX_nvidia"]
        self.put(*(f"{root}{LIBRARIES}/{name}.so.{version}" for name in names))
        self.put(f"{root}{LIBRARIES}/libcuda.so.1.2.3", f"{root}{LIBRARIES}/libnvidia-ml.so.1.0.0", f"{root}{LIBRARIES}/libc.so.6")
        self.put(f"{root}{LIBRARIES}/libnvidia-nvvm.so.4.0.0", f"{root}{LIBRARIES}/vdpau/libvdpau_nvidia.so.{version}")
        self.put(f"{root}/usr/bin/nvidia-smi", f"{root}/lib/firmware/nvidia/{version}/gsp_tu10x.bin", f"{root}/run/nvidia-persistenced/socket")
        for link, target in (
            ("libcuda.so.1", f"libcuda.so.{version}"),
            ("libcuda.so", "libcuda.so.1"),
            ("libnvidia-ml.so.1", f"libnvidia-ml.so.{version}"),
        ):
            path = self.path(f"{root}{LIBRARIES}/{link}")
            path.unlink(missing_ok=True)
            path.symlink_to(target)

    def injector(self, **options: Any) -> Injector:
        # No test may depend on what this machine has in /driver-root.
        return Injector(msgspec.convert({"containerDriverRoot": "", **options}, InjectionOptions), self.host)

    def spec(self, name: str) -> Any:
        return json.loads(self.path(f"/var/run/cdi/k8s.device-plugin.nvidia.com-{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "host", tmp_path / "libraries")
