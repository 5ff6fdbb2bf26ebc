# SPDX-License-Identifier: Apache-2.0
"""What the drivers say of a card's state, and what follows from it.

Three drivers speak of it in three ways: that of MPSS 3 (mpss-modules/host/linsysfs.c: ``micstates``, with spaces and without a newline), that of the
kernel from 3.13 to 5.9 (drivers/misc/mic/cosm/cosm_sysfs.c, and before 4.4 drivers/misc/mic/host/mic_sysfs.c), and that of MPSS 4
(mpss-modules/mic/cosm/cosm_main.c: ``cosm_states``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from deviceplugin import Health


class Driver(enum.Enum):
    """Which driver a card has."""

    MPSS3 = "mpss3"
    KERNEL = "kernel"
    MPSS4 = "mpss4"


class Phase(enum.Enum):
    """Where a card is on its way, as far as it matters here."""

    ONLINE = "online"
    """Its operating system runs."""
    READY = "ready"
    """It was reset and runs nothing; it can be booted."""
    MOVING = "moving"
    """Something is going on; another state follows by itself."""
    STOPPED = "stopped"
    """It runs nothing that can be used, and only a reset leads on."""
    FAILED = "failed"
    """As stopped, and not because somebody wanted it."""
    STRANGE = "strange"
    """The word is not one of its driver's."""


_MPSS3 = {
    "ready": Phase.READY,
    "booting": Phase.MOVING,
    "no response": Phase.FAILED,
    "boot failed": Phase.FAILED,
    "online": Phase.ONLINE,
    "shutdown": Phase.MOVING,
    "lost": Phase.FAILED,
    "resetting": Phase.MOVING,
    "reset failed": Phase.FAILED,
    "invalid": Phase.FAILED,
}
_KERNEL = {
    "ready": Phase.READY,
    "booting": Phase.MOVING,
    "online": Phase.ONLINE,
    "shutting_down": Phase.MOVING,
    "resetting": Phase.MOVING,
    "reset_failed": Phase.FAILED,
    # 3.13 to 4.3
    "offline": Phase.READY,
    "suspending": Phase.MOVING,
    "suspended": Phase.STOPPED,
}
_MPSS4 = {
    "ready": Phase.READY,
    "online": Phase.ONLINE,
    "online_firmware": Phase.STOPPED,
    "shutdown": Phase.STOPPED,
    "error": Phase.FAILED,
    "unknown": Phase.MOVING,  # from the driver's start to its first reset, which it makes at once
    "resetting": Phase.MOVING,
    "shutting_down": Phase.MOVING,
    "booting": Phase.MOVING,
    "booting_firmware": Phase.MOVING,
}
WORDS: Mapping[Driver, Mapping[str, Phase]] = MappingProxyType({Driver.MPSS3: _MPSS3, Driver.KERNEL: _KERNEL, Driver.MPSS4: _MPSS4})

# "sleeping" is a card that saves power: a connection wakes it (micscif_api.c, scif_connect).
_SCIF_WELL = ("", "online", "sleeping")
_SHUTDOWN_WELL = ("", "nop")


class State(Struct, frozen=True):
    """The state of a card: the driver's word, and what is known of its way there. Empty where the driver has no such attribute.

    ``unreadable`` says why there is no word, where the attribute is there and cannot be read.
    """

    word: str = ""
    phase: Phase = Phase.STRANGE
    message: str = ""
    shutdown: str = ""
    scif: str = ""
    unreadable: str = ""


def parse(driver: Driver, word: str) -> Phase:
    """What a word means. Newlines and spaces at the ends do not matter, those within do."""
    return WORDS[driver].get(word.strip(), Phase.STRANGE)


class Finding(Struct, frozen=True):
    """What is reported of a card, and why."""

    health: Health
    cause: str = ""


WELL = Finding(Health.HEALTHY)


def judge(state: State, *, boots: bool) -> Finding:
    """Whether a container could use the card now. ``boots``: one that is ready is booted before a container starts, and may go through a reset."""
    if state.unreadable:
        return Finding(Health.UNKNOWN, f"state: {state.unreadable}")
    if state.phase is Phase.STRANGE:
        return Finding(Health.UNKNOWN, f"state: {_short(state.word)!r} is no word of its driver's")
    if boots and state.phase is Phase.READY:
        return WELL
    if state.phase is not Phase.ONLINE:
        return Finding(Health.UNHEALTHY, ": ".join(filter(None, ("state", state.word, _short(state.message)))))
    if state.shutdown not in _SHUTDOWN_WELL:
        return Finding(Health.UNHEALTHY, f"shutdown: {_short(state.shutdown)}")
    if state.scif not in _SCIF_WELL:
        return Finding(Health.UNHEALTHY, f"scif: {_short(state.scif)}")
    return WELL


def _short(text: str) -> str:
    """A strange text as it may stand in a log line and in a pod's status."""
    return "".join(character if character.isprintable() else "?" for character in text[:48])
