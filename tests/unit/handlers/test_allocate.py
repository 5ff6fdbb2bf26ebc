# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.cell import Cell
from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet.handlers import Handlers, Refused, sum_edits, to_response
from deviceplugin.model import Device, DeviceNode, Edits, Mount, Sharing
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET, Allocating, Shelf, sick, snapshot_of


def handlers(snapshot: Snapshot) -> Handlers:
    return Handlers(WIDGET, Cell(snapshot), Tally())


def ask(*containers: Sequence[str]) -> pb.AllocateRequest:
    return pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids) for ids in containers])


def refused(serving: Handlers, *containers: Sequence[str]) -> Refused:
    with pytest.raises(Refused) as caught:
        serving.allocate(ask(*containers))
    assert len(str(caught.value)) < 600, "it goes into the pod's status"
    assert "\n" not in str(caught.value)
    return caught.value


def device(name: str, **fields: Any) -> Device:
    return Device(name, nodes=[f"/dev/{name}"], **fields)


def allocating(answer: Callable[[Sequence[Device]], Any], *devices: Device, deadline: float | None = None) -> Handlers:
    plugin = Allocating()
    plugin.answer = answer
    return handlers(snapshot_of(*(devices or [device("a"), device("b")]), plugin=plugin, deadline=deadline))


def test_each_container_gets_its_own_answer_in_order() -> None:
    response = handlers(snapshot_of(*map(device, "abc"))).allocate(ask(["c", "a"], [], ["b"]))
    assert [[one.host_path for one in each.devices] for each in response.container_responses] == [["/dev/a", "/dev/c"], [], ["/dev/b"]]


def test_a_question_for_nobody_has_no_answers() -> None:
    assert list(handlers(snapshot_of(device("a"))).allocate(ask()).container_responses) == []


def test_an_empty_question_has_an_empty_answer_and_asks_no_plugin() -> None:
    def fail(_devices: Sequence[Device]) -> Edits:
        raise AssertionError

    assert allocating(fail).allocate(ask([])) == pb.AllocateResponse(container_responses=[pb.ContainerAllocateResponse()])


def test_unknown_ids_are_named_and_nothing_is_allocated() -> None:
    serving = handlers(snapshot_of(device("a")))
    error = refused(serving, ["spectre", "a", "ghost"])
    assert (error.code, str(error)) == ("NOT_FOUND", f"{WIDGET} has no device 'ghost', 'spectre'")
    assert refused(serving, ["a"], ["ghost"]).code == "NOT_FOUND"


def test_of_many_unknown_ids_a_few_are_named() -> None:
    error = refused(handlers(snapshot_of(device("a"))), [f"{i:04}" + "x" * 300 for i in range(5000)])
    assert "and 4995 more" in str(error)


def test_thousands_of_devices_are_allocated_each_once() -> None:
    names = [f"d{i:04}" for i in range(5000)]
    (answer,) = handlers(snapshot_of(*map(device, names))).allocate(ask(names[::-1])).container_responses
    assert [one.host_path for one in answer.devices] == [f"/dev/{name}" for name in names]


def test_a_plugin_sees_a_device_once_however_many_of_its_shares_are_there() -> None:
    seen = []
    plugin = Allocating()
    plugin.answer = lambda devices: seen.append([one.id for one in devices]) or Edits()  # type: ignore[func-returns-value]
    serving = handlers(snapshot_of(device("b"), device("a"), plugin=plugin, sharing=Sharing(replicas=3)))
    serving.allocate(ask(["b::2", "a::1", "b::0", "a::0", "b::0"]))
    assert seen == [["a", "b"]]


def test_a_container_may_be_held_to_one_share() -> None:
    serving = handlers(snapshot_of(device("a"), device("b"), sharing=Sharing(2, fail_requests_greater_than_one=True)))
    assert len(serving.allocate(ask(["a::0"], ["a::1"])).container_responses) == 2
    error = refused(serving, ["a::0", "b::0"])
    assert error.code == "INVALID_ARGUMENT"
    assert "asked for 2 shares" in str(error)


def test_devices_that_are_not_shared_may_be_several() -> None:
    serving = handlers(snapshot_of(device("a"), device("b"), sharing=Sharing(1, fail_requests_greater_than_one=True)))
    assert len(serving.allocate(ask(["a", "b"])).container_responses[0].devices) == 2


def test_a_device_that_is_gone_cannot_be_allocated() -> None:
    shelf = Shelf()
    shelf.put(device("a"), device("b"))
    shelf.put(device("b"))
    error = refused(handlers(shelf.snapshot()), ["a", "b"])
    assert (error.code, str(error)) == ("FAILED_PRECONDITION", f"{WIDGET}: 'a' is no longer there")


def test_an_unhealthy_device_is_allocated_since_a_container_may_hold_it_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (answer,) = handlers(snapshot_of(sick("a", "too hot", nodes=["/dev/a"]))).allocate(ask(["a"])).container_responses
    assert answer.devices[0].host_path == "/dev/a"
    assert "a (too hot)" in caplog.text


