# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from deviceplugin.kubelet.lifecycle import (
    BACKOFF_CAP,
    BACKOFF_PERMANENT,
    EXPECT,
    PROMPT,
    REDIAL,
    SHORT_LIVED,
    ZOMBIE,
    Action,
    Facts,
    Outcome,
    Phase,
    State,
    announced,
    backoff,
    wake_at,
    watched,
)
from deviceplugin.kubelet.paths import SocketId

OLD, NEW, REUSED = SocketId(1, 10, 1), SocketId(1, 11, 2), SocketId(1, 10, 3)


def step(state: State, **facts: Any) -> tuple[State, Action]:
    return announced(state, Facts(**facts), lambda: 1.0)


def serving(since: float = 0.0) -> State:
    return State(Phase.SERVING, since, OLD)


def test_without_a_kubelet_nothing_is_made() -> None:
    assert step(State(), now=5.0) == (State(), Action.NONE)


def test_from_the_kubelets_socket_to_the_stream() -> None:
    state, action = step(State(), now=1.0, kubelet=OLD)
    assert (state.phase, action) == (Phase.REGISTERING, Action.ANNOUNCE)
    state, action = step(state, now=1.1, kubelet=OLD, outcome=Outcome.ACCEPTED)
    assert (state.phase, action) == (Phase.EXPECTING, Action.NONE)
    state, action = step(state, now=1.2, kubelet=OLD, outcome=Outcome.ACCEPTED, streams=1, opened=1)
    assert (state.phase, action) == (Phase.SERVING, Action.NONE)


def test_a_stream_that_opens_within_the_register_call_waits_for_its_answer() -> None:
    state, _ = step(State(), now=1.0, kubelet=OLD)
    state, action = step(state, now=1.1, kubelet=OLD, streams=1, opened=1)
    assert (state.phase, action) == (Phase.REGISTERING, Action.NONE)
    state, action = step(state, now=1.2, kubelet=OLD, streams=1, opened=1, outcome=Outcome.FAILED)
    assert action is Action.RETIRE, "the kubelet dropped its record and would not notice the end of this stream"


def test_a_stream_that_ends_is_replaced_at_once() -> None:
    state, action = step(serving(), now=100.0, kubelet=OLD, opened=1)
    assert action is Action.RETIRE
    state, action = step(state, now=100.0, kubelet=OLD)
    assert action is Action.ANNOUNCE


def test_a_new_stream_that_the_end_of_an_older_one_cut_off_is_replaced_at_once() -> None:
    state = serving(since=99.9)
    state, action = step(state, now=100.0, kubelet=OLD, opened=1)
    assert action is Action.RETIRE
    state, action = step(state, now=100.0, kubelet=OLD)
    assert action is Action.ANNOUNCE


def test_streams_that_never_last_are_opened_more_and_more_slowly() -> None:
    state, now, waits = State(), 0.0, []
    for _ in range(12):
        state, action = step(state, now=now, kubelet=OLD)
        assert action is Action.ANNOUNCE
        state, _ = step(state, now=now, kubelet=OLD, streams=1, opened=1, outcome=Outcome.ACCEPTED)
        state, action = step(state, now=now, kubelet=OLD, opened=1)
        assert action is Action.RETIRE
        waits.append(state.not_before - now)
        now = state.not_before
    assert waits[0] == 0.0
    assert waits == pytest.approx(sorted(waits))
    assert waits[-1] == pytest.approx(BACKOFF_CAP)
    state, _ = step(State(failures=9, kubelet=OLD), now=now, kubelet=OLD)
    state, _ = step(state, now=now, kubelet=OLD, streams=1, opened=1, outcome=Outcome.ACCEPTED)
    state, _ = step(state, now=now + SHORT_LIVED, kubelet=OLD, opened=1)
    assert (state.failures, state.not_before) == (0, now + SHORT_LIVED)


@pytest.mark.parametrize(
    ("failures", "outcome", "patience"),
    [(0, Outcome.ACCEPTED, PROMPT), (1, Outcome.ACCEPTED, 2 * PROMPT), (9, Outcome.ACCEPTED, EXPECT), (0, Outcome.UNKNOWN, EXPECT)],
)
def test_a_registration_that_brings_no_stream_is_made_anew_each_time_later(failures: int, outcome: Outcome, patience: float) -> None:
    state, _ = step(State(kubelet=OLD, failures=failures), now=0.0, kubelet=OLD)
    state, _ = step(state, now=1.0, kubelet=OLD, outcome=outcome)
    assert wake_at(state) == 1.0 + patience
    assert step(state, now=1.0 + patience - 0.01, kubelet=OLD, outcome=outcome)[1] is Action.NONE
    after, action = step(state, now=1.0 + patience, kubelet=OLD, outcome=outcome)
    assert (after.failures, action) == (failures + 1, Action.RETIRE)


def test_a_kubelet_that_is_replaced_before_it_answers_is_noticed_with_the_answer() -> None:
    state, _ = step(State(), now=0.0, kubelet=OLD)
    state, action = step(state, now=1.0, kubelet=NEW, streams=1, opened=1, outcome=Outcome.ACCEPTED)
    assert (state.phase, state.odd_since, action, wake_at(state)) == (Phase.SERVING, 1.0, Action.NONE, 1.0 + ZOMBIE)


