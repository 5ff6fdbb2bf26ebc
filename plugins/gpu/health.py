# SPDX-License-Identifier: Apache-2.0
"""How each GPU is: from what NVML says of it, what it told through events, and whether anybody listens to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from msgspec import Struct, field

from deviceplugin import Health, Recovery, Rule
from deviceplugin._native import nvml
from deviceplugin._native.nvml import Event, Gpu
from deviceplugin.plugins.gpu import xid
from deviceplugin.plugins.gpu.config import Faults, rule_of
from deviceplugin.plugins.gpu.session import Watched

log = logging.getLogger(__name__)

_CANNOT = (nvml.NOT_SUPPORTED, nvml.FUNCTION_NOT_FOUND)
_RESET_REQUIRED = 16
_HOLD = (Recovery.QUIET, Recovery.RESET, Recovery.NEVER)

# What a GPU that is well always answers. Of the rest, each has its machines where it fails for ever and harms nobody.
_ESSENTIAL = ("HandleByIndex", "GetUUID", "GetName", "GetPciInfo", "GetMinorNumber", "GetMigMode", "MigDevice")


class Verdict(Struct, frozen=True):
    """What the plugin reports of a GPU, and so of everything on it."""

    health: Health
    cause: str = ""
    incarnation: str = ""


class _Memory(Struct):
    """What is kept of a GPU between two looks."""

    told: set[str] = field(default_factory=set)
    """Faults that were told once and not yet reported in a look that counted."""
    shown: set[str] = field(default_factory=set)
    """Those of them that this look reports."""
    unwatched_since: float | None = None
    ecc: tuple[bool, int, int] | None = None
    pending: frozenset[str] = frozenset()
    reset: bool = False
    """A reset was seen, and no fault since."""


class Judge:
    """Judges GPUs by UUID, look after look. For one thread.

    A reset is believed when the driver was loaded anew, the PCI device was added anew, a pending repair was made, or error counters that only grow
    have gone back. That a GPU answers again proves nothing.
    """

    def __init__(self, faults: Faults, monitor_timeout: float) -> None:
        self._faults = faults
        self._timeout = monitor_timeout
        self._memory: dict[str, _Memory] = {}
        self._began: float | None = None
        self.xids: Mapping[tuple[str, int], int] = MappingProxyType({})
        """How often each XID was told since this began, by UUID and code. Replaced as a whole, so any thread may read it."""

    def hear(self, events: Iterable[Event]) -> None:
        """Takes events. One that NVML ties to no GPU could be any's: it is said, and what NVML says of each is looked at anyway."""
        for event in events:
            if event.type != nvml.XID:
                continue  # what the others tell is read at each look, and cannot be missed there
            words = f"XID {event.data} ({xid.meaning(event.data)})"
            if not event.uuid:
                log.error("NVML tells of %s without saying of which GPU", words)
                continue
            key = event.uuid, event.data
            self.xids = MappingProxyType({**self.xids, key: self.xids.get(key, 0) + 1})
            cause = f"xid:{event.data}"
            action = self._faults.action(cause)
            level = logging.INFO if action == "ignore" else logging.WARNING
            where = "" if event.gpu_instance is None else f", GPU instance {event.gpu_instance}"
            log.log(level, "%s%s: %s: %s", event.uuid, where, words, _consequence(action))
            if action != "ignore":
                self._of(event.uuid).told.add(cause)

    def judge(self, gpu: Gpu, base: str, watched: Watched | None, now: float) -> Verdict:
        """``base`` is what changes when the GPU or its driver is put in anew; empty when not known. ``now`` is on the monotonic clock."""
        memory = self._of(gpu.uuid)
        self._began = now if self._began is None else self._began
        self._look_back(gpu, memory)
        causes = {*memory.told, *(cause for cause in _levels(gpu) if self._faults.action(cause) != "ignore")}
        memory.shown = set(memory.told)
        if causes:
            memory.reset = False
            return Verdict(Health.UNHEALTHY, max(sorted(causes), key=self._gravity), base)
        # Faults are always told with the plain base: so after a restart of the daemon, when this is forgotten, nothing looks like a reset.
        incarnation = f"{base}+" if base and memory.reset else base
        unknown = _silence(gpu) or self._unwatched(gpu, memory, watched, now)
        return Verdict(Health.UNKNOWN if unknown else Health.HEALTHY, unknown, incarnation)

    def reported(self) -> None:
        """The last verdicts have reached the framework, which remembers from now on."""
        for memory in self._memory.values():
            memory.told -= memory.shown

    def forget(self, present: Iterable[str]) -> None:
        """Drops what is kept of GPUs that are gone, except what was not reported yet."""
        kept = set(present)
        self._memory = {uuid: memory for uuid, memory in self._memory.items() if uuid in kept or memory.told}

    def _of(self, uuid: str) -> _Memory:
        return self._memory.setdefault(uuid, _Memory())

    def _gravity(self, cause: str) -> tuple[int, float]:
        action = self._faults.action(cause)
        rule = Rule() if action == "ignore" else rule_of(action)
        return _HOLD.index(rule.recovery), rule.seconds

    def _look_back(self, gpu: Gpu, memory: _Memory) -> None:
        """Compares with the last look: what has grown is a fault, what has gone back is a reset."""
        pending = frozenset(_pending(gpu))
        answered = gpu.remapped_rows is not None or gpu.retired_pages_pending is not None
        reset = answered and bool(memory.pending - pending)
        if answered:
            memory.pending = pending
        if gpu.ecc is not None and gpu.ecc.uncorrected_volatile is not None:
            counts = (gpu.ecc.enabled, gpu.ecc.uncorrected_volatile, gpu.ecc.corrected_volatile or 0)
            if memory.ecc is not None:
                enabled, uncorrected, corrected = memory.ecc
                reset = reset or counts[0] != enabled or counts[1] < uncorrected or counts[2] < corrected
                cause = "ecc" if gpu.remapped_rows is None else "ecc:contained"
                if counts[0] == enabled and counts[1] > uncorrected and self._faults.action(cause) != "ignore":
                    log.warning("%s: %d uncorrected ECC errors more: %s", gpu.uuid, counts[1] - uncorrected, _consequence(self._faults.action(cause)))
                    memory.told.add(cause)
            memory.ecc = counts
        if reset:
            log.info("%s was reset", gpu.uuid)
            memory.reset = True

    def _unwatched(self, gpu: Gpu, memory: _Memory, watched: Watched | None, now: float) -> str:
        """Why the GPU has gone unwatched for too long, empty if it has not. An old GPU has no events, and nothing is missed."""
        if not (gpu.event_types or 0) & nvml.XID:
            return ""
        assert self._began is not None
        if watched is None:
            since: float | None = self._began
        elif now - watched.at > self._timeout:
            since = watched.at
        elif watched.knows(gpu.index):
            since = None
        else:
            since = now if memory.unwatched_since is None else memory.unwatched_since
        memory.unwatched_since = since
        return "monitor" if since is not None and now - since > self._timeout else ""


def _levels(gpu: Gpu) -> Iterator[str]:
    if gpu.lost:
        yield "lost"
    if any(failure.code == _RESET_REQUIRED for failure in gpu.failures):
        yield "reset-required"
    if gpu.remapped_rows is not None and gpu.remapped_rows.failure:
        yield "remap-failure"
    yield from _pending(gpu)


def _pending(gpu: Gpu) -> Iterator[str]:
    if gpu.remapped_rows is not None and gpu.remapped_rows.pending:
        yield "remap-pending"
    if gpu.retired_pages_pending:
        yield "retired-pending"


def _silence(gpu: Gpu) -> str:
    """Which essential question the GPU did not answer, empty if it answered all."""
    for failure in gpu.failures:
        if failure.code not in _CANNOT and any(part in failure.function for part in _ESSENTIAL):
            return f"silent:{failure.function}"
    return ""


def _consequence(action: float | str) -> str:
    if isinstance(action, str):
        return {"ignore": "ignored", "reset": "unhealthy until a reset", "never": "unhealthy for good"}[action]
    return f"unhealthy until {action:g} s have passed without"
