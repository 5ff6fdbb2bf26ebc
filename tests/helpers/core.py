# SPDX-License-Identifier: Apache-2.0
"""A clock that stands still, plugins that do as they are told, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from deviceplugin.health import HealthBook
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Held, Inventory, Snapshot, Transition
from deviceplugin.model import Device, Edits, Health, Sharing, Skipped
from deviceplugin.plugin import Plugin
from deviceplugin.tally import Tally

WIDGET = "example.com/widget"


class Clock:
    """Time that passes only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Widgets(Plugin):
    """Has the devices in :attr:`found`, or fails with the exception that is there instead."""

    resource: ClassVar[str] = WIDGET

    def __init__(self, *found: Device | Skipped, config: Any = None) -> None:
        super().__init__(config)
        self.found: Iterable[Any] | BaseException = list(found)

    def discover(self) -> Iterable[Device | Skipped]:
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found


class Allocating(Widgets):
    """Answers Allocate with whatever :attr:`answer` makes of the devices."""

    answer: Callable[[Sequence[Device]], Any] = staticmethod(lambda _devices: Edits())

    def allocate(self, devices: Sequence[Device]) -> Edits:
        edits: Edits = self.answer(devices)
        return edits


class Shelf:
    """An inventory on a clock of its own, filled without a scanner. Everything counts as held unless :attr:`held` says otherwise."""

    def __init__(
        self, *, sharing: dict[str, Sharing] | None = None, book: HealthBook | None = None, plugin: Plugin | None = None, limit: float = 3600.0
    ) -> None:
        self.clock = Clock()
        self.tally = Tally()
        self.hooks = Hooks(plugin or Widgets(), "widgets", self.tally)
        self.held: Held = lambda _resource, _id: None
        self.inventory = Inventory("widgets", book=book, sharing=sharing, settle=5.0, tombstone_limit=limit, clock=self.clock)

    def put(self, *found: object) -> tuple[Transition, ...]:
        """Discovers ``found``, which is anything that a plugin may yield."""
        return self.inventory.update(found, self.hooks, self.held)  # type: ignore[arg-type]

    def bury(self) -> tuple[Transition, ...]:
        return self.inventory.bury(self.held)

    def snapshot(self, resource: str = WIDGET) -> Snapshot:
        return self.inventory.snapshots[resource]

    def listed(self, resource: str = WIDGET) -> dict[str, str]:
        """What is advertised: each id with its health, and after a colon why it is not healthy."""
        return {row.id: row.health.value + (f":{row.cause}" if row.cause else "") for row in self.snapshot(resource).rows}

    def reasons(self) -> str:
        return "\n".join(one.reason for one in self.inventory.skipped)


def snapshot_of(*devices: Device, plugin: Plugin | None = None, sharing: Sharing | None = None, deadline: float | None = None) -> Snapshot:
    """The snapshot of one resource with these devices, as a plugin discovered them."""
    shelf = Shelf(sharing={WIDGET: sharing} if sharing else None, plugin=plugin)
    if deadline is not None:
        shelf.hooks = Hooks(shelf.hooks.plugin, "widgets", shelf.tally, {"allocate": deadline, "prefer": deadline, "prepare": deadline})
    shelf.put(*devices)
    return shelf.snapshot(sharing.rename or WIDGET if sharing else WIDGET)


def sick(device_id: str, cause: str = "broken", **fields: Any) -> Device:
    """A device that its plugin reports as unhealthy."""
    return Device(device_id, health=Health.UNHEALTHY, cause=cause, **fields)
