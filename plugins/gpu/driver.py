# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's driver left on the machine: libraries, programs, sockets, device files and the numbers of MIG capabilities."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from typing import Final

from msgspec import Struct

from deviceplugin import Host

CONTROL_NODES: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
IMEX_CHANNELS: Final = "/dev/nvidia-caps-imex-channels"
MIG_MINORS: Final = "/proc/driver/nvidia-caps/mig-minors"
EXTRA_NODES: Final = {  # by the name of the feature
    "gds": ("/dev/nvidia-fs*",),
    "mofed": ("/dev/infiniband/uverbs*", "/dev/infiniband/rdma_cm"),
    "gdrcopy": ("/dev/gdrdrv",),
}
EXTRA_MOUNTS: Final = {"gds": ("/run/udev", "/etc/cufile.json")}

_LIBRARY_DIRECTORIES = (
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib",
    "/lib64",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib64/nvidia",
    "/usr/lib/nvidia",
    "/usr/local/nvidia/lib64",
    "/home/kubernetes/bin/nvidia/lib64",
)
_LIBRARIES = re.compile(r"lib(cuda|cudadebugger|nvcuvid|nvoptix|nvidia-[a-z0-9-]+|(EGL|GLX|GLESv1_CM|GLESv2|vdpau)_nvidia)\.so\.(?P<version>[0-9.]+)")
_NVVM = re.compile(r"libnvidia-nvvm[0-9]*\.so\.[0-9.]+")  # has a version of its own
_LINK = re.compile(r"lib[A-Za-z0-9_-]+\.so(\.[0-9]+)?")
_PROGRAM_DIRECTORIES = ("/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/nvidia/bin", "/home/kubernetes/bin/nvidia/bin")
_PROGRAMS = (
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
)
_SOCKETS = ("/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket")
_FIRMWARE = "/lib/firmware/nvidia"
_HOOK_PROGRAMS = (
    "/usr/bin/nvidia-cdi-hook",
    "/usr/bin/nvidia-ctk",
    "/usr/local/nvidia/toolkit/nvidia-cdi-hook",
    "/usr/local/nvidia/toolkit/nvidia-ctk",
)


class Link(Struct, frozen=True):
    """A name beside a library under which programs open it: ``libcuda.so.1`` for ``libcuda.so.550.90.07``."""

    path: str
    target: str


class Files(Struct, frozen=True):
    """What containers need of the driver, by paths below the driver root; the links are paths beside the libraries that they lead to."""

    libraries: tuple[str, ...]
    links: tuple[Link, ...]
    others: tuple[str, ...]

    @property
    def directories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(os.path.dirname(library) for library in self.libraries))


class Tree:
    """A directory of the host, by the host's name for it and by this process's. Paths given to it, and answered, start at its top."""

    def __init__(self, root: str, seen: str) -> None:
        self.root = "" if root == "/" else root.rstrip("/")
        self._seen = "" if seen == "/" else seen.rstrip("/")

    def on_host(self, path: str) -> str:
        return self.root + path

    def here(self, path: str) -> str:
        return self._seen + path

    def has(self, path: str) -> bool:
        return os.path.exists(self.here(path))

    def names(self, directory: str) -> list[str]:
        """What is in a directory, in order; nothing where there is none."""
        try:
            return sorted(os.listdir(self.here(directory)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """The paths that are there, for patterns with wildcards in their last part."""
        found = []
        for pattern in patterns:
            directory, name = os.path.split(pattern)
            found += [f"{directory}/{entry}" for entry in self.names(directory) if fnmatch(entry, name)]
        return found


def driver_tree(host: Host, driver_root: str, container_driver_root: str) -> Tree:
    """Where the driver's files are: where this container mounts the driver root, or else below the host's root."""
    mounted = container_driver_root and os.path.isdir(container_driver_root)
    return Tree(driver_root, container_driver_root if mounted else host.path(driver_root))


def find_files(tree: Tree, version: str) -> Files:
    """The driver's files of this version. Raises FileNotFoundError where its CUDA library is not to be found, and with it nothing would run."""
    libraries: list[str] = []
    links: list[Link] = []
    seen: set[str] = set()
    for directory in _LIBRARY_DIRECTORIES:
        for place in (directory, f"{directory}/vdpau"):
            real = os.path.realpath(tree.here(place))
            if real in seen:  # /lib is /usr/lib on most machines: the first name is as good as the second, and both would be too much
                continue
            seen.add(real)
            here = _libraries(tree, place, version)
            libraries += here
            links += _links(tree, place, here)
    if not any(os.path.basename(library) == f"libcuda.so.{version}" for library in libraries):
        raise FileNotFoundError(f"no libcuda.so.{version} in the library directories below {tree.root or '/'} of the host")
    others = [path for name in _PROGRAMS if (path := _program(tree, name))]
    others += [path for path in _SOCKETS if tree.has(path)]
    others += tree.matching([f"{_FIRMWARE}/{version}/gsp*.bin"])
    return Files(tuple(libraries), tuple(links), tuple(others))


def _libraries(tree: Tree, directory: str, version: str) -> list[str]:
    found = []
    for name in tree.names(directory):
        match = _LIBRARIES.fullmatch(name)
        if (match and match["version"] == version) or (_NVVM.fullmatch(name) and not os.path.islink(tree.here(f"{directory}/{name}"))):
            found.append(f"{directory}/{name}")
    return found


def _links(tree: Tree, directory: str, libraries: list[str]) -> Iterator[Link]:
    targets = {os.path.basename(library) for library in libraries}
    for name in tree.names(directory) if targets else []:
        path = tree.here(f"{directory}/{name}")
        if _LINK.fullmatch(name) and os.path.islink(path) and (target := os.path.basename(os.path.realpath(path))) in targets:
            yield Link(f"{directory}/{name}", f"{directory}/{target}")


def _program(tree: Tree, name: str) -> str:
    return next((path for directory in _PROGRAM_DIRECTORIES if tree.has(path := f"{directory}/{name}")), "")


def find_hook(host: Host, configured: str) -> str:
    """The toolkit's program for hooks, by the host's path; empty where there is none. One that is configured is not looked for."""
    return configured or next((path for path in _HOOK_PROGRAMS if os.path.exists(host.path(path))), "")


def mig_minors(host: Host) -> dict[str, int]:
    """The minor numbers of MIG capabilities, by name: ``gpu0/gi1/access``, ``gpu0/gi1/ci0/access``. Empty where the driver has none.

    The file lists all instances there could be, so it changes with the driver, not with the partitions.
    """
    try:
        with open(host.path(MIG_MINORS), encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdecimal()}
