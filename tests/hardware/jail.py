# SPDX-License-Identifier: Apache-2.0
"""A root directory that holds what a CDI spec names, the C library, /proc and /sys, and a tiny CUDA program that runs in it.

Run as a program, this is the inside.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deviceplugin import Host

REFUSED = 75
"""Exit status where the kernel lets us make no mount namespace."""

_CLONE_NEWNS = 0x00020000
_NODEV, _BIND, _REC, _PRIVATE = 0x4, 0x1000, 0x4000, 0x40000

# What NVIDIA's libraries link with: all of it is the C library's.
_C_LIBRARY = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux*.so.*", "libgcc_s.so.1")


def contents(host: Host, *edits: Mapping[str, Any]) -> dict[str, str]:
    """Files by their path inside: where this process finds what the edits name. Links that a hook would make are files here."""
    found: dict[str, str] = {}
    for one in edits:
        for node in one.get("deviceNodes", ()):
            found[node["path"]] = host.path(node.get("hostPath", node["path"]))
        for mount in one.get("mounts", ()):
            found[mount["containerPath"]] = host.path(mount["hostPath"])
        for link in (arg for hook in one.get("hooks", ()) for arg in hook["args"] if "::" in arg):
            target, _, path = link.partition("::")
            found[path] = found[os.path.normpath(os.path.join(os.path.dirname(path), target))]
    return found


def run(files: Mapping[str, str], scratch: Path) -> subprocess.CompletedProcess[str]:
    """Starts CUDA with these files. The library path stands for the cache that a runtime's hook would refresh."""
    root = scratch / "root"
    root.mkdir()
    folders = dict.fromkeys(os.path.dirname(path) for path in files if ".so" in os.path.basename(path))
    environ = {**os.environ, "LD_LIBRARY_PATH": ":".join([*folders, *dict.fromkeys(map(os.path.dirname, _c_library()))])}
    command = [sys.executable, os.path.abspath(__file__), str(root), json.dumps(dict(files))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)


def _c_library() -> list[str]:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        libc = next(line.split()[-1] for line in maps if "/libc.so" in line or "/libc-" in line)
    return [path for pattern in _C_LIBRARY for path in glob.glob(os.path.join(os.path.dirname(libc), pattern))]


def _enter(root: str, files: Mapping[str, str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    def mount(source: str, target: str, kind: str = "", flags: int = 0) -> None:
        check(libc.mount(os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), None), f"mount {target}")

    try:
        check(libc.unshare(_CLONE_NEWNS), "unshare")
        mount("none", "/", flags=_REC | _PRIVATE)
        # No device file that is made inside works, as in a container: libcuda makes those that it misses itself, where it may.
        mount("tmpfs", root, "tmpfs", _NODEV)
    except PermissionError as error:
        print(error, file=sys.stderr)
        raise SystemExit(REFUSED) from error
    everything = {**{path: path for path in _c_library()}, **files, "/proc": "/proc", "/sys": "/sys"}
    for path, source in everything.items():
        target = root + path
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "xb"):
                pass
        mount(os.path.realpath(source), target, flags=_BIND | _REC)
    os.chroot(root)
    os.chdir("/")


def _cuda() -> dict[str, int]:
    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    started = cuda.cuInit(0)
    return {"cuInit": started, "cuDeviceGetCount": cuda.cuDeviceGetCount(ctypes.byref(count)), "devices": count.value}


if __name__ == "__main__":
    _enter(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps(_cuda()))
