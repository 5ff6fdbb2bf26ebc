# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin.cell import Cell
from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet.handlers import Handlers
from deviceplugin.model import Device, Sharing
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET, Widgets, snapshot_of

DEVICES = [Device(f"d{i}", unit=f"u{i % 3}", numa_nodes=[i % 2]) for i in range(6)]

Choice = Callable[[Sequence[Device], Sequence[Device], int], Any]


class Choosing(Widgets):
    choice: Choice = staticmethod(lambda available, _required, size: available[:size])

    def prefer(self, available: Sequence[Device], required: Sequence[Device], size: int) -> Iterable[Device]:
        chosen: Iterable[Device] = self.choice(available, required, size)
        return chosen


def serving(snapshot: Snapshot, policy: str = "spread", tally: Tally | None = None) -> Handlers:
    return Handlers(WIDGET, Cell(snapshot), tally or Tally(), lambda: policy)


def choosing(choice: Choice, *, replicas: int = 1, deadline: float | None = None) -> Handlers:
    plugin = Choosing()
    plugin.choice = choice
    return serving(snapshot_of(*DEVICES, plugin=plugin, sharing=Sharing(replicas), deadline=deadline))


def ask(handlers: Handlers, available: Iterable[str], required: Iterable[str], size: int) -> list[str]:
    request = pb.ContainerPreferredAllocationRequest(available_deviceIDs=available, must_include_deviceIDs=required, allocation_size=size)
    response = handlers.preferred(pb.PreferredAllocationRequest(container_requests=[request]))
    (answer,) = response.container_responses
    return list(answer.deviceIDs)


def holds(answer: list[str], available: set[str], required: set[str], size: int) -> None:
    """What the kubelet needs, for questions that it asks and for any other."""
    assert len(answer) == len(set(answer))
    assert required <= set(answer)
    assert set(answer) <= available | required
    assert len(answer) == max(len(required), min(size, len(available | required)))


IDS = st.lists(st.sampled_from([*(f"d{i}" for i in range(6)), "ghost", ""]), max_size=8)
SIZES = st.one_of(st.integers(-3, 9), st.sampled_from([2**31 - 1, -(2**31)]))


@given(IDS, IDS, SIZES, st.sampled_from(["spread", "pack", "any", "no such policy"]), st.booleans())
def test_the_answer_is_as_large_as_asked_distinct_and_has_what_is_required(
    available: list[str], required: list[str], size: int, policy: str, empty: bool
) -> None:
    tally = Tally()
    handlers = serving(snapshot_of(*([] if empty else DEVICES), Device("z")), policy, tally)
    answer = ask(handlers, available, required, size)
    holds(answer, set(available), set(required), size)
    assert ask(handlers, available[::-1], required[::-1], size) == answer
    assert tally.value("preferred_failures", resource=WIDGET) == (2 if policy == "no such policy" else 0)


RUBBISH = st.one_of(
    st.none(),
    st.just(7),
    st.lists(st.one_of(st.sampled_from([*DEVICES, Device("ghost")]), st.sampled_from([None, 3, "d0", Device]), st.just(Device(["d0"]))), max_size=8),  # type: ignore[arg-type]
    st.sampled_from([ValueError("no"), SystemExit(1), KeyError("d0")]),
)


@settings(deadline=None)
@given(IDS, IDS, SIZES, RUBBISH)
def test_whatever_the_plugin_answers_the_kubelet_gets_what_it_needs(available: list[str], required: list[str], size: int, rubbish: Any) -> None:
    def choice(*_question: object) -> Any:
        if isinstance(rubbish, BaseException):
            raise rubbish
        return rubbish

    handlers = choosing(choice)
    answer = ask(handlers, available, required, size)
    holds(answer, set(available), set(required), size)
    handlers.snapshots.get().hooks.close()


def test_a_usable_choice_of_the_plugin_is_followed() -> None:
    handlers = choosing(lambda available, _required, size: list(available)[-size:])
    assert sorted(ask(handlers, ["d0", "d1", "d2", "d3"], [], 2)) == ["d2", "d3"]


def test_the_plugin_is_offered_the_free_shares_and_the_required_devices() -> None:
    seen: list[tuple[list[str], list[str], int]] = []

    def choice(available: Sequence[Device], required: Sequence[Device], size: int) -> Iterable[Device]:
        seen.append(([one.id for one in available], [one.id for one in required], size))
        return [available[0], available[-1], available[-1]]

    answer = ask(choosing(choice, replicas=2), ["d0::0", "d0::1", "d1::0", "d1::1", "d2::1"], ["d1::0"], 3)
    assert seen == [(["d1", "d0", "d0", "d1", "d2"], ["d1"], 3)]
    assert "d1::0" in answer
    assert len(answer) == 3


def test_a_plugin_that_leaves_out_what_is_required_still_gets_it() -> None:
    handlers = choosing(lambda available, _required, _size: [one for one in available if one.id == "d4"])
    assert sorted(ask(handlers, ["d3", "d4", "d5"], ["d3"], 2)) == ["d3", "d4"]


def test_required_ids_that_the_plugin_cannot_know_are_kept() -> None:
    plugin, tally = Choosing(), Tally()
    handlers = serving(snapshot_of(*DEVICES, plugin=plugin), tally=tally)
    assert ask(handlers, ["ghost", "d0"], ["ghost"], 1) == ["ghost"]
    assert tally.value("preferred_failures", resource=WIDGET) == 0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_plugin_that_hangs_leaves_the_choice_to_the_policy(gate: threading.Event) -> None:
    assert len(ask(choosing(lambda *_question: gate.wait(), deadline=0.02), ["d0", "d1", "d2"], [], 2)) == 2


def test_each_container_is_answered_in_order() -> None:
    one = pb.ContainerPreferredAllocationRequest(available_deviceIDs=["d0"], allocation_size=1)
    two = pb.ContainerPreferredAllocationRequest(available_deviceIDs=["d1", "d2"], allocation_size=2)
    response = serving(snapshot_of(*DEVICES)).preferred(pb.PreferredAllocationRequest(container_requests=[one, two]))
    assert [list(each.deviceIDs) for each in response.container_responses] == [["d0"], ["d1", "d2"]]


def test_the_policy_counts_that_is_configured_now() -> None:
    policy = "pack"
    handlers = Handlers(WIDGET, Cell(snapshot_of(*DEVICES[:3], sharing=Sharing(2))), Tally(), lambda: policy)
    slots = [f"d{i}::{k}" for i in range(3) for k in (0, 1)]
    packed = {one.split("::")[0] for one in ask(handlers, slots, [], 2)}
    policy = "spread"
    spread = {one.split("::")[0] for one in ask(handlers, slots, [], 2)}
    assert (len(packed), len(spread)) == (1, 2)
