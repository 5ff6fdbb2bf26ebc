# SPDX-License-Identifier: Apache-2.0
"""Whether each container really is held to its ways: its group has its masks, and its processes are in its group."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from msgspec import Struct

from deviceplugin import Allocation, Host, Verdict
from deviceplugin.plugins.llc import membership, naming, topology
from deviceplugin.plugins.llc.config import LlcConfig
from deviceplugin.plugins.llc.control import Control, NotReady, View
from deviceplugin.plugins.llc.placing import NoRoom
from deviceplugin.plugins.llc.resctrl import ResctrlError

log = logging.getLogger("deviceplugin.plugins.Llc")

GRACE = 5.0
"""Seconds that a container's group may be empty while the runtime starts it."""

MOST_TASKS = 4096
"""Of a group with more, the list may have been cut, so that who is missing in it cannot be told."""


class Scene(Struct, frozen=True):
    """What one round of judging looks at."""

    view: View
    cpus: Mapping[int, frozenset[int]]
    """By cache."""
    host_pids: bool


class Audit:
    """Judges allocations, one after the other, and moves processes that are outside their group into it."""

    def __init__(self, host: Host, control: Control, config: LlcConfig, clock: Callable[[], float]) -> None:
        self._host = host
        self._control = control
        self._config = config
        self._clock = clock
        self._empty_since: dict[str, float] = {}

    def judge(self, allocation: Allocation, scene: Scene) -> Verdict:
        """Says of one container whether its slots are enforced."""
        try:
            slots = naming.slots_of(device.id for device in allocation.devices)
        except ValueError as error:
            return Verdict(allocation, False, str(error))
        key = naming.key_of(slots)
        try:
            tasks = self._control.tasks(key)
            if tasks:
                self._empty_since.pop(key, None)
                return self._filled(allocation, key, slots, tasks, scene)
            if not scene.host_pids:
                return Verdict(allocation, None, "who is in a group can be seen only in the host's PID namespace: set hostPID: true")
            return self._empty(allocation, key, slots)
        except (ResctrlError, NoRoom, NotReady) as error:
            return Verdict(allocation, False, str(error))

    def forget(self, keep: set[str]) -> None:
        """Of containers that are gone."""
        self._empty_since = {key: since for key, since in self._empty_since.items() if key in keep}

    def _filled(self, allocation: Allocation, key: str, slots: naming.Slots, tasks: list[int], scene: Scene) -> Verdict:
        view = scene.view
        group = view.groups.get(key)
        if reason := view.lost.get(key) or next((view.faults[cache] for cache in slots if cache in view.faults), ""):
            return Verdict(allocation, False, reason)
        if group is None:
            return Verdict(allocation, False, f"{naming.group_of(key)} is not one of the groups that there should be")
        if self._config.mode == "reserve":
            for name, held in view.intruders.items():
                if shared := [f"{cache}={mask & held.get(cache, 0):x}" for cache, mask in group.masks.items() if mask & held.get(cache, 0)]:
                    return Verdict(allocation, False, f"group {name}, which is not ours, may use the same ways: {', '.join(shared)}")
        if scene.host_pids and (reason := self._outside(allocation, key, tasks)):
            return Verdict(allocation, False, reason)
        return Verdict(allocation, True, self._elsewhere(slots, tasks[0], scene))

    def _outside(self, allocation: Allocation, key: str, tasks: list[int]) -> str:
        """Moves threads of the container that are not in its group; what there is to say of them."""
        if len(tasks) > MOST_TASKS:
            return ""
        threads = membership.beside(self._host, tasks[0])
        # Looked at once more: a thread that was made meanwhile is in both or in neither.
        if not threads or threads <= set(tasks) or not (left := sorted(threads - set(self._control.tasks(key) or threads))):
            return ""
        outside = f"{len(left)} of its {len(threads)} threads run outside its group {naming.group_of(key)}"
        if not self._config.repair:
            return f"{outside}; repair: true would move them"
        moved = sum(self._control.join(key, thread) for thread in left)
        log.warning("container %s of pod %s/%s: %s; %d were moved", allocation.container, allocation.namespace, allocation.pod, outside, moved)
        return f"{outside}; {moved} were moved into it just now"

    def _elsewhere(self, slots: naming.Slots, thread: int, scene: Scene) -> str:
        """A warning if the container may run where it has no slots: there it has the shared ways only."""
        text = membership.allowed_cpus(self._host, thread)
        try:
            allowed = topology.cpu_list(text)
        except ValueError:
            return ""
        near = frozenset[int]().union(*(scene.cpus.get(cache, frozenset()) for cache in slots))
        if not near or allowed <= near:
            return ""
        return f"not aligned: it may run on CPUs {text}, and its slots are of caches {', '.join(map(str, slots))}; elsewhere it has the shared ways"

    def _empty(self, allocation: Allocation, key: str, slots: naming.Slots) -> Verdict:
        since = self._empty_since.setdefault(key, self._clock())
        if self._clock() - since < GRACE:
            return Verdict(allocation, None, "nothing runs in its group yet")
        group = naming.group_of(key)
        uids = membership.pod_uids(self._host, allocation)
        found = membership.find(self._host, uids, group)
        if not found.pids:
            if found.others or not uids:
                why = (
                    f"the kubelet's checkpoint {membership.CHECKPOINT} does not tell its pod"
                    if not uids
                    else (f"of the pod's processes {', '.join(map(str, found.others[:5]))} none shows {membership.VARIABLE}")
                )
                return Verdict(allocation, False, f"nothing runs in group {group}, and its processes cannot be found: {why}")
            return Verdict(allocation, None, "no process of it runs")
        outside = f"it runs outside its group {group}: the runtime did not put it there, or the group was removed"
        if not self._config.repair:
            return Verdict(allocation, False, f"{outside}; repair: true would move it")
        self._control.ensure(slots)
        count = membership.move(self._host, lambda: membership.find(self._host, uids, group).pids, lambda thread: self._control.join(key, thread))
        log.warning(
            "container %s of pod %s/%s: %s; its %d threads were moved", allocation.container, allocation.namespace, allocation.pod, outside, count
        )
        return Verdict(allocation, False, f"{outside}; its {count} threads were moved into it just now")
