# SPDX-License-Identifier: Apache-2.0
"""The plugin's use of NVML: opened when the driver is there, opened anew when the driver or the set of GPUs has changed, and its events."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator

from msgspec import Struct

from deviceplugin import Host, sysfs
from deviceplugin._native import nvml
from deviceplugin._native.nvml import Event, EventSet, Nvml, NvmlError, Snapshot, State
from deviceplugin.events import Events
from deviceplugin.plugins.gpu.probe import Probe

log = logging.getLogger(__name__)

TYPES = nvml.XID | nvml.DOUBLE_BIT_ECC | nvml.MIG_CONFIG_CHANGE | nvml.GPU_UNAVAILABLE | nvml.RECOVERY_ACTION
"""Single-bit errors are corrected, and would be told one by one."""

HEARTBEAT = 5.0
"""Seconds after which the thread that waits for events says that it still does."""

_PROC_GPUS = "/proc/driver/nvidia/gpus"
_MODULE = "/sys/module/nvidia"
_PATHS = ("/dev/nvidiactl", "/dev/nvidia-caps", "/proc/driver/nvidia")
_LEAVE = 0.8
_RENEWAL = 30.0
_LAST_BACKOFF = 60.0


class Watched(Struct, frozen=True):
    """Which GPUs' events are listened to, by NVML's numbers: those that can tell none are in ``mute``. ``at`` is when that was last so."""

    at: float
    gpus: frozenset[int] = frozenset()
    mute: frozenset[int] = frozenset()

    def knows(self, gpu: int) -> bool:
        return gpu in self.gpus or gpu in self.mute


class Session:
    """Two threads use one: :meth:`look` and :meth:`heard` are for the one that discovers, :meth:`watch` for the one that watches."""

    def __init__(
        self, host: Host, library: str = "", root: str = "/", clock: Callable[[], float] = time.monotonic, probe: Probe | None = None
    ) -> None:
        self.host = host
        self.library = library
        self.root = root
        self.clock = clock
        self.probe = probe or Probe()
        self.reason = "NVML was not opened yet"
        self.state = State.CLOSED
        self._nvml: Nvml | None = None
        self._addresses: tuple[str, ...] = ()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._set: EventSet | None = None
        self._watched: Watched | None = None
        self._free = threading.Event()
        self._free.set()
        self._something = threading.Event()
        self._files = False
        self._again = False
        self._renewed = self.clock()
        self._stopped = False
        self._complaint = ""

    def look(self, topology: bool = True) -> Snapshot | None:
        """What NVML says now, or None where it cannot be asked; then ``state`` and ``reason`` say why. Raises NvmlError."""
        try:
            addresses = tuple(sysfs.entries(self.host, _PROC_GPUS))
        except sysfs.SysfsError as error:
            self._complain(str(error))
            addresses = self._addresses
        if self._nvml is not None and addresses != self._addresses:
            self._drop()  # NVML lists the GPUs that there were when it was initialised
        self._addresses = addresses
        if not self._open():
            return None
        assert self._nvml is not None
        try:
            return self._nvml.snapshot(topology=topology)
        except NvmlError as error:
            log.warning("NVML failed: %s; opening it anew", error)
        self._drop()  # an unloaded driver leaves its library without use, also when it is loaded again
        return self._nvml.snapshot(topology=topology) if self._open() and self._nvml is not None else None

    def glance(self) -> Snapshot | None:
        """What NVML says now, links included, for figures; None while it is not open or fails. From any thread: it changes nothing here."""
        current = self._nvml
        if current is None or current.state is not State.READY:
            return None
        try:
            return current.snapshot()
        except (NvmlError, ValueError):  # ValueError: it was closed a moment ago. The next look says what is wrong
            return None

    def heard(self) -> tuple[list[Event], Watched | None]:
        """The events since the last call, in order, and what is listened to, None if nothing ever was."""
        events = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                return events, self._watched

    def watch(self) -> Iterator[object]:
        """Yields when to look again. Blocks in between."""
        files = self._watch_files()
        backoff = 1.0
        try:
            while not self._stopped:
                current = self._nvml
                if current is None or current.state is not State.READY:
                    self._something.wait()
                elif (events := self._register(current)) is None:
                    self._something.wait(backoff)
                    backoff = min(backoff * 2, _LAST_BACKOFF)
                else:
                    backoff = 1.0
                    yield from self._listen(current, events)
                self._something.clear()
                if self._files:
                    self._files = False
                    yield "files"
        finally:
            if files is not None:
                files.close()

    def renew(self) -> None:
        """Some GPU that could be listened to is not: listens to all of them anew, unless that was tried a short while ago."""
        if self.clock() - self._renewed >= _RENEWAL:
            self._renewed = self.clock()
            self._again = True
            self._nudge()

    def stop(self) -> None:
        """Ends :meth:`watch` and closes NVML."""
        self._stopped = True
        self._wake()
        self._drop()

    def loaded(self) -> str:
        """What changes each time that the driver is loaded, empty if that cannot be told."""
        try:
            # A sysfs directory gets a new inode number each time it is made (kernfs_new_node), and lives as long as the module.
            return str(os.stat(self.host.path(_MODULE)).st_ino)
        except OSError:
            return ""

    def _open(self) -> bool:
        if self._nvml is not None and self._nvml.state is State.READY:
            return True
        candidates = nvml.candidates(self.library or None, self.root)
        fault = self.probe.fault(candidates, self.loaded())
        if fault:
            self.state, self.reason = State.BAD_LIBRARY, fault
            return False
        if self._nvml is None:
            self._nvml = Nvml(self.library or None, self.root)
        self.state, self.reason = self._nvml.open(), self._nvml.reason
        if self.state is State.READY:
            log.info("NVML is ready: %s", self._nvml.path)
            self._wake()
        return self.state is State.READY

    def _drop(self) -> None:
        """Closes NVML for good. It is initialised until the last that uses it lets go, so the watching thread is made to first."""
        old, self._nvml = self._nvml, None
        if old is None:
            return
        old.close()
        self._wake()
        if not self._free.wait(_LEAVE):
            log.warning("the thread that waits for NVML's events does not return; a new NVML is opened beside the old one")

    def _wake(self) -> None:
        self._something.set()
        events = self._set
        if events is not None and (self._stopped or self._nvml is None):
            events.close()

    def _nudge(self) -> None:
        """Makes the watching thread look at what was asked of it."""
        events = self._set
        self._something.set()
        if events is not None:
            with contextlib.suppress(ValueError):  # it was closed a moment ago
                events.wake()

    def _register(self, current: Nvml) -> EventSet | None:
        self._free.clear()
        try:
            events = current.events(TYPES)
            types, failures = events.registered, events.failures
        except (NvmlError, ValueError) as error:  # ValueError: it was closed a moment ago
            self._free.set()
            self._complain(f"NVML's events cannot be had: {error}")
            return None
        refused = {gpu: code for gpu, code in failures.items() if code != nvml.NOT_SUPPORTED}
        mute = {gpu for gpu, of in types.items() if not of & nvml.XID and gpu not in refused}
        self._complain("; ".join(f"NVML's events of GPU {gpu} cannot be had: {nvml.describe(code)}" for gpu, code in sorted(refused.items())))
        self._again = False
        self._set = events
        self._watched = Watched(self.clock(), frozenset(types) - mute - frozenset(refused), frozenset(mute))
        return events

    def _listen(self, current: Nvml, events: EventSet) -> Iterator[object]:
        watched = self._watched
        assert watched is not None
        try:
            yield "registered"  # what happened before was not told
            while not self._stopped and not self._again and self._nvml is current:
                event = events.wait(HEARTBEAT)
                if events.closed:
                    return
                if event is not None and event.type == nvml.LOST and event.gpu is not None:
                    watched = Watched(watched.at, watched.gpus - {event.gpu}, watched.mute)
                self._watched = Watched(self.clock(), watched.gpus, watched.mute)
                if event is not None:
                    self._events.put(event)
                    yield event
                if self._files:
                    self._files = False
                    yield "files"
        except NvmlError as error:
            self._complain(f"NVML's events have ended: {error}")
            yield error
        finally:
            self._set = None
            events.close()
            self._free.set()

    def _complain(self, text: str) -> None:
        """Once per reason, not once per try."""
        if text and text != self._complaint:
            log.warning("%s", text)
        self._complaint = text

    def _watch_files(self) -> Events | None:
        try:
            files = Events(self.host, paths=_PATHS, subsystems=("pci", "module"))
        except OSError as error:
            log.warning("changes of the driver's files cannot be watched (%s); they are seen at the next look", error.strerror)
            return None
        threading.Thread(target=self._relay, args=(files,), name="gpu-files", daemon=True).start()
        return files

    def _relay(self, files: Events) -> None:
        for _ in files:
            self._files = True
            self._nudge()
