# SPDX-License-Identifier: Apache-2.0
"""A port that is to be offered as something else goes there only when nobody holds it as what it was.

The kubelet counts each resource by itself: a port that were listed in two, or in another one while a pod still holds it, would be given twice. So a
device stays where it is, unhealthy, until it is known that no container holds it; only then is it listed anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from deviceplugin.plugins.fpga.hardware import Port
from deviceplugin.plugins.fpga.memory import Place
from deviceplugin.plugins.fpga.naming import Offer


class Plan(Struct, frozen=True):
    """What to list. ``leaving`` are devices where they were, ``waiting`` offers that are not listed yet, and which device each waits for."""

    listed: tuple[Offer, ...]
    leaving: tuple[Offer, ...]
    waiting: Mapping[str, str]
    places: Mapping[str, Place]


def plan(offers: Sequence[Offer], places: Mapping[str, Place], released: Collection[str]) -> Plan:
    """Where everything is to be listed. ``released`` are devices that nobody holds where they are."""
    wanted = {offer.id: offer for offer in offers}
    leaving = {one: place for one, place in places.items() if one not in released and not _stays(wanted.get(one), place)}
    ports = {port.id: port for offer in offers for port in offer.ports}
    held = {port: device for device, place in leaving.items() for port in place.ports}
    waiting = {offer.id: held[port.id] for offer in offers for port in offer.ports if port.id in held}
    listed = tuple(offer for offer in offers if offer.id not in waiting)
    return Plan(
        listed,
        tuple(_as_it_was(device, place, ports) for device, place in leaving.items() if ports.keys() & set(place.ports)),
        waiting,
        {**leaving, **{offer.id: place_of(offer) for offer in listed}},
    )


def _as_it_was(device: str, place: Place, ports: Mapping[str, Port]) -> Offer:
    """What containers hold that hold a device which is leaving. One that is not a port is a card, which comes with its engine."""
    members = tuple(ports[one] for one in place.ports if one in ports)
    return Offer(device, place.resource, members, management="" if device in place.ports else members[0].card.management)


def place_of(offer: Offer) -> Place:
    """Where an offer is listed."""
    return Place(offer.resource, tuple(port.id for port in offer.ports))


def _stays(offer: Offer | None, place: Place) -> bool:
    return offer is not None and offer.resource == place.resource


class Releases:
    """Finds out which of the devices that are leaving nobody holds: views that are at least ``settle`` seconds apart, and all between them, say so.

    One view would not do: a container that was just being admitted is not in it yet. For one thread at a time.
    """

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._free: dict[str, tuple[float, float]] = {}

    def seen(self, leaving: Iterable[str], held: Collection[str], now: float) -> None:
        """Takes what a fresh view of the kubelet's says of the devices that were listed as leaving when it was asked."""
        self._free = {one: (self._free.get(one, (now, now))[0], now) for one in leaving if one not in held}

    def released(self) -> set[str]:
        """The devices that may go."""
        return {one for one, (first, last) in self._free.items() if last - first >= self._settle}
