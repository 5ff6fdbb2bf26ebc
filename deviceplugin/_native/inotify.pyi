# SPDX-License-Identifier: Apache-2.0
import os
from types import TracebackType
from typing import Self, final

ATTRIB: int
MODIFY: int
CLOSE_WRITE: int
MOVED_FROM: int
MOVED_TO: int
CREATE: int
DELETE: int
DELETE_SELF: int
MOVE_SELF: int
UNMOUNT: int
Q_OVERFLOW: int
IGNORED: int
ONLYDIR: int

def parse(data: bytes) -> list[tuple[int, int, int, str]]: ...

@final
class Inotify:
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    @property
    def closed(self) -> bool: ...
    def add(self, path: str | bytes | os.PathLike[str], mask: int) -> int: ...
    def remove(self, wd: int) -> None: ...
    def read(self, timeout: float | None = None, also: int = -1) -> list[tuple[int, int, int, str]] | None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...
