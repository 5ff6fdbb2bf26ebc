# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin._native.encoding import encode_list
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from tests.oracles import encoding as oracle

ids = st.one_of(st.text(max_size=12), st.text(min_size=100, max_size=300), st.just("é" * 9000))
nodes = st.lists(st.integers(0, 63) | st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple)
devices = st.lists(st.tuples(ids, st.booleans(), nodes), max_size=20)


def columns(rows: list[tuple[str, bool, tuple[int, ...]]]) -> tuple[list[str], list[bool], list[tuple[int, ...]]]:
    return [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


@given(devices)
def test_the_bytes_are_those_that_protobuf_writes(rows: list[tuple[str, bool, tuple[int, ...]]]) -> None:
    assert encode_list(*columns(rows)) == oracle.encode_list(*columns(rows))


def test_any_iterable_will_do() -> None:
    assert encode_list(iter(["a", "b"]), (True, False), iter([(), (1,)])) == encode_list(["a", "b"], [True, False], [(), (1,)])  # type: ignore[arg-type]


def test_a_device_without_a_known_node_has_no_topology() -> None:
    message = pb.ListAndWatchResponse.FromString(encode_list(["a", "b"], [True, True], [(), (0,)]))
    assert [d.HasField("topology") for d in message.devices] == [False, True]


def test_the_kubelets_limit_is_where_the_arithmetic_says() -> None:
    count = 4194304 // (6 + 13 + 6)  # an id of six bytes on NUMA node 1
    rows = [f"{i:06}" for i in range(count)]
    assert len(encode_list(rows, [True] * count, [(1,)] * count)) <= 4194304


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((["a"], [], [()]), ValueError),
        ((["a"], [True], []), ValueError),
        (([], [True], [()]), ValueError),
        ((["\ud800"], [True], [()]), UnicodeEncodeError),
        (([b"a"], [True], [()]), TypeError),
        ((["a"], [True], [(2**63,)]), OverflowError),
        ((["a"], [True], [("0",)]), TypeError),
        ((["a"], [True], [[0]]), TypeError),
        ((None, [True], [()]), TypeError),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[object, object, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        encode_list(*arguments)  # type: ignore[arg-type]


def test_a_list_that_another_thread_changes_meanwhile_does_no_harm() -> None:
    rows = [f"device-{i}" for i in range(500)]
    whole = encode_list(rows, [True] * 500, [()] * 500)
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            rows[:] = [f"device-{i}" for i in range(500)]

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            assert encode_list(rows, [True] * 500, [()] * 500) == whole
    finally:
        done.set()
        thread.join()
