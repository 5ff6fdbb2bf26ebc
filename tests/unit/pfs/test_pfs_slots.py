# SPDX-License-Identifier: Apache-2.0
"""Which slots there are, whatever a controller, pods, a kubelet and instances of the plugin do."""

from __future__ import annotations

import shutil
import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deviceplugin import Host
from deviceplugin.plugins.pfs.config import FileSystem
from deviceplugin.plugins.pfs.slots import RECENT, Slots
from deviceplugin.testing import SimulatedHost
from tests.helpers.core import Clock

FILESYSTEM = FileSystem(name="scratch", type="other", tier="T0", mount_point="/mnt/scratch", slots_file="/etc/slots")


class Machine(RuleBasedStateMachine):
    """The plugin's slots beside what pods really hold."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp()
        self.host = SimulatedHost(self.root)
        self.clock = Clock()
        self.held: set[int] = set()
        self.wanted = 4
        self.host.write("/etc/slots", "4")
        self.slots = self._instance()
        self.slots.numbers()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def _instance(self) -> Slots:
        return Slots(Host(self.root), FILESYSTEM, "/state/slots.json", self.clock)

    @property
    def listed(self) -> set[int]:
        numbers, problem = self.slots.numbers()
        assert problem == ""
        assert len(set(numbers)) == len(numbers)
        return set(numbers)

    @rule(number=st.integers(0, 8))
    def edit(self, number: int) -> None:
        """The controller wants another number."""
        self.wanted = number
        self.host.write("/etc/slots", f"{number}\n")

    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        """A pod gets some of the slots that are free."""
        free = sorted(self.listed - self.held)
        if free:
            taken = set(data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=3)))
            self.slots.give(taken)
            self.held |= taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.held.discard(data.draw(st.sampled_from(sorted(self.held))))

    @rule(seconds=st.sampled_from([0, 10, 50, 70, 4000]))
    def wait(self, seconds: int) -> None:
        """Time in which the kubelet, if it says anything, says who holds what every 10 s."""
        self.clock.advance(seconds)

    @rule()
    def tell(self) -> None:
        """The kubelet says who holds what."""
        self.slots.view(self.held)

    @rule()
    def tell_too_little(self) -> None:
        """A kubelet that has just started lists no pod; it has been told of them all within a minute."""
        self.slots.view(self.held)
        self.clock.advance(RECENT / 2)
        self.slots.view(set())

    @rule(told=st.booleans())
    def restart(self, told: bool) -> None:
        """Another instance of the plugin; one that has been active was told who holds what."""
        if told:
            self.slots.view(self.held)
            self.slots.numbers()
            self.slots = self._instance()

    @rule()
    def settle(self) -> None:
        """A minute in which nothing happens."""
        self.slots.view(self.held)
        self.slots.numbers()
        self.clock.advance(RECENT + 1)
        self.slots.view(self.held)
        assert len(self.listed) == max(self.wanted, len(self.held))

    @invariant()
    def nothing_that_is_held_is_taken_away(self) -> None:
        assert self.held <= self.listed
        assert len(self.listed) >= self.wanted

    @invariant()
    def a_standby_changes_nothing(self) -> None:
        before = self.host.read("/state/slots.json") if self.slots._recent.busy() is not None else None
        self._instance().numbers()
        if before is not None:
            assert self.host.read("/state/slots.json") == before


TestSlots = Machine.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
