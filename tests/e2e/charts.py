# SPDX-License-Identifier: Apache-2.0
"""The chart, rendered by Helm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "deviceplugin"
NAMESPACE = "kube-system"

Object = dict[str, Any]


class ChartError(Exception):
    """Helm refused; the text is what it said."""


class Chart:
    """bin_dir: what tools/e2e/provision.py prints."""

    def __init__(self, bin_dir: Path) -> None:
        self._helm = bin_dir / "helm"

    def run(self, *arguments: str | Path, values: Mapping[str, Any] | None = None) -> str:
        """Runs helm, with values as one more file of them, and returns what it prints. Raises ChartError."""
        # As JSON: Go's YAML and Python's are of different minds about what is a boolean or a number.
        argv = [self._helm, *arguments, "--values", "-"]
        done = subprocess.run(argv, input=json.dumps(values or {}), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ChartError(done.stderr)
        return done.stdout

    def text(self, values: Mapping[str, Any] | None = None, release: str = "deviceplugin", namespace: str = NAMESPACE) -> str:
        """The manifests as they are installed. Raises ChartError."""
        return self.run("template", release, CHART, "--namespace", namespace, values=values)

    def render(self, values: Mapping[str, Any] | None = None, release: str = "deviceplugin", namespace: str = NAMESPACE) -> dict[str, Object]:
        """The objects by their kind, or kind/name where there are several. Raises ChartError."""
        found: dict[str, Object] = {}
        for one in yaml.safe_load_all(self.text(values, release, namespace)):
            if one:
                kind = one["kind"]
                found[kind if kind not in found else f"{kind}/{one['metadata']['name']}"] = one
        return found
