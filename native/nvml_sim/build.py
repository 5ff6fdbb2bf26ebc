# SPDX-License-Identifier: Apache-2.0
"""Builds the NVML simulator: one shared library for today's interface, one that lacks what drivers before 400 lacked."""

from __future__ import annotations

import shlex
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
SONAME = "libnvidia-ml.so.1"
FLAGS = ["-O2", "-g0", "-std=c11", "-D_GNU_SOURCE", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", f"-Wl,-soname,{SONAME}"]


def build(target: Path, flags: Sequence[str] = (), compiler: str = "") -> list[Path]:
    """Compiles the simulator into ``target`` and returns the libraries: ``libnvidia-ml.so.1`` there, and the old one in ``old/`` below.

    ``flags`` are added to the compiler's; ``compiler`` is by default the one that builds Python's extensions. What is newer than its sources stays.
    """
    sources = sorted(HERE.glob("*.c"))
    newest = max(p.stat().st_mtime_ns for p in [*sources, *HERE.glob("*.h"), HERE.parent / "include/nvml_abi.h", Path(__file__)])
    command = shlex.split(compiler or sysconfig.get_config_var("CC") or "cc")
    libraries = []
    for folder, extra in (target, []), (target / "old", ["-DNVML_SIM_OLD"]):
        library = folder / SONAME
        libraries.append(library)
        if library.exists() and library.stat().st_mtime_ns > newest:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(".new")  # a process that has the old file mapped keeps it whole
        inputs = [f"-I{HERE.parent / 'include'}", *map(str, sources)]
        subprocess.run([*command, *FLAGS, *extra, *flags, *inputs, "-o", str(made), "-ldl", "-lpthread"], check=True)
        made.replace(library)
    return libraries


if __name__ == "__main__":
    for path in build(HERE.parent.parent / "deviceplugin/testing/libnvidia_ml_sim"):
        print(path)
