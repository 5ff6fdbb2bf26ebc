# SPDX-License-Identifier: Apache-2.0
"""What can be made to go wrong on the kubelet's side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deviceplugin.testing.rpc import Caller


class Faults:
    """Knobs, all off at first. They outlive kubelet restarts; the ``with`` ones end with their block, or when the kubelet stops.

    What else can go wrong is done by the kubelet itself: ``kill``, ``restart(same_inode=True)``, ``wipe_dir``, ``replace_dir``, ``deaf`` and
    ``drop_connections``. ``deviceplugin.testing.plugin_calls`` has calls that are too large, and calls at once.
    """

    def __init__(self) -> None:
        self.dial_delay = 0.0
        """Seconds before the kubelet dials a registering plugin back."""
        self.reject_after_allocate = ""
        """A later admission check's message: the pod is rejected after its devices were allocated (reason ``OutOfcpu``)."""
        self._refusals: list[str] = []
        self._reader = _gate()
        self._stream_end = _gate()

    def refuse(self, times: int = 1, text: str = "refused by a test") -> None:
        """The next ``times`` registrations fail with ``text``, before anything is looked at."""
        self._refusals.extend([text] * times)

    @contextmanager
    def slow_reader(self) -> Iterator[None]:
        """The kubelet reads one more list and no further: then flow control stops the plugin."""
        with _closed(self._reader):
            yield

    @contextmanager
    def unnoticed_stream_ends(self) -> Iterator[None]:
        """The kubelet does not notice that streams end, so that a new registration is handled before the old stream's end."""
        with _closed(self._stream_end):
            yield

    def refuse_register(self) -> None:
        if self._refusals:
            raise RuntimeError(self._refusals.pop(0))

    def delay_dial(self, caller: Caller) -> None:
        if self.dial_delay:
            caller.cancelled.wait(caller.remaining(self.dial_delay))

    @property
    def reads_slowly(self) -> bool:
        return not self._reader.is_set()

    def pause_reader(self) -> None:
        self._reader.wait()

    def hold_stream_end(self) -> None:
        self._stream_end.wait()

    def release(self) -> None:
        """Lets everything go that waits: the kubelet is stopping."""
        self._reader.set()
        self._stream_end.set()


def _gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


@contextmanager
def _closed(gate: threading.Event) -> Iterator[None]:
    gate.clear()
    try:
        yield
    finally:
        gate.set()
