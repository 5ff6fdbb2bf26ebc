# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of the framework against a kubelet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deviceplugin.testing import Kubelet


@pytest.fixture(params=["v136", "post136"])
def either(request: pytest.FixtureRequest, short_root: str) -> Iterator[Kubelet]:
    """A kubelet of either kind: one that knows a plugin by its resource, and one that knows it by its socket too."""
    with Kubelet(short_root, semantics=request.param) as kubelet:
        yield kubelet
