# SPDX-License-Identifier: Apache-2.0
"""The native modules: native/*.pyx, built as deviceplugin._native.*, and the NVML simulator. Everything else is in pyproject.toml.

DEVICEPLUGIN_WERROR=1 makes warnings errors, as CI does; DEVICEPLUGIN_SANITIZE=1 builds with AddressSanitizer and UBSan.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

flags = ["-O2", "-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
link: list[str] = []
if os.environ.get("DEVICEPLUGIN_WERROR") == "1":
    flags.append("-Werror")
if os.environ.get("DEVICEPLUGIN_SANITIZE") == "1":
    flags += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    link += ["-fsanitize=address,undefined"]

# native/<name>.pyx may be helped by C files named native/src/<name>*.c.
extensions = [
    Extension(
        f"deviceplugin._native.{pyx.stem}",
        [str(pyx), *sorted(str(c) for c in Path("native/src").glob(f"{pyx.stem}*.c"))],
        include_dirs=["native/include"],
        extra_compile_args=flags,
        extra_link_args=link,
    )
    for pyx in sorted(Path("native").glob("*.pyx"))
]


class BuildExt(build_ext):
    """Builds the simulator too: a plain shared library, which distutils has no word for."""

    def run(self) -> None:
        super().run()
        base = Path() if self.inplace or self.editable_mode else Path(self.build_lib)
        build = runpy.run_path("native/nvml_sim/build.py")["build"]
        build(base / "deviceplugin/testing/libnvidia_ml_sim", [f for f in flags if f == "-Werror" or f.startswith(("-fsanitize", "-fno-"))])


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        include_path=["native"],
        compiler_directives={"language_level": 3, "binding": True, "embedsignature": True},
        nthreads=0,
    ),
)
