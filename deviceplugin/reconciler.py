# SPDX-License-Identifier: Apache-2.0
"""Lets one plugin compare what containers hold with what is really so, each time that the kubelet has said who holds what."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct, field

from deviceplugin.hooks import HookFailed, Hooks
from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet.podresources import Holder, Holdings
from deviceplugin.model import Allocation, Device, Verdict
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)


class Held(NamedTuple):
    """A resource and a container that holds some of it."""

    resource: str
    holder: Holder


class Audit(Struct, frozen=True):
    """What the last look found. An allocation without a verdict was not judged; ``error`` is why none was."""

    verdicts: Mapping[Held, Verdict] = field(default_factory=dict)
    error: str = ""

    def enforced(self, resource: str, holders: Iterable[Holder]) -> tuple[bool | None, str]:
        """Whether it is enforced for all of these containers, and what was said of that. None if there are none or it is not known of one."""
        found = [self.verdicts.get(Held(resource, holder)) for holder in holders]
        if broken := [one for one in found if one is not None and one.enforced is False]:
            return False, broken[0].detail
        known = bool(found) and all(one is not None and one.enforced is not None for one in found)
        return True if known else None, next((one.detail for one in found if one is not None and one.detail), self.error)


def allocations(snapshots: Mapping[str, Snapshot], holdings: Holdings) -> dict[Held, Allocation]:
    """What each container holds of these resources, of the devices that are listed."""
    found: dict[Held, dict[str, Device]] = {}
    for (resource, device_id), holders in holdings.by_device.items():
        snapshot = snapshots.get(resource)
        row = snapshot.index.get(device_id) if snapshot is not None else None
        if row is not None:
            for holder in holders:
                found.setdefault(Held(resource, holder), {})[row.device.id] = row.device
    return {
        held: Allocation(held.holder.namespace, held.holder.pod, held.holder.container, held.resource, tuple(devices[one] for one in sorted(devices)))
        for held, devices in sorted(found.items())
    }


class Reconciler:
    """Calls a plugin's reconcile() on a thread of its own: a slow one delays neither a look at the hardware nor the next question to the kubelet.

    ``snapshots`` are what the plugin has in this instance's care: another instance's are not its business. Two views that come while the plugin is
    busy are one.
    """

    def __init__(self, hooks: Hooks, tally: Tally, snapshots: Callable[[], Mapping[str, Snapshot]]) -> None:
        self.audit = Audit()
        self.hooks = hooks
        self._tally = tally
        self._snapshots = snapshots
        self._view = Holdings()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reconcile-{hooks.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def view(self, holdings: Holdings) -> None:
        """The kubelet has said who holds what, or could not be asked."""
        self._view = holdings
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping.is_set():
                return
            self._publish(self._look(self._view))

    def _look(self, view: Holdings) -> Audit:
        """One call of the hook. Without a fresh view nothing is asked: what is not in an old one may be held by somebody."""
        snapshots = self._snapshots()
        if not snapshots:
            return Audit()
        if not view.fresh:
            return Audit({}, f"who holds what is not known: {view.error}")
        if any(hook == "reconcile" for hook, _ in self.hooks.hung()):
            return Audit({}, "reconcile() still hangs")
        asked = allocations(snapshots, view)
        try:
            answers = self.hooks.call("reconcile", tuple(asked.values()))
        except HookFailed as error:
            return Audit({}, str(error))
        keys = {id(allocation): key for key, allocation in asked.items()}
        verdicts: dict[Held, Verdict] = {}
        for one in answers:
            key = keys.get(id(one.allocation)) if isinstance(one, Verdict) else None
            if key is None:
                self._tally.count("hook_failures", plugin=self.hooks.name, hook="reconcile", reason="error")
                return Audit({}, f"plugin {self.hooks.name}: reconcile() must yield Verdicts on the allocations that it was given, not {one!r:.200}")
            verdicts[key] = one
        return Audit(verdicts)

    def _publish(self, audit: Audit) -> None:
        before, self.audit = self.audit, audit
        if audit.error and audit.error != before.error:
            log.warning("plugin %s: what containers hold cannot be verified: %s", self.hooks.name, audit.error)
        for held, one in audit.verdicts.items():
            resource, holder = held
            last = before.verdicts.get(held)
            was = None if last is None else last.enforced
            who = f"{holder.namespace}/{holder.pod}/{holder.container}"
            if one.enforced is False and was is not False:
                log.warning("plugin %s: what %s holds of %s is not enforced: %s", self.hooks.name, who, resource, one.detail or "no reason given")
            elif one.enforced and was is False:
                log.info("plugin %s: what %s holds of %s is enforced again", self.hooks.name, who, resource)
