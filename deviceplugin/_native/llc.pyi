# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable, Sequence
from typing import final

WAYS: int
DOMAINS: int

def longest_run(mask: int) -> int: ...
def place(pool: int, live: Iterable[int], fixed: Iterable[bool], want: int, ideal: int, move: bool, sparse: bool) -> tuple[int, list[int]] | None: ...

@final
class Slots:
    def __init__(self, caches: Iterable[Sequence[str]]) -> None: ...
    def choose(self, available: list[str], required: list[str], size: int, room: list[int]) -> list[str] | None: ...
