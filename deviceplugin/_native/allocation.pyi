# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable
from typing import final

ANY: int
SPREAD: int
PACK: int

@final
class Slots:
    def __init__(self, ids: Iterable[str], units: Iterable[int], nodes: Iterable[int], unplaced: int) -> None: ...
    def choose(self, policy: int, available: Iterable[str], required: Iterable[str], size: int) -> list[str]: ...
