# SPDX-License-Identifier: Apache-2.0
"""The cluster and the image that the tests of this folder share."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.cluster.image import Image

BUILD = Path(__file__).resolve().parents[3] / "tools" / "image" / "build.py"


def build(archive: Path, *options: str) -> Image:
    """Builds the image as a user does, but on a Debian made here."""
    argv = [sys.executable, str(BUILD), "--bootstrap", "--tag", "deviceplugin.test/deviceplugin:built", *options, str(archive)]
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"tools/image/build.py ended with status {done.returncode}: {done.stderr[-6000:]}", pytrace=False)
    print(f"image built in {time.monotonic() - began:.1f} s")
    return Image(archive)


@pytest.fixture(scope="session")
def image(e2e_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Our image. e2e_bin: what builds it is installed."""
    assert e2e_bin.is_dir()
    return build(tmp_path_factory.mktemp("image") / "deviceplugin.tar")


@pytest.fixture(scope="session")
def rebuilt_image(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The same, compiled and put together once more."""
    assert image.archive.exists()
    return build(tmp_path_factory.mktemp("again") / "deviceplugin.tar", "--again")


@pytest.fixture(scope="session")
def cluster(e2e_bin: Path) -> Iterator[Cluster]:
    """Two nodes that are ready. Each test takes away what it brings."""
    began = time.monotonic()
    cluster = Cluster(e2e_bin)
    cluster.start()
    print(f"two nodes ready after {time.monotonic() - began:.1f} s")
    yield cluster
    cluster.stop()
