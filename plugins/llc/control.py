# SPDX-License-Identifier: Apache-2.0
"""The groups that there should be, and the ones that there are.

resctrl itself is the memory: a group's name says whose slots it carries, its schemata which ways they are. What is kept here beside it is what
resctrl does not know yet (a container that was admitted and has not started) and what was written last, to tell somebody else's hand from our own
plans.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct, field

from deviceplugin.plugins.llc import naming
from deviceplugin.plugins.llc.bandwidth import bandwidth_of
from deviceplugin.plugins.llc.config import LlcConfig
from deviceplugin.plugins.llc.disputes import Disputes
from deviceplugin.plugins.llc.division import Division, divide_all
from deviceplugin.plugins.llc.naming import Slots
from deviceplugin.plugins.llc.placing import NO_GROUPS, Group, Groups, NoRoom, Places, Rules, admit, adopt
from deviceplugin.plugins.llc.resctrl import ROOT, Resctrl, ResctrlError, Schemata, Survey, masks

log = logging.getLogger("deviceplugin.plugins.Llc")


class NotReady(Exception):
    """resctrl could not be looked at yet. The text says what to do."""


class View(Struct, frozen=True):
    """What the last look found. Never changes."""

    places: Places
    groups: Groups
    faults: Mapping[int, str]
    """By cache: why none of its slots can be trusted."""
    lost: Mapping[str, str]
    """By key: why the group is not as it should be."""
    undivided: Mapping[int, str]
    """By cache: why it has no slots."""
    free_groups: int
    intruders: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """By the name of a group that is not ours: the ways that it may use, by cache."""


class Control:
    """One lock holds it all together; any thread may call. Methods raise ResctrlError, NotReady and NoRoom."""

    def __init__(self, files: Resctrl, config: LlcConfig, clock: Callable[[], float]) -> None:
        self._resctrl = files
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._division: Division | None = None
        self._survey: Survey | None = None
        self._groups: Groups = NO_GROUPS
        self._written: dict[str, Mapping[int, int]] = {}
        """By key: the masks of the groups that are in resctrl, as they were when they were last written or seen."""
        self._asked: dict[str, float] = {}
        self._disputes = Disputes(clock)
        self._root_kept = False
        self._said: dict[str, str] = {}

    def look(self) -> View:
        """Reads everything, mends what is not as it should be, and says what there is then. Raises Absent."""
        with self._lock:
            survey = self._resctrl.survey()
            division = divide_all(survey, self._config, self._division)
            if self._division is not None and division.signature != self._division.signature:
                log.warning("resctrl was mounted with other options; the caches are divided anew, and groups from before are forgotten")
                self._groups, self._written = NO_GROUPS, {}
            self._survey, self._division = survey, division
            faults = dict(division.faults)
            lost: dict[str, str] = {}
            if survey.read_only:
                faults |= dict.fromkeys(division.places.caches, "read-only: resctrl is mounted so; mount -o remount,rw makes it writable")
            else:
                faults |= self._keep_root(survey, division)
                lost = self._keep_groups(survey, division)
            others = {name: masks(schemata, survey.info.names) for name, schemata in survey.groups.items() if not naming.key_of_group(name)}
            return View(division.places, self._groups, faults, lost, division.undivided, self._free(), others)

    def prefer(self, available: list[str], required: list[str], size: int) -> list[str] | None:
        """Which slots a container should get."""
        with self._lock:
            return self._division.places.prefer(self._groups, available, required, size) if self._division else None

    def reserve(self, slots: Slots) -> Group:
        """A group for a container that is being admitted. Nothing is written."""
        with self._lock:
            survey, division = self._ready()
            key = naming.key_of(slots)
            if len(key) > naming.MAX_KEY:
                raise NoRoom(f"{key[:60]}... has slots of too many caches: the name of its group would be too long")
            after = admit(division.places.caches, self._groups, slots, self._rules(survey))
            if key not in self._written and self._free(after) < 0:
                raise ResctrlError(f"the CPU has {survey.info.groups - 1} groups besides the root, and all are in use: none is left for {key}")
            self._groups = after
            self._asked[key] = self._clock()
            return after[key]

    def ensure(self, slots: Slots) -> Group:
        """Makes the group of a container that is about to start, or sees that it is as it should be. Idempotent."""
        with self._lock:
            survey, division = self._ready()
            key = naming.key_of(slots)
            before, written = self._groups, dict(self._written)
            self._groups = admit(division.places.caches, before, slots, self._rules(survey))
            try:
                for other in [other for other in self._written if other != key and naming.overlap(naming.slots_of_key(other) or {}, slots)]:
                    self._remove(other)
                if self._resctrl.make(naming.group_of(key)):
                    self._written.pop(key, None)
                self._move(key)
                self._put(key, self._groups[key])
            except ResctrlError:
                self._groups = {other: group for other, group in before.items() if other in self._written or other not in written}
                self._undo(key, written)
                raise
            self._asked[key] = self._clock()
            return self._groups[key]

    def tasks(self, key: str) -> list[int] | None:
        """Threads in a group; None if it is not there."""
        return self._resctrl.tasks(naming.group_of(key))

    def join(self, key: str, thread: int) -> bool:
        """Moves a thread into a group; False if it has ended."""
        return self._resctrl.join(naming.group_of(key), thread)

    def idle(self, keep: Iterable[str], known: Iterable[str]) -> set[str]:
        """Keys of groups, and others that are ``known``, that none of ``keep`` is, that nobody asked for lately, and that nothing runs in."""
        with self._lock:
            now = self._clock()
            keys = {*self._groups, *self._written, *known} - set(keep)
            old = {key for key in keys if now - self._asked.setdefault(key, now) >= self._config.collect.after}
            return {key for key in old if not self.tasks(key)}

    def drop(self, key: str) -> bool:
        """Removes a group, unless somebody asked for it meanwhile, or something runs in it."""
        with self._lock:
            if self._clock() - self._asked.get(key, 0.0) < self._config.collect.after or self.tasks(key):
                return False
            if key in self._written:
                self._remove(key)
            self._groups = {other: group for other, group in self._groups.items() if other != key}
            self._asked.pop(key, None)
            return True

    def _ready(self) -> tuple[Survey, Division]:
        if self._survey is None or self._division is None:
            raise NotReady("resctrl could not be read yet: deviceplugin check says why")
        return self._survey, self._division

    def _rules(self, survey: Survey) -> Rules:
        return Rules(self._config.relocate, survey.info.sparse, frozenset(key for key in self._groups if self._disputes.given_up(key)))

    def _free(self, groups: Groups | None = None) -> int:
        """How many more groups there can be, less than 0 when there are too many; those count that are only planned."""
        survey, _ = self._ready()
        others = sum(naming.key_of_group(name) is None for name in survey.groups)
        planned = self._groups if groups is None else groups
        slots = [group.slots for group in planned.values()]
        # What has lost its slots to another goes when that one is made.
        stray = [key for key in self._written if key not in planned and not any(naming.overlap(naming.slots_of_key(key) or {}, one) for one in slots)]
        return survey.info.groups - 1 - others - len(planned) - len(stray)

    def _schemata(self, group: Group) -> Schemata:
        """All that a group may use: its own ways, and the shared ones of the caches in which it has no slots."""
        survey, division = self._ready()
        wanted = {cache.id: group.masks.get(cache.id, cache.shared) for cache in division.places.caches.values()}
        schemata: dict[str, Mapping[int, int]] = dict.fromkeys(survey.info.names, wanted)
        if self._config.memory_bandwidth and survey.info.bandwidth:
            schemata["MB"] = bandwidth_of(group.slots, self._config.memory_bandwidth, survey.info.bandwidth, survey.root.get("MB", {}))
        return schemata

    def _put(self, key: str, group: Group) -> bool:
        changed = self._resctrl.put(naming.group_of(key), self._schemata(group))
        self._written[key] = group.masks
        return changed

    def _remove(self, key: str) -> None:
        self._resctrl.remove(naming.group_of(key))
        self._written.pop(key, None)

    def _move(self, but: str) -> None:
        """Writes the groups that have other masks now; those first that go where nobody is. Two in one place for a moment is legal and harmless."""
        waiting = {key for key, group in self._groups.items() if key != but and key in self._written and self._written[key] != group.masks}
        while waiting:
            key = min(waiting, key=lambda key: (self._crowded(key), key))
            log.info("group %s moves to %s", naming.group_of(key), _spell(self._groups[key].masks))
            self._put(key, self._groups[key])
            waiting.discard(key)

    def _crowded(self, key: str) -> bool:
        new = self._groups[key].masks
        return any(mask & held.get(cache, 0) for other, held in self._written.items() if other != key for cache, mask in new.items())

    def _undo(self, key: str, written: Mapping[str, Mapping[int, int]]) -> None:
        """After a failure: the masks that the others had, and no group that was not there."""
        try:
            if key not in written:
                self._remove(key)
            for other, held in written.items():
                if other in self._written and self._written[other] != held:
                    self._put(other, Group(naming.slots_of_key(other) or {}, held))
        except ResctrlError as error:
            log.error("after that failure, the next look has to put things back: %s", error)

    def _keep_root(self, survey: Survey, division: Division) -> dict[int, str]:
        """In reserve mode: takes the pools away from everything that has no slots."""
        if self._config.mode != "reserve":
            return {}
        wanted = {cache.id: cache.shared for cache in division.places.caches.values()}
        now = masks(survey.root, survey.info.names)
        wrong = {id_: now[id_] for id_, mask in wanted.items() if id_ in now and now[id_] != mask}
        if not wrong:
            self._root_kept = True
            self._said.pop(ROOT, None)
            return {}
        if self._root_kept and not self._disputes.may_mend(ROOT):
            self._say(ROOT, f"somebody keeps changing the ways of the root group, now to {_spell(wrong)}: it is left so for some minutes")
            return dict.fromkeys(wrong, "fought: somebody keeps changing the ways of the root group, so nothing is reserved")
        if self._root_kept:
            log.warning("somebody has changed the ways of the root group to %s: changed back", _spell(wrong))
        try:
            self._resctrl.put(ROOT, dict.fromkeys(survey.info.names, wanted))
        except ResctrlError as error:
            self._say(ROOT, f"the slots' ways cannot be taken from the root group: {error}")
            return dict.fromkeys(wrong, f"root: {error}")
        self._root_kept = True
        return {}

    def _keep_groups(self, survey: Survey, division: Division) -> dict[str, str]:
        """Takes in the groups of an earlier process, and puts right what somebody else has changed. Says, by key, what cannot be."""
        seen = {key: masks(schemata, survey.info.names) for name, schemata in survey.groups.items() if (key := naming.key_of_group(name))}
        broken = {key: reason for name, reason in survey.broken.items() if (key := naming.key_of_group(name))}
        new = {key: (naming.slots_of_key(key) or {}, held) for key, held in seen.items() if key not in self._groups}
        self._groups, lost = adopt(division.places.caches, self._groups, new, self._rules(survey))
        for key, (slots, held) in new.items():
            self._written.setdefault(key, {cache: held.get(cache, 0) for cache in slots})
        lost |= broken
        for key in [key for key in self._written if key not in self._groups and key not in seen and key not in broken]:
            del self._written[key]
        for key, group in self._groups.items():
            if key not in self._written or key in broken:
                continue  # its container has not started, or nobody knows what it is
            reason = self._keep(key, group, seen.get(key), survey, own=key in new)
            if reason:
                lost[key] = reason
        return lost

    def _keep(self, key: str, group: Group, held: Mapping[int, int] | None, survey: Survey, *, own: bool) -> str:
        """Makes one group as it should be. ``own`` says that nobody else is to blame for what it is, as after a change of our configuration."""
        name = naming.group_of(key)
        there = survey.groups.get(name)
        if there is not None and not _wrong(there, self._schemata(group)):
            self._written[key] = group.masks
            self._said.pop(key, None)
            return ""
        written = self._written[key]
        moving = held is not None and written != group.masks and {cache: held.get(cache, 0) for cache in group.slots} == written
        if not own and not moving:
            what = f"removed group {name}" if held is None else f"changed group {name} to {_spell(held)}"
            if not self._disputes.may_mend(key):
                self._say(key, f"somebody has {what}, as before: it is left so for some minutes")
                return "fought: somebody keeps changing or removing its group"
            log.warning("somebody has %s: put right", what)
        try:
            self._resctrl.make(name)
            self._put(key, group)
        except ResctrlError as error:
            self._say(key, f"group {name} cannot be put right: {error}")
            return str(error)
        return ""

    def _say(self, about: str, text: str) -> None:
        """In the log, once for as long as it stays the same."""
        if self._said.get(about) != text:
            self._said[about] = text
            log.warning("%s", text)


def _wrong(there: Schemata, wanted: Schemata) -> bool:
    return any(cache in there.get(name, {}) and there[name][cache] != value for name, values in wanted.items() for cache, value in values.items())


def _spell(held: Mapping[int, int]) -> str:
    return ", ".join(f"{cache}={mask:x}" for cache, mask in sorted(held.items()))
