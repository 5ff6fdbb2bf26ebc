# SPDX-License-Identifier: Apache-2.0
"""What a machine is to the demonstration: simulated hardware, and the story that shows it best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from deviceplugin.testing import SimulatedHost

if TYPE_CHECKING:
    from deviceplugin.demo.stage import Stage

Step = tuple[str, Callable[["Stage"], None]]
"""A title, and what happens. It raises StepFailed, or what the kubelet raises, if it does not."""


class Machine(Protocol):
    """One kind of hardware to play with."""

    resource: str
    noun: str
    count: int
    steps: Sequence[Step]

    def build(self, host: SimulatedHost) -> str:
        """Puts ``count`` devices into the machine. Answers with the daemon's configuration file."""

    def show(self, stage: Stage) -> None:
        """Says what is there."""
