# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import threading
from collections.abc import Callable

import grpc
import pytest

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.fake.conftest import Clock
from tests.kubelet.fake.scripted import RESOURCE, Refuse, Scripted, healthy, message, unhealthy

KubeletWith = Callable[..., Kubelet]


def test_each_list_replaces_the_last(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a", "b")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=2)
        plugin.relist(healthy("b") + unhealthy("c"))
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
        assert (kubelet.healthy(RESOURCE), set(kubelet.devices(RESOURCE))) == ({"b"}, {"b", "c"})
        assert (kubelet.capacity(RESOURCE), kubelet.allocatable(RESOURCE)) == (2, 1)


def test_only_the_exact_word_is_healthy(kubelet: Kubelet) -> None:
    with Scripted(kubelet, [pb.Device(ID=str(n), health=health) for n, health in enumerate(["Healthy", "healthy", "", "HEALTHY"])]) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=3)


def test_an_id_listed_twice_with_two_healths_counts_twice(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a", "a") + unhealthy("a", "b")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=2)
        assert kubelet.capacity(RESOURCE) == 3
        assert kubelet.devices(RESOURCE)["a"].health == "Unhealthy"


def test_a_message_of_4_mib_is_read_and_one_byte_more_ends_the_stream(kubelet: Kubelet) -> None:
    limit = 4 * 1024 * 1024
    frame = len(message(healthy("x" * limit))) - limit
    with Scripted(kubelet, healthy("x" * (limit - frame))) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        plugin.relist(healthy("x" * (limit - frame + 1)))
        ended = kubelet.wait_for_event("stream ended", RESOURCE)
        assert f"ResourceExhausted desc = grpc: received message larger than max ({limit + 1} vs. {limit})" in str(ended.detail["reason"])
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=1)


def test_text_that_is_not_utf8_ends_the_stream(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        plugin.send(message(healthy("zz")).replace(b"zz", b"\xff\xfe"))
        assert "code = Internal desc = grpc: failed to unmarshal" in str(kubelet.wait_for_event("stream ended", RESOURCE).detail["reason"])
        kubelet.wait_for(RESOURCE, healthy=0)


@pytest.mark.parametrize("how", ["end", "crash", "network"])
def test_the_end_of_a_stream_is_final(kubelet: Kubelet, how: str) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        ways: dict[str, Callable[[], object]] = {
            "end": plugin.end_streams,
            "crash": plugin.stop,
            "network": lambda: kubelet.drop_connections(RESOURCE),
        }
        ways[how]()
        kubelet.wait_for_event("disconnected", RESOURCE)
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=1)
        assert (kubelet.streams(RESOURCE), kubelet.capacity(RESOURCE), kubelet.allocatable(RESOURCE)) == (0, 1, 0)
        assert len(kubelet.events.of("stream opened")) == 1


def test_that_a_plugin_has_gone_can_be_waited_for(kubelet: Kubelet) -> None:
    kubelet.wait_gone(RESOURCE)  # it was never there
    with Scripted(kubelet, unhealthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=1)
        plugin.stop()
        kubelet.wait_gone(RESOURCE)
        endpoint = kubelet.endpoint(RESOURCE)
        assert endpoint is not None
        assert endpoint.stopped_at is not None
        assert kubelet.events.of("disconnected", RESOURCE)


def test_up_to_136_the_end_of_the_older_stream_closes_the_newer(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as old, Scripted(kubelet, healthy("a", "b")) as new:
        old.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        new.register()
        kubelet.wait_for(RESOURCE, healthy=2)
        assert kubelet.streams(RESOURCE) == 2
        old.stop()
        kubelet.wait_for_event("stream ended", RESOURCE, count=2)
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=2)
        assert kubelet.streams(RESOURCE) == 0
        assert [event.detail["path"] for event in kubelet.events.of("disconnected")] == [new.path]


def test_up_to_136_both_streams_overwrite_each_other(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as old, Scripted(kubelet, healthy("b", "c")) as new:
        old.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        new.register()
        kubelet.wait_for(RESOURCE, healthy=2)
        old.relist(healthy("a") + unhealthy("d", "e"))
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=2)


