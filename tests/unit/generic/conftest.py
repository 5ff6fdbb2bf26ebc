# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.sysfs.tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A machine without devices."""
    return Tree(tmp_path)
