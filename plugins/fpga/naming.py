# SPDX-License-Identifier: Apache-2.0
"""What ports are offered as: the names of Intel's and Xilinx's plugins, so that manifests stay as they are."""

from __future__ import annotations

import base64
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import force_setattr

from deviceplugin import Skipped
from deviceplugin.plugins.fpga.config import FpgaConfig, Function
from deviceplugin.plugins.fpga.hardware import DEAD, UUID, Card, Driver, Port, slug

_AF = re.compile(r"af-[0-9a-f]{3}\.[0-9a-f]{3}\.([-_A-Za-z0-9]{43})")


class Offer(Struct, frozen=True):
    """One device to list: a port, or in mode regiondevel a card with its ports."""

    id: str
    resource: str
    ports: tuple[Port, ...]
    function: Function | None = None
    """What the ports are programmed with before a container starts."""
    management: str = ""
    """The management engine's device file, where the container gets it."""

    @property
    def card(self) -> Card:
        return self.ports[0].card

    @property
    def files(self) -> list[str]:
        """The device files that a container gets."""
        return [*(node for port in self.ports for node in port.nodes), *([self.management] if self.management else [])]

    @property
    def afu(self) -> str:
        """The function that a container is promised, empty if it is promised none."""
        if self.card.driver not in (Driver.DFL, Driver.OPAE):
            return ""
        return self.function.afu_id if self.function is not None else _afu_of(self.resource)


class Ids(Struct, frozen=True):
    """What a port last told: while it is in reset it tells nothing."""

    interface: str
    afu: str

    def __post_init__(self) -> None:
        for name in ("interface", "afu"):
            if not UUID.fullmatch(getattr(self, name)):  # from a file that anybody may have edited
                force_setattr(self, name, "")


def af_name(interface: str, afu: str) -> str:
    """Intel's name for a function on an interface: both ids in 43 characters of base64, since a name may have 63 and a socket's path 107."""
    both = base64.urlsafe_b64encode(bytes.fromhex(interface + afu)).rstrip(b"=").decode("ascii")
    return f"af-{interface[:3]}.{afu[:3]}.{both}"


def _afu_of(resource: str) -> str:
    """The function that a resource of mode ``af`` stands for; empty for any other."""
    found = _AF.fullmatch(resource.rpartition("/")[2])
    return base64.urlsafe_b64decode(f"{found[1]}=").hex()[32:] if found else ""


def offers(ports: Iterable[Port], config: FpgaConfig, known: Mapping[str, Ids]) -> list[Offer | Skipped]:
    """What each port is offered as. ``known`` is what ports told before, by id."""
    found: list[Offer | Skipped] = []
    cards: dict[str, list[Port]] = {}
    for port in ports:
        if port.card.driver is Driver.XRT:
            found.append(Offer(port.id, f"{config.xrt_domain}/{_fit('fpga-' + port.kind)}", (port,)))
        elif port.card.driver is Driver.MANAGER:
            found.append(Offer(port.id, f"{config.domain}/{port.kind}", (port,)))
        elif config.mode == "regiondevel":
            cards.setdefault(port.card.id, []).append(port)
        else:
            found.append(_port(port, config, known.get(port.id)))
    for card_id, members in cards.items():
        card = members[0].card
        interface = _living(card.interface) or next((known[port.id].interface for port in members if port.id in known), "")
        if not interface:
            found.append(Skipped(card_id, f"its interface is not known: {_reason(card.faults, card.unread)}"))
            continue
        found.append(Offer(slug(card_id), f"{config.domain}/region-{interface}", tuple(members), management=card.management))
    return found


def _port(port: Port, config: FpgaConfig, known: Ids | None) -> Offer | Skipped:
    interface = _living(port.card.interface) or (known.interface if known else "")
    if not interface:
        return Skipped(port.id, f"the interface of its card is not known: {_reason(port.card.faults, port.card.unread)}")
    function = next((one for one in config.functions if matches(one, port, interface)), None)
    if config.mode == "region":
        return Offer(port.id, f"{config.domain}/region-{interface}", (port,), function)
    afu = function.afu_id if function else _living(port.afu) or (known.afu if known else "")
    if not afu:
        return Skipped(port.id, f"its function is not known: {_reason(port.faults, port.unread)}")
    return Offer(port.id, f"{config.domain}/{af_name(interface, afu)}", (port,), function)


def matches(function: Function, port: Port, interface: str) -> bool:
    """Whether a port is to have a function."""
    return (
        function.interface_id in ("", interface)
        and any(fnmatch.fnmatchcase(address, function.address.lower()) for address in (port.address, port.card.id))
        and (not function.ports or port.number in function.ports)
    )


def learn(port: Port, known: Ids | None) -> Ids | None:
    """What is known of a port after a look: what it tells, and of what it does not tell now, what it told before."""
    interface = _living(port.card.interface) or (known.interface if known else "")
    afu = _living(port.afu) or (known.afu if known else "")
    return Ids(interface, afu) if interface or afu else None


def _living(uuid: str) -> str:
    """All ones is what a card reads as that does not answer: that is no id."""
    return "" if uuid == DEAD else uuid


def _reason(faults: Sequence[str], unread: Sequence[str]) -> str:
    return "; ".join((*faults, *unread)) or "it is in reset, and was never read"


def _fit(name: str) -> str:
    """A platform's name as that of a resource: its characters and its length."""
    return slug(name)[:63].strip("-_.")
