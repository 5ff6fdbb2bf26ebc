# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.mic.rig import Rig

Make = Callable[..., Rig]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A plugin on a machine: make("mpss3", prepare="boot"), or make(fixture="kernel")."""
    made: list[Rig] = []

    def run(*flavour: Any, **options: Any) -> Rig:
        made.append(Rig(tmp_path / str(len(made)), *flavour, **options))
        return made[-1]

    return run
