# SPDX-License-Identifier: Apache-2.0
"""The cards that a driver serves, as ``/sys/class/mic`` shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from deviceplugin import Host, Skipped, sysfs
from deviceplugin.plugins.mic import pci
from deviceplugin.plugins.mic.state import Driver, State, parse

CLASS = "/sys/class/mic"
_NAME = re.compile(r"mic(\d{1,4})")  # MPSS 3 has "ctrl" and "scif" there as well

# Which attributes only one driver has. Several, so that one that is missing leaves the card what it is.
_SIGNS: Mapping[Driver, Sequence[str]] = {
    Driver.MPSS3: ("scif_status", "mode", "post_code", "crash_count", "serialnumber"),
    Driver.KERNEL: ("shutdown_status", "heartbeat_enable", "bootmode"),
    Driver.MPSS4: ("state_msg", "info/system_uuid", "spad/post_code"),
}

IDENTITY = ("serialnumber", "info/system_uuid", "device/dmi/sys_uuid", "info/system_serial_number", "device/dmi/sys_serial")
"""Where a driver tells who the card is: the first in MPSS 3; MPSS 4 has ``info``, and earlier versions of it ``device/dmi``."""

_READ = (
    *("state", "state_msg", "shutdown_status", "scif_status", "boot_count", "crash_count", "family", "stepping", "sku", "active_cores"),
    *("mode", "post_code", "heartbeat_enable", "bootmode", "spad/post_code", "info/mic_family", "info/processor_stepping", "info/system_sku_number"),
    *IDENTITY,
)
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{3,39}")
_NO_SERIAL = frozenset({"none", "null", "unknown", "default", "empty"})

Reading = str | sysfs.SysfsError | None


class Card(Struct, frozen=True, kw_only=True):
    """One card. ``id`` is empty where the card cannot say who it is, and ``nameless`` then says why. ``address`` is its place on the PCI bus."""

    number: int
    driver: Driver
    address: str
    id: str
    nameless: str
    state: State
    boots: int | None = None
    crashes: int | None = None
    numa: int | None = None
    family: str = ""
    stepping: str = ""
    sku: str = ""
    cores: int | None = None

    @property
    def name(self) -> str:
        """What the driver calls it, ``mic0``: in the order in which it found the cards, this time."""
        return f"mic{self.number}"

    @property
    def directory(self) -> str:
        return f"{CLASS}/{self.name}"


class Identities:
    """Gives each card an id that stays with it, and remembers it for as long as the card is there.

    A serial number cannot be read while a card is in reset (MPSS 3 says EAGAIN, MPSS 4 ``<empty>``). Going by the slot for so long would make it
    another device. ``by_slot``: by the place on the PCI bus always.
    """

    def __init__(self, by_slot: bool = False) -> None:
        self._by_slot = by_slot
        self._known: dict[str, tuple[int, str]] = {}

    def name(self, address: str, readings: Sequence[Reading]) -> tuple[str, str]:
        """The card's id, or why it has none. ``readings`` are those of :data:`IDENTITY`."""
        told = [_serial(one) for one in readings]
        before = self._known.get(address)
        if before is not None and not told[before[0]]:
            return before[1], ""
        if self._by_slot or all(one is None for one in readings):
            return (slot_id(address), "") if address else ("", "it has no place on the PCI bus")
        source = before[0] if before is not None else next((n for n, one in enumerate(told) if one), -1)
        if source < 0:
            said = next(one for one in readings if one is not None)
            reason = said.reason if isinstance(said, sysfs.SysfsError) else f"it is {said[:24]!r}"
            return "", f"its serial number cannot be had now ({reason}); identity: slot goes by its PCI address"
        name = f"mic-{told[source].lower()}"
        if address:
            self._known[address] = (source, name)
        return name, ""

    def forget(self, present: Iterator[str]) -> None:
        """Drops what is known of cards that are gone: another may come into the slot."""
        kept = set(present)
        self._known = {address: known for address, known in self._known.items() if address in kept}


def slot_id(address: str, prefix: str = "mic") -> str:
    """An id made of a PCI address."""
    return f"{prefix}-{re.sub('[:.]', '-', address)}"


