# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of the pfs plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.pfs.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Callable[..., Rig]:
    """Makes machines below the test's own directory."""

    def make(*filesystems: Any, **options: Any) -> Rig:
        return Rig(tmp_path / "root", *filesystems, **options)

    return make
