# SPDX-License-Identifier: Apache-2.0
"""ListAndWatch streams: each gets the whole list at once and after every change, and none stands in another's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest

from deviceplugin.daemon import Daemon
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet import endpoint
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.reception import channel_to
from tests.kubelet.serving import RESOURCE, Rack, service_of, serving, wait_until


class Reader:
    """A further client of a plugin's stream; reads when told."""

    def __init__(self, path: str) -> None:
        self._channel = channel_to(path)
        self._call: Any = self._channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")(b"")

    def next(self) -> dict[str, str]:
        """The next list: health by id."""
        return {device.ID: device.health for device in pb.ListAndWatchResponse.FromString(next(self._call)).devices}

    @property
    def alive(self) -> bool:
        return bool(self._call.is_active())

    def code(self) -> grpc.StatusCode:
        """How the stream ended. Waits for the end."""
        return self._call.code()

    def close(self) -> None:
        self._call.cancel()
        self._channel.close()


@contextmanager
def readers(kubelet: Kubelet, daemon: Daemon, count: int) -> Iterator[list[Reader]]:
    path = os.path.join(kubelet.device_plugins, service_of(daemon).registrar.standing().endpoint)
    opened = [Reader(path) for _ in range(count)]
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


def test_stream_begins_with_the_whole_list_and_stays_open(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a", "b")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        with readers(kubelet, daemon, 1) as (reader,):
            assert reader.next() == {"a": "Healthy", "b": "Healthy"}
            assert reader.alive
        assert kubelet.streams(RESOURCE) == 1


def test_second_stream_is_served_as_the_first_and_ends_neither(either: Kubelet) -> None:
    rack = Rack("a", "b")
    with serving(either, rack) as daemon:
        either.wait_for(RESOURCE, healthy=2)
        with readers(either, daemon, 2) as (first, second):
            assert first.next() == second.next() == {"a": "Healthy", "b": "Healthy"}
            rack.sicken("a")
            assert first.next() == second.next() == {"a": "Unhealthy", "b": "Healthy"}
            either.wait_for(RESOURCE, healthy=1, unhealthy=1)
            assert first.alive
            assert second.alive
        assert either.streams(RESOURCE) == 1
        rack.put("a")
        either.wait_for(RESOURCE, healthy=2)
    assert len(either.events.of("register")) == 1


def test_end_of_a_second_stream_calls_for_no_registration(either: Kubelet) -> None:
    with serving(either, Rack("a")) as daemon:
        either.wait_for(RESOURCE, healthy=1)
        registrar = service_of(daemon).registrar
        with readers(either, daemon, 1) as (reader,):
            reader.next()
        wait_until(lambda: registrar.standing().streams == 1, "the second stream's end")
        assert either.streams(RESOURCE) == 1
    assert len(either.events.of("register")) == 1


def test_kubelet_that_does_not_read_holds_up_nobody_and_then_sees_the_last_state(kubelet: Kubelet) -> None:
    rack = Rack(*(f"device-{n}" for n in range(2000)))
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2000)
        with kubelet.faults.slow_reader():
            rack.sicken("device-1")  # the message in hand
            kubelet.wait_for(RESOURCE, healthy=1999)
            for n in range(2, 8):
                rack.sicken(f"device-{n}")
            wait_until(lambda: service_of(daemon).cell.get().generation >= 3, "later lists")
            assert kubelet.admit(Pod.requesting(RESOURCE, 3))
        kubelet.wait_for(RESOURCE, healthy=1993, unhealthy=7)


def test_client_that_never_reads_does_not_starve_the_kubelet(kubelet: Kubelet) -> None:
    rack = Rack(*(f"device-{n}" for n in range(1000)))
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1000)
        with readers(kubelet, daemon, 3):
            for n in range(5):
                rack.sicken(f"device-{n}")
                kubelet.wait_for(RESOURCE, healthy=999 - n)
            assert kubelet.admit(Pod.requesting(RESOURCE))


def test_leaked_streams_do_not_starve_allocate(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a", "b")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        with readers(kubelet, daemon, endpoint.MAX_STREAMS - 1) as leaked:
            for one in leaked:
                assert len(one.next()) == 2
            assert kubelet.admit(Pod.requesting(RESOURCE))
            assert service_of(daemon).registrar.standing().streams == endpoint.MAX_STREAMS
            with readers(kubelet, daemon, 1) as (one_more,):
                assert one_more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert all(one.alive for one in leaked)
            assert kubelet.admit(Pod.requesting(RESOURCE, name="second"))
        wait_until(lambda: service_of(daemon).registrar.standing().streams == 1, "the leaked streams' end")


def test_thread_of_an_abandoned_stream_is_given_back(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        for _ in range(3):
            with readers(kubelet, daemon, 20) as opened:
                for one in opened:
                    one.next()
            wait_until(lambda: service_of(daemon).registrar.standing().streams == 1, "the streams' end")
        assert sum(thread.name.startswith("rpc-") for thread in threading.enumerate()) <= endpoint.WORKERS


def test_no_list_is_sent_without_a_change(kubelet: Kubelet) -> None:
    rack = Rack("a", "b")
    with serving(kubelet, rack):
        kubelet.wait_until(lambda: kubelet.checkpoint.writes > 0, "the first checkpoint")
        writes = kubelet.checkpoint.writes
        for _ in range(3):
            rack.published()
        rack.put("c")
        kubelet.wait_for_event("list", RESOURCE, count=2)
        kubelet.wait_until(lambda: kubelet.checkpoint.writes > writes, "the checkpoint")
    lists = kubelet.events.of("list", RESOURCE)
    assert [e.detail["repeated"] for e in lists] == [False, False]
    assert kubelet.checkpoint.writes == writes + 1


def test_orderly_stop_ends_the_stream(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
    (ended,) = kubelet.events.of("stream ended", RESOURCE) or [kubelet.wait_for_event("stream ended", RESOURCE)]
    assert ended.detail["reason"] == "EOF"


def test_end_of_a_stream_is_sent_before_the_client_is_told_to_go(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it may be writing while we hang up, and would take the end for a broken connection."""
    open_when_told: list[int] = []
    with ExitStack() as clients:
        with serving(kubelet, Rack("a")) as daemon:
            kubelet.wait_for(RESOURCE, healthy=1)
            opened = clients.enter_context(readers(kubelet, daemon, 2))
            for reader in opened:
                reader.next()
            served = service_of(daemon).registrar._endpoint
            assert served is not None
            assert len(served._open) == 3
            stop, still_open = served._server.stop, served._open

            def told(grace: float) -> Any:
                open_when_told.append(len(still_open))
                return stop(grace)

            monkeypatch.setattr(served._server, "stop", told)
        assert [reader.code() for reader in opened] == [grpc.StatusCode.OK] * 2
    assert open_when_told == [0]


@pytest.mark.parametrize("size", [1, 5000])
def test_list_replaces_the_last_one_as_a_whole(kubelet: Kubelet, size: int) -> None:
    rack = Rack(*(f"d{n}" for n in range(size)))
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=size)
        rack.put("extra")
        assert kubelet.wait_for_event("list", RESOURCE, count=2).detail["listed"] == size + 1
