# SPDX-License-Identifier: Apache-2.0
"""What is in the image's tar."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Image:
    """A docker-archive of one layer."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        with tarfile.open(archive) as outer:
            (self.manifest,) = json.loads(_read(outer, "manifest.json"))
            self.config: dict[str, Any] = json.loads(_read(outer, self.manifest["Config"]))
            (layer,) = self.manifest["Layers"]
            self._layer = _read(outer, layer)

    def named(self, names: Sequence[str], folder: Path) -> Path:
        """The same image under these names, as a tar in a folder."""
        out = folder / "named.tar"
        with tarfile.open(self.archive) as outer, tarfile.open(out, "w") as tar:
            for member in outer:
                data = json.dumps([{**self.manifest, "RepoTags": list(names)}]).encode() if member.name == "manifest.json" else None
                if data is not None:
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                elif member.isfile() and member.name != "repositories":
                    tar.addfile(member, outer.extractfile(member))
        return out

    def compressed_size(self) -> int:
        """Bytes of the layer as a registry has it, by gzip's default level."""
        return len(zlib.compress(self._layer, 6))

    def members(self) -> dict[str, tarfile.TarInfo]:
        """The files of the image by their paths."""
        with tarfile.open(fileobj=io.BytesIO(self._layer)) as tar:
            return {member.name.removeprefix("./").rstrip("/"): member for member in tar}

    def digests(self) -> dict[str, str]:
        """What each ordinary file of the image holds, by its path."""
        with tarfile.open(fileobj=io.BytesIO(self._layer)) as tar:
            return {member.name: hashlib.sha256(_read(tar, member.name)).hexdigest() for member in tar if member.isfile()}

    def read(self, path: str) -> str:
        """A text file of the image. Raises KeyError."""
        with tarfile.open(fileobj=io.BytesIO(self._layer)) as tar:
            return _read(tar, path).decode()


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()
