# SPDX-License-Identifier: Apache-2.0
"""What strangers and extremes do to our socket: noise, connections that say nothing, and requests of a size that no gRPC default expects."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import psutil
import pytest

from deviceplugin import Device
from deviceplugin.daemon import Daemon
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Kubelet, Pod, plugin_calls
from tests.kubelet.reception import channel_to
from tests.kubelet.serving import RESOURCE, Rack, service_of, serving, wait_until

SERVICE = "/v1beta1.DevicePlugin/"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"

NOISE = {
    "http/1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "zeros": bytes(65536),
    "random": random.Random(1).randbytes(65536),
    "half a preface": PREFACE[:10],
    "preface only": PREFACE,
    "frame longer than it may be": PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(4096),
    "frame for stream 0": PREFACE + SETTINGS + b"\0\0\4\0\0\0\0\0\0" + bytes(4),
    "endless header": PREFACE + SETTINGS + b"\0\x40\0\1\0\0\0\0\1" + b"\x40\x7f" + b"\xff" * 16382,
}


def path_of(kubelet: Kubelet, daemon: Daemon) -> str:
    return os.path.join(kubelet.device_plugins, service_of(daemon).registrar.standing().endpoint)


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5.0)
        client.connect(path)
        yield client


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_on_the_socket_disturbs_nobody(kubelet: Kubelet, noise: bytes) -> None:
    rack = Rack("a")
    with serving(kubelet, rack) as daemon, ExitStack() as clients:
        kubelet.wait_for(RESOURCE, healthy=1)
        for _ in range(5):
            client = clients.enter_context(connected(path_of(kubelet, daemon)))
            try:
                client.sendall(noise)
            except OSError:
                continue  # the server has had enough of it already
        assert kubelet.admit(Pod.requesting(RESOURCE))
        rack.put("b")
        kubelet.wait_for(RESOURCE, healthy=2)
        assert kubelet.streams(RESOURCE) == 1
    assert len(kubelet.events.of("register")) == 1


def test_hundred_silent_connections_hold_up_nobody(kubelet: Kubelet) -> None:
    process = psutil.Process()
    with serving(kubelet, Rack("a", "b")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        with ExitStack() as clients:
            for n in range(100):
                client = clients.enter_context(connected(path_of(kubelet, daemon)))
                if n % 2:
                    client.sendall(PREFACE)
            assert kubelet.admit(Pod.requesting(RESOURCE))
            assert process.num_threads() < 200
        kubelet.restart()
        kubelet.wait_for(RESOURCE, healthy=2)


def test_clients_that_come_and_go_leave_nothing(kubelet: Kubelet) -> None:
    process = psutil.Process()
    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        path = path_of(kubelet, daemon)
        assert plugin_calls.options(kubelet, RESOURCE)
        before = process.num_fds()
        for _ in range(300):
            with connected(path) as client:
                client.sendall(PREFACE + SETTINGS)
        # gRPC notices in its own time that a client went, and closes its end then; it keeps some threads with a descriptor each.
        wait_until(
            lambda: process.num_fds() <= before + 8, "the descriptors of 300 clients to go", 20.0, lambda: f"{process.num_fds() - before} left"
        )
        assert plugin_calls.options(kubelet, RESOURCE)
        assert kubelet.streams(RESOURCE) == 1


@pytest.mark.parametrize("method", ["Allocate", "GetPreferredAllocation", "PreStartContainer", "ListAndWatch"])
def test_bytes_that_are_no_message_are_an_error_of_the_caller(kubelet: Kubelet, method: str) -> None:
    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        with channel_to(path_of(kubelet, daemon)) as channel:
            call = channel.unary_stream if method == "ListAndWatch" else channel.unary_unary
            with pytest.raises(grpc.RpcError) as caught:
                list(call(SERVICE + method)(b"\xff\xff\xff", timeout=5.0))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert kubelet.admit(Pod.requesting(RESOURCE))


def test_method_that_does_not_exist_is_said_not_to(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        with channel_to(path_of(kubelet, daemon)) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(SERVICE + "Deallocate")(b"", timeout=5.0)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_five_thousand_devices_are_listed_chosen_and_given(kubelet: Kubelet) -> None:
    ids = [f"d{n:04}" for n in range(5000)]
    with serving(kubelet, Rack(*(Device(one, envs={"LAST": one}) for one in ids))):
        kubelet.wait_for(RESOURCE, healthy=5000)
        pod = Pod.requesting(RESOURCE, 2500)
        assert kubelet.admit(pod)
        assert len(kubelet.held(pod)) == 2500
        (answer,) = plugin_calls.allocate(kubelet, RESOURCE, [ids])
        assert answer.envs["LAST"] == ",".join(ids)
        assert plugin_calls.prefer(kubelet, RESOURCE, ids[::-1], ids[:10], 20)[:10] == ids[:10]


def test_allocate_for_ids_by_the_ten_thousand_that_do_not_exist_is_a_short_error(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
        with pytest.raises(Exception, match="and 9995 more") as caught:
            plugin_calls.allocate(kubelet, RESOURCE, [[f"no-such-device-{n}" for n in range(10_000)]])
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("size", [-1, 0, 1, 2**31 - 1])
def test_sizes_that_make_no_sense_are_answered(kubelet: Kubelet, size: int) -> None:
    with serving(kubelet, Rack("a", "b")):
        kubelet.wait_for(RESOURCE, healthy=2)
        assert plugin_calls.prefer(kubelet, RESOURCE, [], [], size) == []
        assert "b" in plugin_calls.prefer(kubelet, RESOURCE, ["a"], ["b"], size)
        assert len(plugin_calls.prefer(kubelet, RESOURCE, ["a", "b", "a"], [], size)) == min(max(size, 0), 2)


def test_request_for_no_container_is_answered_with_none(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        assert plugin_calls.allocate(kubelet, RESOURCE, []) == []
        assert plugin_calls.allocate(kubelet, RESOURCE, [[]]) == [pb.ContainerAllocateResponse()]
        with channel_to(path_of(kubelet, daemon)) as channel:
            assert channel.unary_unary(SERVICE + "GetPreferredAllocation")(b"", timeout=5.0) == b""
