# SPDX-License-Identifier: Apache-2.0
"""Brings cards online before a container starts: waits for them, boots them, or resets and boots them, as configured.

A reset takes up to 45 s and a boot longer, and one call has less. So a call that runs out of time says so, the kubelet tries again, and the next call
goes on where this one was: what was begun is remembered until the card is online.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from msgspec import Struct

from deviceplugin import Host
from deviceplugin.plugins.mic import cards
from deviceplugin.plugins.mic.state import Driver, Phase, State

Goal = Literal["none", "online", "boot", "reset"]

_LOOK = 0.25
"""Seconds between two looks at a card where nothing wakes us."""

_UNDERWAY = (errno.EALREADY, errno.EBUSY)  # MPSS 4, cosm_set_command: another command, or the same
_UNWRITABLE = (errno.EROFS, errno.EACCES)


class NotReady(Exception):
    """A card is not online. The text says which, what it does, and what to do; a later call may succeed."""


class Target(Struct, frozen=True):
    """A card to bring online, by its device id and by where the driver has it now."""

    id: str
    name: str
    driver: Driver


class _Course(Struct):
    """How far a card has come. ``clean``: it was reset since a container last had it."""

    since: float
    clean: bool = False


def wait_for_change(host: Host, paths: Sequence[str], seconds: float) -> None:
    """Waits until the driver says that one of these attributes of sysfs has changed, or the time is up.

    It says so with sysfs_notify, which ends a poll() for POLLPRI; an ordinary file never has that, and is waited for in vain.
    """
    poller, opened = select.poll(), list[int]()
    try:
        for path in paths:
            with contextlib.suppress(OSError):  # it is looked at again anyway
                fd = os.open(host.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                opened.append(fd)
                os.read(fd, 64)  # a poll counts from the last read
                poller.register(fd, select.POLLPRI | select.POLLERR)
        poller.poll(seconds * 1000)
    finally:
        for fd in opened:
            os.close(fd)


class Booter:
    """Brings cards online. Any thread may call; one card is driven by one at a time.

    ``limit`` is the seconds that one call takes at most, ``patience`` those that a card may take over several calls before it counts as stuck.
    """

    def __init__(
        self,
        host: Host,
        goal: Goal,
        boot_command: Callable[[Target], str],
        *,
        limit: float,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[Host, Sequence[str], float], None] = wait_for_change,
    ) -> None:
        self._host = host
        self._goal = goal
        self._boot_command = boot_command
        self._limit = limit
        self._patience = patience
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._courses: dict[str, _Course] = {}
        self._driven: dict[str, threading.Lock] = {}

    def bring_online(self, targets: Sequence[Target]) -> None:
        """Returns once all of them are online as the goal wants. Raises NotReady."""
        if self._goal == "none":
            return
        deadline = self._clock() + self._limit
        with contextlib.ExitStack() as held:
            for target in sorted(targets, key=lambda one: one.id):  # in one order: two callers never wait for each other
                held.enter_context(self._driving(target, deadline))
            left = list(targets)
            while left := [target for target in left if not self._step(target)]:
                remaining = deadline - self._clock()
                if remaining <= 0:
                    raise NotReady(self._late(left))
                self._wait(self._host, [f"{cards.CLASS}/{target.name}/state" for target in left], min(_LOOK, remaining))

    def underway(self, card: str) -> bool:
        """Whether a card is on a way that began here and has not taken too long: what it goes through then is no fault.

        Where cards are only waited for, none does: whoever resets one that a container had, its state is what anybody would be told.
        """
        if self._goal == "online":
            return False
        with self._lock:
            course = self._courses.get(card)
            return course is not None and self._clock() - course.since < self._patience

    def _step(self, target: Target) -> bool:
        """Looks at the card and tells it what to do next. Whether it is there."""
        course, state = self._course(target), cards.state(self._host, target.name, target.driver)
        if state.unreadable or state.phase is Phase.STRANGE:
            raise NotReady(f"{target.name} ({target.id}): its state cannot be told: {state.unreadable or state.word!r}")
        if state.phase is Phase.MOVING:
            return False
        if self._goal == "reset" and not course.clean and state.phase is not Phase.READY:
            course.clean = self._tell(target, "reset", state)
            return False
        if state.phase is Phase.ONLINE:
            with self._lock:
                self._courses.pop(target.id, None)
            return True
        if state.phase is Phase.READY and self._goal != "online":
            course.clean = True  # what is ready was reset, and nothing ran on it since
            self._tell(target, self._boot_command(target), state)
            return False
        with self._lock:  # the next call begins anew
            self._courses.pop(target.id, None)
        raise NotReady(f"{target.name} ({target.id}) is not online: {_words(state)}; {_advice(self._goal, state)}")

    def _tell(self, target: Target, command: str, state: State) -> bool:
        """Writes a command to the driver. Whether it took it: otherwise the card does something else meanwhile, and is to be looked at again."""
        path = f"{cards.CLASS}/{target.name}/state"
        try:
            _write(self._host.path(path), command)
        except OSError as error:
            # Somebody else, such as mpssd, may have been faster: then the card has left the state that the command was for.
            if error.errno in _UNDERWAY or cards.state(self._host, target.name, target.driver).word != state.word:
                return False
            reason = error.strerror or str(error)
            advice = "this process must be privileged, and /sys writable" if error.errno in _UNWRITABLE else "see the kernel's log"
            text = f"{target.name} ({target.id}) is {_words(state)}, and {command!r} cannot be written to {path}: {reason}; {advice}"
            raise NotReady(text) from error
        return True

    def _course(self, target: Target) -> _Course:
        now = self._clock()
        with self._lock:
            course = self._courses.get(target.id)
            if course is None or now - course.since >= self._patience:
                course = self._courses[target.id] = _Course(now)
            return course

    @contextlib.contextmanager
    def _driving(self, target: Target, deadline: float) -> Iterator[None]:
        with self._lock:
            lock = self._driven.setdefault(target.id, threading.Lock())
        if not lock.acquire(timeout=max(0.0, deadline - self._clock())):
            raise NotReady(f"{target.name} ({target.id}) is still being brought online by an earlier call; the kubelet tries again")
        try:
            yield
        finally:
            lock.release()

    def _late(self, left: Sequence[Target]) -> str:
        each = ", ".join(f"{one.name} ({one.id}) is {_words(cards.state(self._host, one.name, one.driver))}" for one in left)
        return f"{each}, and not online after {self._limit:g} s; the kubelet tries again, and this goes on where it is"


def _write(path: str, command: str) -> None:
    # As the shell's > does it; an attribute of sysfs has nothing to truncate.
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        os.write(fd, f"{command}\n".encode())
    finally:
        os.close(fd)


def _words(state: State) -> str:
    if state.unreadable:
        return f"in a state that cannot be read: {state.unreadable}"
    return f"{state.word!r} ({state.message})" if state.message else f"{state.word!r}"


def _advice(goal: Goal, state: State) -> str:
    if state.phase is Phase.READY:
        return "boot it (micctrl -b), or have it booted here with prepare: boot"
    if goal == "reset":
        return "its reset or boot has failed, and is tried again"
    return "reset it (micctrl -r), or have it reset here with prepare: reset"
