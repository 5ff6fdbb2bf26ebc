# SPDX-License-Identifier: Apache-2.0
"""A ConfigMap as the kubelet mounts it."""

from __future__ import annotations

import itertools
import os
import shutil

_DATA = "..data"


class ConfigMap:
    """A directory that is written as the kubelet does it: see AtomicWriter.Write in pkg/volume/util/atomic_writer.go, by the numbers of its steps."""

    def __init__(self, directory: str, **files: str | bytes) -> None:
        self.directory = directory
        self._versions = itertools.count(1)
        os.makedirs(directory)
        self.write(**files)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def write(self, **files: str | bytes) -> None:
        """Another version of the whole. A file called ``config.yaml`` is the argument ``config``."""
        payload = {f"{name}.yaml": text.encode() if isinstance(text, str) else text for name, text in files.items()}
        data = self.path(_DATA)
        old = os.readlink(data) if os.path.islink(data) else ""  # (2)
        gone = set(os.listdir(os.path.join(self.directory, old))) - set(payload) if old else set()  # (3)
        version = f"..2026_11_21_12_00_00.{next(self._versions):09}"
        os.mkdir(self.path(version))  # (5)
        for name, content in payload.items():  # (6)
            with open(os.path.join(self.directory, version, name), "wb") as file:
                file.write(content)
        os.chmod(self.path(version), 0o755)  # (7)
        os.symlink(version, self.path("..data_tmp"))  # (8)
        os.rename(self.path("..data_tmp"), data)  # (9)
        for name in payload:  # (10)
            if not os.path.islink(self.path(name)):
                os.symlink(os.path.join(_DATA, name), self.path(name))
        for name in gone:  # (11)
            os.unlink(self.path(name))
        if old:  # (12)
            shutil.rmtree(self.path(old))
