# SPDX-License-Identifier: Apache-2.0
"""Whether a port may be given to a container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from types import MappingProxyType

from msgspec import Struct, field

from deviceplugin import Health, Recovery, Rule
from deviceplugin.plugins.fpga.hardware import Card, Port

RECOVERY: Mapping[str, Rule] = MappingProxyType({"aer": Rule(Recovery.QUIET, seconds=600)})
"""An AER counter tells of one moment: the card must then be quiet for a while. Everything else lasts as long as it is seen."""

Verdict = tuple[Health, str]
WELL: Verdict = (Health.HEALTHY, "")


def causes(ports: tuple[Port, ...], fresh: Mapping[str, int], *, failed_here: bool) -> Iterator[str]:
    """What is wrong with a device, the worst first. ``fresh`` is what :class:`Errors` found new; ``failed_here`` says that the card's FPGA manager is
    in an error state since the plugin could not program some port, which is a matter of that port alone.
    """
    card = ports[0].card
    yield from card.faults
    for port in ports:
        yield from port.faults
    if "error" in card.state and not failed_here:
        yield f"manager: the card's FPGA manager says {card.state!r}"
    for port in ports:
        if bits := fresh.get(f"{port.id}/errors"):
            yield f"errors: the port has new errors, {bits:#x}"
    if bits := fresh.get(f"{card.id}/fme_errors"):
        yield f"fme-errors: the management engine has new errors, {bits:#x}"
    if count := fresh.get(f"{card.id}/aer_fatal"):
        yield f"aer: {count} fatal PCI Express errors"


def judge(ports: tuple[Port, ...], fresh: Mapping[str, int], busy_for: float, busy_timeout: float, *, failed_here: bool) -> Verdict:
    """The verdict on a device that nobody programs just now."""
    for cause in causes(ports, fresh, failed_here=failed_here):
        return Health.UNHEALTHY, cause
    if unread := [*ports[0].card.unread, *(text for port in ports for text in port.unread)]:
        return Health.UNKNOWN, f"unread: {unread[0]}"
    if busy_for > busy_timeout:
        return Health.UNKNOWN, f"busy: in reset for {busy_for:.0f} s"
    return WELL


class Errors(Struct):
    """Which errors are new. ``baselines`` is what was there before, and is kept up to date: bits that were cleared leave it, counters may go back.

    A register's new bits are told at each look until somebody clears them. What a counter grew by is told in one look, and is known in the next.
    """

    baselines: MutableMapping[str, int]
    told: dict[str, int] = field(default_factory=dict)

    def look(self, ports: tuple[Port, ...]) -> dict[str, int]:
        """What is new since the baseline, by ``<card or port>/<name>``."""
        self.baselines.update(self.told)
        self.told = {}
        fresh: dict[str, int] = {}
        cards: dict[str, Card] = {port.card.id: port.card for port in ports}
        registers = {f"{port.id}/{name}": value for port in ports for name, value in port.registers.items()}
        registers |= {f"{card.id}/{name}": value for card in cards.values() for name, value in card.registers.items()}
        counters = {f"{card.id}/{name}": value for card in cards.values() for name, value in card.counters.items()}
        for key, value in registers.items():
            known = self.baselines.setdefault(key, value) & value
            self.baselines[key] = known
            if value & ~known:
                fresh[key] = value & ~known
        for key, value in counters.items():
            known = self.baselines.setdefault(key, value)
            if value > known:
                fresh[key] = value - known
                self.told[key] = value
            elif value < known:
                self.baselines[key] = value
        return fresh
