# SPDX-License-Identifier: Apache-2.0
"""The lifecycle against a kubelet that does anything, in any order, and at last behaves."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from deviceplugin.kubelet.lifecycle import (
    BACKOFF_CAP,
    BACKOFF_PERMANENT,
    EXPECT,
    ZOMBIE,
    Action,
    Facts,
    Outcome,
    Phase,
    State,
    announced,
    wake_at,
    watched,
)
from deviceplugin.kubelet.paths import SocketId

MOST_STEPS = 4
"""Decisions in a row, at most, before nothing is left to decide: retire, announce, fail, retire."""


class World(RuleBasedStateMachine):
    """What the registrar would see, and does for the lifecycle."""

    watcher = False

    @initialize(jitter=st.floats(0, 1))
    def begin(self, jitter: float) -> None:
        self.now = 0.0
        self.state = State()
        self.kubelet: SocketId | None = None
        self.inodes = 10
        self.listens = False
        self.endpoint = False
        self.intact = True
        self.streams = 0
        self.opened = 0
        self.outcome: Outcome | None = None
        self.calling = False
        self.found = False
        self.busy = False
        self.jitter = jitter
        self.attempts: list[float] = []
        self.run()

    def facts(self) -> Facts:
        return Facts(self.now, self.kubelet, self.intact or not self.endpoint, self.streams, self.opened, self.outcome)

    def run(self) -> None:
        """As Registrar._run does: decide until nothing is to be done."""
        if self.busy:
            return
        for _ in range(MOST_STEPS):
            before = self.state
            self.state, action = (watched if self.watcher else announced)(before, self.facts(), lambda: self.jitter)
            if self.state.phase is Phase.SERVING and before.phase is not Phase.SERVING:
                self.outcome, self.calling = None, False
            self.perform(action)
            assert self.state.failures <= len(self.attempts)
            if action is Action.NONE:
                return
        raise AssertionError(f"busy: {self.state}, {self.facts()}")

    def perform(self, action: Action) -> None:
        if action is Action.RETIRE:
            assert self.endpoint or self.outcome is Outcome.FAILED
            self.endpoint, self.streams, self.opened, self.outcome, self.calling = False, 0, 0, None, False
        elif action is Action.ANNOUNCE:
            assert self.streams == 0
            assert not self.endpoint, "the old socket must be gone before a new one is made"
            self.attempts.append(self.now)
            if not self.watcher and not self.listens:
                self.outcome = Outcome.FAILED
                return
            self.endpoint, self.intact, self.calling, self.found = True, True, not self.watcher, False

    # What the kubelet does, and what is done to the files.

    @rule(same_inode=st.booleans())
    def kubelet_starts(self, same_inode: bool) -> None:
        """It removes all sockets, ours too, and makes its own; all its old streams are gone."""
        self.inodes += not same_inode
        self.kubelet = SocketId(1, self.inodes, int(self.now * 1000) + len(self.attempts) + 1)
        self.listens, self.streams, self.found = True, 0, False
        self.intact = False if not self.watcher else self.intact
        self.call_ends(Outcome.FAILED)

    @rule()
    def kubelet_dies(self) -> None:
        self.listens, self.streams = False, 0
        self.call_ends(Outcome.FAILED)

    @rule()
    def kubelet_socket_is_removed(self) -> None:
        self.kubelet, self.listens = None, False
        self.run()

    @rule()
    def kubelet_socket_is_replaced_under_a_live_stream(self) -> None:
        self.inodes += 1
        self.kubelet = SocketId(1, self.inodes, 7)
        self.run()

    @rule()
    def our_socket_is_removed(self) -> None:
        self.intact = False
        self.run()

    @precondition(lambda self: self.calling)
    @rule(outcome=st.sampled_from(Outcome))
    def register_ends(self, outcome: Outcome) -> None:
        self.call_ends(outcome)

    def call_ends(self, outcome: Outcome) -> None:
        if self.calling:
            self.calling, self.outcome = False, outcome
        self.run()

    @precondition(lambda self: self.endpoint and self.streams < 3)
    @rule()
    def stream_opens(self) -> None:
        self.streams, self.opened, self.found = self.streams + 1, self.opened + 1, True
        self.run()

    @precondition(lambda self: self.streams > 0)
    @rule()
    def stream_ends(self) -> None:
        self.streams -= 1
        self.run()

    @precondition(lambda self: self.watcher and self.endpoint and self.streams == 0)
    @rule()
    def kubelet_takes_the_socket_and_opens_no_stream(self) -> None:
        self.outcome, self.found = Outcome.ACCEPTED, True
        self.run()

    @rule()
    def we_do_not_get_to_look(self) -> None:
        """Whatever happens until we do is seen as one change: a stream may have come and gone."""
        self.busy = True

    @rule()
    def we_look_again(self) -> None:
        self.busy = False
        self.run()

    @precondition(lambda self: self.endpoint and self.streams == 0)
    @rule()
    def stream_comes_and_goes_between_two_looks(self) -> None:
        self.opened, self.found = self.opened + 1, True
        self.run()

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 6.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.run()

    @rule()
    def nothing_happens(self) -> None:
        """Looking again without a reason decides nothing."""
        before, attempts = self.state, len(self.attempts)
        self.run()
        assert (self.state, len(self.attempts)) == (before, attempts)

    @rule()
    def kubelet_behaves_from_now_on(self) -> None:
        """Then the list is read soon: after the longest wait there is, and one registration. A plugin watcher asks at each socket once."""
        self.we_look_again()
        if not self.listens:
            self.kubelet_starts(same_inode=False)
        begun = self.now
        for _ in range(40):
            if self.state.phase is Phase.SERVING and self.streams and self.state.odd_since is None:
                break
            if self.calling:
                self.call_ends(Outcome.ACCEPTED)
            elif self.endpoint and self.streams == 0 and not (self.watcher and (self.found or not self.intact)):
                self.stream_opens()
            else:
                due = wake_at(self.state)
                self.now = max(self.now, due) if due is not None else self.now + 5.0
                self.run()
        assert self.state.phase is Phase.SERVING, f"stuck: {self.state}, {self.facts()}"
        assert self.streams > 0
        assert self.now - begun <= BACKOFF_PERMANENT + EXPECT + ZOMBIE + BACKOFF_CAP + 1e-6

    @invariant()
    def what_is_to_be_done_later_has_its_time(self) -> None:
        due = None if self.busy else wake_at(self.state)
        if due is not None:
            assert due - self.now <= max(BACKOFF_PERMANENT, EXPECT) + 1e-6
        if self.state.phase is Phase.EXPECTING and not self.busy:
            assert due is not None

    @invariant()
    def it_serves_exactly_while_somebody_reads(self) -> None:
        if self.state.phase is Phase.SERVING and not self.busy:
            assert self.streams > 0
            assert self.endpoint


class Watched(World):
    watcher = True


def test_a_kubelet_that_is_told() -> None:
    run_state_machine_as_test(World, settings=settings(max_examples=120, stateful_step_count=40, deadline=None))


def test_a_kubelet_that_watches() -> None:
    run_state_machine_as_test(Watched, settings=settings(max_examples=240, stateful_step_count=40, deadline=None))


def test_failures_are_never_repeated_without_a_pause() -> None:
    """A socket on which nobody listens is tried a bounded number of times in a minute."""
    world = World()
    world.begin(jitter=0.0)
    world.kubelet = SocketId(1, 1, 1)
    for _ in range(6000):
        world.now += 0.01
        world.run()
    assert 10 <= len(world.attempts) <= 60
    pauses = [b - a for a, b in zip(world.attempts, world.attempts[1:], strict=False)]
    assert max(pauses) <= BACKOFF_CAP + 0.02
