# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process, below a temporary root with a short name."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dp", dir="/tmp"))
    (path / "var/lib/kubelet/device-plugins").mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a run changes for its whole process."""
    top, environ = logging.getLogger(), dict(os.environ)
    handlers, level, umask, hook = list(top.handlers), top.level, os.umask(0o022), threading.excepthook
    yield
    os.umask(umask)
    threading.excepthook = hook
    top.handlers[:] = handlers
    top.setLevel(level)
    os.environ.clear()
    os.environ.update(environ)
