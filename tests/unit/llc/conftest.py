# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.llc import Node


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Node]:
    """Makes nodes: ``node("skylake", mode="reserve")``."""
    made: list[Node] = []

    def make(scenario: str = "skylake", **config: Any) -> Node:
        made.append(Node(str(tmp_path / str(len(made))), scenario, **config))
        return made[-1]

    return make