def look(host: Host, identities: Identities) -> Iterator[Card | Skipped]:
    """Every card, in the order of their numbers. What one does not say hides neither it nor another. Raises SysfsError where there is no telling."""
    names = [name for name in sysfs.entries(host, CLASS) if _NAME.fullmatch(name)]
    texts = sysfs.read_many(host, [f"{CLASS}/{name}/{file}" for name in names for file in _READ])
    places = sysfs.realpath_many(host, [f"{CLASS}/{name}/device" for name in names])
    found: list[Card] = []
    for n, (name, place) in enumerate(zip(names, places, strict=True)):
        said = dict(zip(_READ, texts[n * len(_READ) : (n + 1) * len(_READ)], strict=True))
        driver = _driver(said)
        if driver is None:
            yield Skipped(name, f"has none of the attributes of a MIC in {CLASS}/{name}: its driver may just be letting go of it")
            continue
        found.append(_card(host, int(name[3:]), driver, "" if isinstance(place, sysfs.SysfsError) else place, said, identities))
    identities.forget(card.address for card in found)
    yield from found


def address(host: Host, number: int) -> str:
    """Where on the PCI bus the card is that has the number now; empty if none has. Raises SysfsError."""
    return pci.address_of(sysfs.realpath(host, f"{CLASS}/mic{number}/device"))


def state(host: Host, card: str, driver: Driver) -> State:
    """The state of one card now, by its name."""
    names = ("state", "state_msg", "shutdown_status", "scif_status")
    return _state(driver, dict(zip(names, sysfs.read_many(host, [f"{CLASS}/{card}/{name}" for name in names]), strict=True)))


def _driver(said: Mapping[str, Reading]) -> Driver | None:
    counts = {driver: sum(said[sign] is not None for sign in signs) for driver, signs in _SIGNS.items()}
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] else None


def _card(host: Host, number: int, driver: Driver, place: str, said: Mapping[str, Reading], identities: Identities) -> Card:
    at = pci.address_of(place)
    name, nameless = identities.name(at, [said[source] for source in IDENTITY])
    return Card(
        number=number,
        driver=driver,
        address=at,
        id=name,
        nameless=nameless,
        state=_state(driver, said),
        boots=_count(said["boot_count"]),
        crashes=_count(said["crash_count"]),
        numa=_numa(host, place),
        family=_text(said["family"]) or _text(said["info/mic_family"]),
        stepping=_text(said["stepping"]) or _text(said["info/processor_stepping"]),
        sku=_text(said["sku"]) or _text(said["info/system_sku_number"]),
        cores=_count(said["active_cores"], 16),  # linsysfs.c, show_sbox_register: hexadecimal without a prefix
    )


def _state(driver: Driver, said: Mapping[str, Reading]) -> State:
    word = said["state"]
    if not isinstance(word, str):
        return State(unreadable="there is none" if word is None else word.reason)
    word = word.strip()
    return State(word, parse(driver, word), _text(said["state_msg"]), _said(said["shutdown_status"]), _said(said["scif_status"]))


def _said(reading: Reading) -> str:
    """What an attribute says that decides on health: one that is there and cannot be read does not say that all is well."""
    return f"not to be read: {reading.reason}" if isinstance(reading, sysfs.SysfsError) else (reading or "").strip()


def _text(reading: Reading) -> str:
    """A fact for people; empty where it is not one."""
    text = reading.strip() if isinstance(reading, str) else ""
    return text if len(text) <= 64 and text.isprintable() and text != "<empty>" else ""


def _count(reading: Reading, base: int = 10) -> int | None:
    if not isinstance(reading, str) or not re.fullmatch(r"\s*[0-9A-Fa-f]{1,8}\s*", reading):
        return None
    try:
        return int(reading, base)
    except ValueError:  # a hexadecimal digit where there are to be none
        return None


def _numa(host: Host, place: str) -> int | None:
    try:
        return sysfs.numa_node_of(host, place)
    except sysfs.SysfsError:  # it only makes the kubelet's choice better
        return None


def _serial(reading: Reading) -> str:
    """A serial number or UUID that tells cards apart; empty for anything else, as an unwritten one is."""
    text = reading.strip() if isinstance(reading, str) else ""
    meaningful = _SERIAL.fullmatch(text) and text.lower() not in _NO_SERIAL and not re.fullmatch(r"([0Ff])\1*", re.sub("[._-]", "", text))
    return text if meaningful else ""
