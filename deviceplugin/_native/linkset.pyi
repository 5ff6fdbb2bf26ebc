# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable
from typing import final

GPUS: int
SCORE: int
STEPS: int

@final
class Links:
    def __init__(self, scores: Iterable[Iterable[int]], nodes: Iterable[int]) -> None: ...
    def choose(self, available: int, required: int, size: int) -> tuple[int, int]: ...
