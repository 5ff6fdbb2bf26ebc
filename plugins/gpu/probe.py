# SPDX-License-Identifier: Apache-2.0
"""Tries NVIDIA's library in a process of its own, since a library that crashes takes its process with it, and all plugins share ours."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

TIMEOUT = 15.0
"""Seconds that the initialisation may take. A driver that has to wake eight GPUs needs a few."""

RETRY = 60.0
"""Seconds until a library that crashed is tried again: its driver may have been mended meanwhile."""

# Loads the first library that can be loaded, as the binding does, initialises it, and says nothing: whether it survives is the answer.
_PROGRAM = """
import ctypes, sys
for path in sys.argv[1:]:
    try:
        library = ctypes.CDLL(path)
    except OSError:
        continue
    init = getattr(library, "nvmlInit_v2", None)
    if init is not None and init() == 0:
        library.nvmlShutdown()
    break
"""


class Probe:
    """Remembers what became of which library. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, timeout: float = TIMEOUT) -> None:
        self._clock = clock
        self._timeout = timeout
        self._key: object = None
        self._verdict = ""
        self._at = 0.0

    def fault(self, candidates: Sequence[str], driver: object) -> str:
        """Why these libraries must not be loaded, empty if they may. Costs a process once for each library file and ``driver`` (any value)."""
        key = (tuple((path, _identity(path)) for path in candidates), driver)
        known = key == self._key and (not self._verdict or self._clock() - self._at < RETRY)
        if not known:
            self._key, self._verdict, self._at = key, self._run(candidates) if candidates else "", self._clock()
        return self._verdict

    def _run(self, candidates: Sequence[str]) -> str:
        if not sys.executable:
            log.warning("there is no Python interpreter to try %s with; it is loaded untried", candidates[0])
            return ""
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *candidates],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            log.warning("no process could be started to try %s with (%s); it is loaded untried", candidates[0], error.strerror)
            return ""
        try:
            status = child.wait(self._timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            try:
                child.wait(1.0)
            except subprocess.TimeoutExpired:  # it hangs in the driver, where no signal reaches it
                log.warning("process %d, which tried %s, hangs in the driver", child.pid, candidates[0])
            return f"{candidates[0]} did not initialise within {self._timeout:g} s; it is not loaded"
        if status < 0:
            return f"{candidates[0]} crashes when it initialises ({signal.Signals(-status).name}); it is not loaded"
        return ""


def _identity(path: str) -> tuple[int, ...]:
    """What changes when a file is replaced; for a bare name, the linker's cache stands in."""
    try:
        state = os.stat(path if "/" in path else "/etc/ld.so.cache")
    except OSError:
        return ()
    return state.st_dev, state.st_ino, state.st_size, state.st_ctime_ns
