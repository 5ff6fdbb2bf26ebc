# SPDX-License-Identifier: Apache-2.0
"""Anything may happen at any time: containers, restarts, failures of single files, others who write to resctrl. In the end all is in order."""

from __future__ import annotations

import errno
import shutil
import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from deviceplugin import Allocation
from deviceplugin.plugins.llc.control import NotReady
from deviceplugin.plugins.llc.naming import group_of, ids_of, key_of, slots_of, slots_of_key
from deviceplugin.plugins.llc.placing import NoRoom
from deviceplugin.plugins.llc.resctrl import ResctrlError
from deviceplugin.testing.resctrl import take, widen, wipe
from tests.helpers.llc import Node, allocation, look, masks, picked

EXPECTED = (ResctrlError, NoRoom, NotReady)


class Anything(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="llc-")
        self.mounted = True
        self.held: dict[str, int] = {}
        """By key: the process, 0 for a container that has not started."""

    @initialize(scenario=st.sampled_from(["skylake", "haswell", "cdp"]), mode=st.sampled_from(["reserve", "limit"]))
    def begin(self, scenario: str, mode: str) -> None:
        self.node = Node(self.root, scenario, mode=mode, memoryBandwidth=10)
        self.plugin = self.node.plugin()
        self.devices = look(self.plugin)

    def teardown(self) -> None:
        try:
            if hasattr(self, "node"):
                self.settle()
        finally:
            shutil.rmtree(self.root)

    @property
    def free(self) -> list[str]:
        taken = {id_ for key in self.held for id_ in ids_of(slots_of_key(key) or {})}
        return [id_ for id_ in self.devices if id_ not in taken]

    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        if not self.free:
            return
        ids = data.draw(st.lists(st.sampled_from(self.free), min_size=1, max_size=4, unique=True))
        try:
            self.plugin.allocate(picked(self.devices, *ids))
        except EXPECTED:
            return
        key = key_of(slots_of(ids))
        self.held[key] = 0
        self.node.hold(f"p-{key}", "c", ids)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        try:
            self.plugin.prepare(picked(self.devices, *ids_of(slots_of_key(key) or {})))
        except EXPECTED:
            return
        if not self.held[key]:
            self.held[key] = self.node.process(f"p-{key}", "c", {"KDP_LLC_GROUP": group_of(key)}, group=group_of(key))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        if pid := self.held.pop(key):
            self.node.end(pid)
        self.node.release(f"p-{key}", "c")

    @rule()
    def restart(self) -> None:
        self.plugin = self.node.plugin()
        self.look()

    @rule(seconds=st.sampled_from([1, 7, 130, 700]))
    def time(self, seconds: int) -> None:
        self.node.now += seconds
        try:
            list(self.plugin.reconcile(self.allocations()))
        except EXPECTED:
            return

    @rule()
    def look(self) -> None:
        try:
            look(self.plugin)
        except EXPECTED:
            return

    @precondition(lambda self: self.mounted)
    @rule()
    def somebody_wipes(self) -> None:
        wipe(self.node.sim)

    @precondition(lambda self: self.mounted)
    @rule(data=st.data())
    def somebody_widens(self, data: st.DataObject) -> None:
        widen(self.node.sim, data.draw(st.sampled_from(["", *self.node.groups])))

    @precondition(lambda self: self.mounted)
    @rule()
    def somebody_takes_a_group(self) -> None:
        try:
            resource = "L3CODE" if self.node.scenario.options == "cdp" else "L3"
            take(self.node.sim, "theirs", {0: 0x600 if self.node.scenario.ways == 11 else 0xC0000}, resource=resource)
        except OSError as error:
            assert error.errno in (errno.EEXIST, errno.ENOSPC)  # noqa: PT017 - both may be

    @rule()
    def remount(self) -> None:
        if self.mounted:
            self.node.sim.umount()
        else:
            self.node.sim.mount(self.node.scenario.options)
        self.mounted = not self.mounted

    @rule(number=st.sampled_from([errno.EIO, errno.EBUSY, errno.EINVAL]), what=st.sampled_from(["read", "write", "mkdir", "rmdir"]), data=st.data())
    def break_something(self, number: int, what: str, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(["", *self.node.groups]))
        path = group if what in ("mkdir", "rmdir") else f"{group}/schemata".lstrip("/")
        self.node.files.errors[what, path] = number

    @rule()
    def mend(self) -> None:
        self.node.files.errors.clear()

    def allocations(self) -> list[Allocation]:
        return [allocation(self.devices, f"p-{key}", "c", *ids_of(slots_of_key(key) or {})) for key in self.held]

    def settle(self) -> None:
        """Everything works again, and nobody interferes any more."""
        node = self.node
        node.files.errors.clear()
        if not self.mounted:
            node.sim.mount(node.scenario.options)
        if "theirs" in node.sim.list(""):
            node.sim.rmdir("theirs")
        for _ in range(5):
            node.now += 700
            look(self.plugin)
            verdicts = list(self.plugin.reconcile(self.allocations()))
        for key, pid in self.held.items():
            if pid:
                assert node.group_of(pid) == group_of(key)
        assert all(one.enforced is not False for one in verdicts), verdicts
        places = self.plugin._control.look().places
        assert set(node.groups) <= {group_of(key) for key in self.held}
        taken = dict.fromkeys(places.caches, 0)
        for key in self.held:
            if group_of(key) not in node.groups:
                continue
            slots = slots_of_key(key) or {}
            for cache, mask in masks(node.sim, group_of(key)).items():
                if cache in slots:
                    assert mask.bit_count() == places.caches[cache].ways(slots[cache])
                    assert not mask & (taken[cache] | ~places.caches[cache].pool)
                    taken[cache] |= mask
        if self.plugin.config.mode == "reserve":
            assert masks(node.sim) == {id_: cache.shared for id_, cache in places.caches.items()}


Anything.TestCase.settings = settings(max_examples=12, stateful_step_count=25)
TestAnything = Anything.TestCase