def fail(error: BaseException) -> Callable[[Sequence[Device]], Edits]:
    def answer(_devices: Sequence[Device]) -> Edits:
        raise error

    return answer


def test_a_plugin_that_raises_is_named_with_the_first_line_of_its_reason() -> None:
    error = refused(allocating(fail(RuntimeError("card is busy\nsecret detail"))), ["a"])
    assert (error.code, str(error)) == ("INTERNAL", "plugin widgets: allocate() failed: RuntimeError: card is busy")


def test_a_plugin_that_raises_an_essay_is_cut_short() -> None:
    assert "failed: SystemExit: xxx" in str(refused(allocating(fail(SystemExit("x" * 100_000))), ["a"]))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_plugin_that_hangs_is_given_up_in_time(gate: threading.Event) -> None:
    error = refused(allocating(lambda _devices: gate.wait(), deadline=0.02), ["a"])
    assert (error.code, str(error)) == ("DEADLINE_EXCEEDED", "plugin widgets: allocate() did not answer within 0.02 s")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        Edits,
        Edits(envs={"A": 1}),  # type: ignore[dict-item]
        Edits(envs={"A": "\ud800"}),
        Edits(nodes=("/dev/x",)),  # type: ignore[arg-type]
        Edits(nodes=(DeviceNode(3),)),  # type: ignore[arg-type]
        Edits(mounts=("/x",)),  # type: ignore[arg-type]
        Edits(cdi=(7,)),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_cannot_be_sent_is_refused_and_keeps_its_contents_to_itself(answer: Any) -> None:
    error = refused(allocating(lambda _devices: answer), ["a"])
    assert error.code == "INTERNAL"
    assert "plugin widgets: allocate() answered" in str(error)
    assert "/dev/x" not in str(error)


def test_the_plugins_answer_is_sent_as_it_is() -> None:
    edits = Edits(
        envs={"B": "2", "A": "1"},
        nodes=(DeviceNode("/dev/x", "/dev/y", "rwm"),),
        mounts=(Mount("/lib/a", "/lib/b"), Mount("/run", read_only=False)),
        annotations={"k": "v"},
        cdi=("v.example/gpu=0",),
    )
    (answer,) = allocating(lambda _devices: edits).allocate(ask(["a"])).container_responses
    assert dict(answer.envs) == {"A": "1", "B": "2"}
    assert [(one.host_path, one.container_path, one.permissions) for one in answer.devices] == [("/dev/x", "/dev/y", "rwm")]
    assert [(one.host_path, one.container_path, one.read_only) for one in answer.mounts] == [("/lib/a", "/lib/b", True), ("/run", "/run", False)]
    assert (dict(answer.annotations), [one.name for one in answer.cdi_devices]) == ({"k": "v"}, ["v.example/gpu=0"])


def test_what_devices_carry_is_summed() -> None:
    shared = Mount("/lib")
    edits = sum_edits(
        [
            Device(
                "a", nodes=["/dev/ctl", "/dev/a"], mounts=[shared], envs={"IDS": "a", "MODE": "x"}, annotations={"n": "1"}, cdi=["v/c=all", "v/c=a"]
            ),
            Device(
                "b", nodes=["/dev/ctl", "/dev/b"], mounts=[shared], envs={"IDS": "b", "MODE": "x"}, annotations={"n": "2"}, cdi=["v/c=all", "v/c=b"]
            ),
        ]
    )
    assert edits.envs == {"IDS": "a,b", "MODE": "x"}
    assert edits.annotations == {"n": "1,2"}
    assert [node.path for node in edits.nodes] == ["/dev/ctl", "/dev/a", "/dev/b"]
    assert (edits.mounts, edits.cdi) == ((shared,), ("v/c=all", "v/c=a", "v/c=b"))


NAMES = [f"d{i}" for i in range(6)]
POOL = snapshot_of(*[Device(name, nodes=[f"/dev/{name}"], envs={"IDS": name, "ONE": "1"}) for name in NAMES], sharing=Sharing(2))
SLOTS = st.lists(st.sampled_from([f"{name}::{k}" for name in NAMES for k in (0, 1)]))


@given(st.lists(SLOTS, max_size=3), st.randoms(use_true_random=False))
def test_one_question_has_one_answer_whatever_its_order_and_however_often(containers: list[list[str]], random: Any) -> None:
    serving = handlers(POOL)
    first = serving.allocate(ask(*containers))
    shuffled = [random.sample(ids, len(ids)) + ids[:1] for ids in containers]
    again = serving.allocate(ask(*shuffled))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    for ids, answer in zip(containers, first.container_responses, strict=True):
        devices = sorted({one.split("::")[0] for one in ids})
        assert [one.host_path for one in answer.devices] == [f"/dev/{one}" for one in devices]
        assert dict(answer.envs) == ({"IDS": ",".join(devices), "ONE": "1"} if devices else {})


def test_the_wire_form_of_nothing_is_empty() -> None:
    assert to_response(Edits()).SerializeToString() == b""
