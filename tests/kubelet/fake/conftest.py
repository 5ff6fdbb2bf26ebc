# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from deviceplugin.testing import Kubelet


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kubelet_with(short_root: str) -> Iterator[Callable[..., Kubelet]]:
    """Makes started kubelets with settings of the test's own, one at a time below one root."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Kubelet:
            return stack.enter_context(Kubelet(short_root, **settings))

        yield make
