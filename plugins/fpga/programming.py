# SPDX-License-Identifier: Apache-2.0
"""Programs ports, each at most once at a time and one per card, and knows after a crash what it was at.

A marker is on disk from before a card is touched until the port tells the function that it was given: a port with a marker is not to be trusted,
whatever it tells, and is programmed anew. Each job has a thread of its own, since a card may take longer than the kubelet waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct

from deviceplugin import Host, files, sysfs
from deviceplugin.plugins.fpga.bitstream import BitstreamError, Store
from deviceplugin.plugins.fpga.hardware import Driver
from deviceplugin.plugins.fpga.ioctls import Ioctls
from deviceplugin.sysfs import SysfsError

log = logging.getLogger("deviceplugin.plugins.Fpga")

VERIFY = 5.0
"""Seconds that a port may be in reset after it was programmed, before it tells its function."""

_PAUSE = 0.05
_BUSY = os.strerror(errno.EBUSY)


class StillProgramming(Exception):
    """A port is being programmed, and the caller should ask again."""


class ProgrammingFailed(Exception):
    """A port could not be programmed. The text says which, why, and what to do."""


class Order(Struct, frozen=True):
    """A port and the function that it is to have."""

    port_id: str
    card: str
    management: str
    driver: Driver
    number: int
    node: str
    directory: str
    """Of the port in sysfs, where ``afu_id`` is."""
    interface: str
    afu: str
    sha256: str = ""


class Marker(Struct, frozen=True):
    """What a port was being programmed with. ``failed`` says why that ended badly; empty if it did not end."""

    afu: str
    card: str
    failed: str = ""


class _Job(Struct, eq=False):
    order: Order
    redo: bool
    started: float
    done: threading.Event
    error: str = ""


class Programmer:
    """The only one who programs. For any thread; several processes may have one each."""

    def __init__(self, host: Host, store: Store, directory: str, ioctls: Ioctls, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._store = store
        self._directory = directory
        self._ioctls = ioctls
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._tries: dict[str, tuple[int, float]] = {}

    def ensure(self, orders: Sequence[Order], wait: float) -> None:
        """Sees to it that every port has its function, within ``wait`` seconds. Raises StillProgramming, ProgrammingFailed."""
        deadline = self._clock() + wait
        jobs = [(order, job) for order in orders if (job := self._job(order, redo=False)) is not None]
        for _, job in jobs:
            if not job.done.wait(max(0.0, deadline - self._clock())):
                raise StillProgramming(
                    f"{job.order.port_id} is being programmed with {job.order.afu} for {self._clock() - job.started:.0f} s; the container then starts"
                )
        for order, job in jobs:
            if job.order.afu != order.afu:
                raise StillProgramming(f"{order.port_id} was being programmed with {job.order.afu}; {order.afu} comes next")
        if failed := [job.error for _, job in jobs if job.error]:
            raise ProgrammingFailed("; ".join(failed))

    def resume(self, order: Order) -> None:
        """Begins anew what did not end well, unless it was tried too recently. Does not wait."""
        tries, due = self._tries.get(order.port_id, (0, 0.0))
        if self._clock() >= due:
            self._tries[order.port_id] = (tries + 1, self._clock() + min(600.0, 15.0 * 2**tries))
            self._job(order, redo=True)

    def running(self, port_id: str) -> bool:
        """Whether a container's order is being carried out, so that what the port tells means nothing."""
        with self._lock:
            job = self._jobs.get(port_id)
        return job is not None and not job.done.is_set() and not job.redo

    def markers(self) -> Mapping[str, Marker]:
        """The ports that are being programmed, or whose programming did not end well, by id."""
        try:
            names = os.listdir(self._host.path(self._directory))
        except OSError:
            return {}
        found = {}
        for name in names:
            port_id, _, kind = name.rpartition(".")
            if kind == "programming" and not port_id.startswith("."):
                marker = self._marker(port_id)
                if marker is not None:
                    found[port_id] = marker
        return found

    def _job(self, order: Order, *, redo: bool) -> _Job | None:
        """The job that sees to an order, begun if need be; None if the port has its function already."""
        with self._lock:
            job = self._jobs.get(order.port_id)
            if job is not None and not job.done.is_set():
                return job
            if self._settled(order):
                self._jobs.pop(order.port_id, None)
                return None
            job = self._jobs[order.port_id] = _Job(order, redo, self._clock(), threading.Event())
        threading.Thread(target=self._run, args=(job,), name=f"program-{order.port_id}", daemon=True).start()
        return job

    def _settled(self, order: Order) -> bool:
        with contextlib.suppress(SysfsError):  # in reset, for one: then it is not settled
            return self._marker(order.port_id) is None and sysfs.read(self._host, f"{order.directory}/afu_id") == order.afu
        return False

    def _run(self, job: _Job) -> None:
        order = job.order
        try:
            self._program(order)
            self._tries.pop(order.port_id, None)
        except (OSError, BitstreamError, ProgrammingFailed) as error:
            job.error = f"{order.port_id} could not be programmed with {order.afu}: {_words(error)}"
            log.error("%s", job.error)
        except Exception as error:  # a bug of ours must not leave a job that never ends
            log.exception("%s could not be programmed", order.port_id)
            job.error = f"{order.port_id} could not be programmed with {order.afu}: {error!r}"
        finally:
            job.done.set()

    def _program(self, order: Order) -> None:
        # Read before the lock is taken, and once: what was verified is what the card gets, whatever becomes of the file meanwhile.
        bitstream = self._store.load(order.interface, order.afu, order.sha256)
        with self._card(order.card), contextlib.ExitStack() as held:
            if self._settled(order):
                return  # by the one who had the lock before
            try:
                held.enter_context(self._ioctls.exclusive(order.node))
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise ProgrammingFailed(f"{order.node} is in use: something has it open; see `fuser {order.node}`") from error
                raise
            self._mark(order, "")
            began = self._clock()
            log.info("%s: programming %s (%d bytes)", order.port_id, order.afu, len(bitstream.image))
            try:
                self._ioctls.program(order.management, order.driver, order.number, bitstream.image)
                self._verify(order)
            except (OSError, ProgrammingFailed) as error:
                self._mark(order, _words(error))
                raise
            os.unlink(self._host.path(self._path(order.port_id)))
            log.info("%s: programmed with %s in %.1f s", order.port_id, order.afu, self._clock() - began)

    def _verify(self, order: Order) -> None:
        """Reads back what the port has now. While it comes out of reset the driver says EBUSY. Raises ProgrammingFailed."""
        path = f"{order.directory}/afu_id"
        deadline = self._clock() + VERIFY
        while True:
            try:
                found = sysfs.read(self._host, path)
                if found == order.afu:
                    return
                reason = "there is no such file" if found is None else f"it is {found[:40]!r}"
                break
            except SysfsError as error:
                reason = error.reason
                if error.reason != _BUSY or self._clock() >= deadline:
                    break
            time.sleep(_PAUSE)
        raise ProgrammingFailed(f"the driver took the bitstream, but {path} should be {order.afu} then: {reason}")

    def _path(self, port_id: str) -> str:
        return f"{self._directory}/{port_id}.programming"

    def _mark(self, order: Order, failed: str) -> None:
        content = json.dumps({"afu": order.afu, "card": order.card, "failed": failed}).encode()
        files.replace(self._host.path(self._path(order.port_id)), content, 0o600)

    def _marker(self, port_id: str) -> Marker | None:
        try:
            with open(self._host.path(self._path(port_id)), "rb") as file:
                kept = json.loads(file.read(65536))
            return Marker(str(kept["afu"]), str(kept["card"]), str(kept["failed"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            # That there is one is what counts: the port was being programmed.
            return Marker("", "", f"its marker cannot be read: {error}")

    @contextlib.contextmanager
    def _card(self, card: str) -> Iterator[None]:
        """One at a time for each card, in all processes: the engine of a card programs one port at a time."""
        directory = self._host.path(self._directory)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        fd = os.open(f"{directory}/{card.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _words(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