def test_up_to_136_a_failed_registration_leaves_a_phantom_of_the_older_stream(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(dial_timeout=0.2)
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        with pytest.raises(grpc.RpcError):
            plugin.register(endpoint="nobody.sock")
        plugin.stop()
        kubelet.wait_for_event("stream ended", RESOURCE)
    assert not kubelet.events.of("disconnected")
    assert kubelet.allocatable(RESOURCE) == 1
    assert "Allocate failed due to rpc error: code = Unavailable" in kubelet.admit(Pod.requesting(RESOURCE)).message


def test_a_registration_before_the_old_streams_end_is_noticed_is_undone_up_to_136(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as old:
        old.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        with kubelet.faults.unnoticed_stream_ends():
            old.stop()
            with Scripted(kubelet, healthy("a", "b")) as new:
                new.register()
                kubelet.wait_for(RESOURCE, healthy=2)
                kubelet.faults.release()
                kubelet.wait_for(RESOURCE, healthy=0, unhealthy=2)


def test_after_136_the_end_of_the_older_stream_leaves_the_newer_alone(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(semantics="post136")
    with Scripted(kubelet, healthy("a")) as old, Scripted(kubelet, healthy("a", "b")) as new:
        old.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        new.register()
        kubelet.wait_for(RESOURCE, healthy=2)
        old.stop()
        kubelet.wait_for_event("stream ended", RESOURCE)
        assert (kubelet.streams(RESOURCE), kubelet.allocatable(RESOURCE)) == (1, 2)
        assert kubelet.admit(Pod.requesting(RESOURCE)).ok
        new.stop()
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=2)


def test_after_136_the_same_name_and_socket_once_more_changes_nothing(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(semantics="post136")
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        plugin.register()
        assert kubelet.events.of("register ignored", RESOURCE)
        assert (kubelet.streams(RESOURCE), len(kubelet.events.of("stream opened"))) == (1, 1)


def test_a_slow_reader_takes_one_list_and_no_more(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        with kubelet.faults.slow_reader():
            plugin.relist(healthy("a", "b"))
            kubelet.wait_for(RESOURCE, healthy=2)
            plugin.relist(healthy("a", "b", "c"))
            with pytest.raises(AssertionError):
                kubelet.wait_for(RESOURCE, healthy=3, timeout=0.1)
        kubelet.wait_for(RESOURCE, healthy=3)


def test_a_resource_is_forgotten_five_minutes_after_its_plugin_and_stays_on_the_node_with_nothing(kubelet_with: KubeletWith, clock: Clock) -> None:
    kubelet = kubelet_with(clock=clock)
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
    kubelet.wait_for_event("disconnected", RESOURCE)
    clock.now += 300
    assert kubelet.node_status() == ({RESOURCE: 1}, {RESOURCE: 0})
    clock.now += 1
    assert kubelet.node_status() == ({RESOURCE: 0}, {RESOURCE: 0})
    assert kubelet.endpoint(RESOURCE) is None
    assert len(kubelet.events.of("resource removed", RESOURCE)) == 1
    with Scripted(kubelet, healthy("a", "b")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=2)
        assert kubelet.node_status() == ({RESOURCE: 2}, {RESOURCE: 2})


def test_the_checkpoint_is_written_once_per_list_and_names_healthy_devices(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a") + unhealthy("b")) as plugin:
        plugin.register()
        kubelet.wait_for_event("checkpoint written")
        plugin.relist(healthy("a", "b"))
        kubelet.wait_for_event("checkpoint written", count=2)
        assert kubelet.checkpoint.writes == 2
        with open(kubelet.checkpoint.path) as file:
            document = json.load(file)
        assert sorted(document["Data"]["RegisteredDevices"][RESOURCE]) == ["a", "b"]
        assert isinstance(document["Checksum"], int)


def test_an_unanswered_options_call_ends_with_the_kubelet(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:
        asked = threading.Event()

        def options() -> pb.DevicePluginOptions:
            asked.set()
            plugin.hold.wait(10)
            raise Refuse("too late")

        plugin.options = options
        failed: list[grpc.RpcError] = []

        def attempt() -> None:
            try:
                plugin.register()
            except grpc.RpcError as error:
                failed.append(error)

        call = threading.Thread(target=attempt)
        call.start()
        assert asked.wait(5)
        kubelet.kill()
        call.join(5)
        assert failed
