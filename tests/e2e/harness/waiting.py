"""Waiting for a condition: the only way these tests synchronise."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

INTERVAL_SECONDS = 0.05
TAIL_LINES = 40


class WaitError(AssertionError):
    """A condition did not come true in time. The text says which, what was seen last, and how the logs end."""


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a text file, or a remark that it cannot be read."""
    try:
        with path.open("rb") as file:
            # A kubelet's log grows to many megabytes; its lines stay well below 400 bytes on average.
            file.seek(max(0, path.stat().st_size - lines * 400))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({path}: {error.strerror})"


def wait_for(
    predicate: Callable[[], T | None], timeout: float, what: str, logs: tuple[Path, ...] = (), seen: Callable[[], object] | None = None
) -> T:
    """Calls predicate until it returns something true, and returns that.

    predicate: called every 50 ms, at least once after the deadline; OSError out of it counts as "not yet".
    timeout: seconds.
    what: completes the sentence "waited 5 s for ...".
    logs: files whose ends explain a failure.
    seen: called upon failure, to say what the state is instead.
    Raises WaitError.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        trouble: object = None
        try:
            value = predicate()
            if value:
                return value
        except OSError as error:
            trouble = error
        if late:
            break
        time.sleep(INTERVAL_SECONDS)
    parts = [f"waited {timeout:g} s for {what}"]
    if trouble is not None:
        parts.append(f"last error: {trouble}")
    if seen is not None:
        parts.append(f"instead: {seen()}")
    parts += [f"--- end of {path}:\n{tail(path)}" for path in logs]
    raise WaitError("\n".join(parts))