def test_a_name_that_the_kubelet_never_takes_is_seldom_tried() -> None:
    state, _ = step(State(), now=0.0, kubelet=OLD)
    state, action = step(state, now=0.0, kubelet=OLD, outcome=Outcome.REFUSED)
    assert (action, wake_at(state)) == (Action.RETIRE, BACKOFF_PERMANENT)
    assert step(state, now=BACKOFF_PERMANENT - 1, kubelet=OLD)[1] is Action.NONE
    assert step(state, now=1.0, kubelet=NEW)[1] is Action.ANNOUNCE, "another kubelet may be of another mind"


@pytest.mark.parametrize("phase", [Phase.REGISTERING, Phase.EXPECTING])
def test_another_kubelet_is_told_at_once(phase: Phase) -> None:
    state, action = step(State(phase, 0.0, OLD, failures=7), now=0.5, kubelet=NEW)
    assert (state.phase, action) == (Phase.DOWN, Action.RETIRE)
    assert step(state, now=0.5, kubelet=NEW)[1] is Action.ANNOUNCE


@pytest.mark.parametrize("phase", [Phase.REGISTERING, Phase.EXPECTING])
def test_a_socket_of_ours_that_was_removed_is_replaced(phase: Phase) -> None:
    assert step(State(phase, 0.0, OLD), now=0.5, kubelet=OLD, intact=False)[1] is Action.RETIRE


def test_a_live_stream_is_left_alone_whatever_happens_to_the_files() -> None:
    for facts in ({"kubelet": None}, {"kubelet": OLD, "intact": False}, {"kubelet": REUSED}):
        assert step(serving(), now=500.0, streams=1, opened=1, **facts)[1] is Action.NONE


def test_a_stream_of_a_kubelet_that_was_replaced_gets_a_little_time_to_end() -> None:
    state, action = step(serving(), now=10.0, kubelet=NEW, streams=1, opened=1)
    assert (action, wake_at(state)) == (Action.NONE, 10.0 + ZOMBIE)
    assert step(state, now=10.5, kubelet=OLD, streams=1, opened=1)[0].odd_since is None
    state, action = step(state, now=10.0 + ZOMBIE, kubelet=NEW, streams=1, opened=1)
    assert action is Action.RETIRE
    assert step(state, now=10.0 + ZOMBIE, kubelet=NEW)[1] is Action.ANNOUNCE


def test_the_plugin_watcher_is_given_a_new_socket_only_when_it_does_not_come_back() -> None:
    def look(state: State, **facts: Any) -> tuple[State, Action]:
        return watched(state, Facts(**facts), lambda: 1.0)

    state, action = look(State(), now=0.0)
    assert action is Action.ANNOUNCE
    assert look(state, now=1e6)[1] is Action.NONE, "the kubelet finds it when it comes"
    state, action = look(state, now=1.0, streams=1, opened=1)
    assert (state.phase, action) == (Phase.SERVING, Action.NONE)
    broken, action = look(state, now=50.0, opened=1)
    assert (action, wake_at(broken)) == (Action.NONE, 50.0 + REDIAL)
    assert look(broken, now=50.5, streams=1, opened=2)[0].phase is Phase.SERVING
    state, action = look(broken, now=50.0 + REDIAL, opened=1)
    assert action is Action.RETIRE
    assert look(state, now=50.0 + REDIAL)[1] is Action.ANNOUNCE


def test_a_stream_that_came_and_went_between_two_looks_brings_the_plugin_watcher_a_new_socket() -> None:
    state, action = watched(State(Phase.REGISTERING), Facts(1.0, opened=1), lambda: 1.0)
    assert (state.phase, action, wake_at(state)) == (Phase.EXPECTING, Action.NONE, 1.0 + REDIAL)
    assert watched(state, Facts(1.0 + REDIAL, opened=1), lambda: 1.0)[1] is Action.RETIRE


def test_a_plugin_watcher_that_takes_sockets_and_opens_no_stream_gets_new_ones_ever_more_slowly() -> None:
    state, waits = State(), []
    for _ in range(6):
        state, action = watched(state, Facts(0.0), lambda: 1.0)
        assert action is Action.ANNOUNCE
        state, action = watched(state, Facts(0.0, outcome=Outcome.ACCEPTED), lambda: 1.0)
        assert (state.phase, action) == (Phase.EXPECTING, Action.NONE)
        waits.append(state.patience)
        state, action = watched(state, Facts(state.patience, outcome=Outcome.ACCEPTED), lambda: 1.0)
        assert action is Action.RETIRE
        state = replace(state, not_before=0.0)
    assert waits == [REDIAL, 2 * REDIAL, 4 * REDIAL, 8 * REDIAL, EXPECT, EXPECT]
    state, _ = watched(replace(state, phase=Phase.REGISTERING), Facts(1.0, streams=1, opened=1, outcome=Outcome.ACCEPTED), lambda: 1.0)
    assert (state.phase, state.failures) == (Phase.SERVING, 0)


def test_a_watched_socket_that_was_removed_is_replaced_once_its_stream_has_ended() -> None:
    state = State(Phase.SERVING)
    assert watched(state, Facts(1.0, intact=False, streams=1, opened=1), lambda: 1.0)[1] is Action.NONE
    assert watched(state, Facts(1.0, intact=False, opened=1), lambda: 1.0)[1] is Action.RETIRE


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_waiting_grows_to_a_limit_and_is_never_below_half_of_it(failures: int, jitter: float) -> None:
    wait = backoff(failures, jitter)
    assert 0.0 <= wait <= BACKOFF_CAP
    assert backoff(failures, 1.0) / 2 <= wait <= backoff(failures, 1.0) <= backoff(failures + 1, 1.0)
