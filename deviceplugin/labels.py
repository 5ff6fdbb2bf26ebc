# SPDX-License-Identifier: Apache-2.0
"""Labels of the node, told to Node Feature Discovery through a feature file: for schedulers, which see labels and no attributes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from deviceplugin import files
from deviceplugin.model import Host

DIRECTORY: Final = "/etc/kubernetes/node-feature-discovery/features.d"
"""Where Node Feature Discovery reads feature files. It must be mounted to be written to."""

_LONGEST = 63


def label_value(text: str) -> str:
    """What Kubernetes takes as a label's value: white space becomes ``-``, other characters go, and at most 63 remain."""
    words = re.sub(r"[^A-Za-z0-9_. \t-]", "", text).split()
    return "-".join(words)[:_LONGEST].strip("-_.")


class LabelFile:
    """One feature file. Node Feature Discovery does not read files whose names start with a dot, so it never sees half of one."""

    def __init__(self, host: Host, path: str) -> None:
        self._path = host.path(path)

    def write(self, values: Mapping[str, str]) -> bool:
        """Puts the labels into the file, whole or not at all; False if it holds them already. Raises OSError."""
        text = "".join(f"{key}={values[key]}\n" for key in sorted(values))
        return files.replace(self._path, text.encode())

    def remove(self) -> bool:
        """Takes the labels off the node; False if there were none. Raises OSError."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True

    def leftovers(self, remove: bool) -> Iterator[str]:
        """For :meth:`deviceplugin.Plugin.uninstall`: a line for the file if it is there, removed if so wished. Raises OSError."""
        if self.remove() if remove else os.path.exists(self._path):
            yield f"label file {self._path}"
