# SPDX-License-Identifier: Apache-2.0
"""How a resource is announced on kubelet.sock, and what becomes of an answer."""

from __future__ import annotations

import os
import queue
import re
import stat
from contextlib import ExitStack

import pytest

from deviceplugin import Device
from deviceplugin.config import ConfigError, Settings, convert
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet import endpoint, lifecycle, registration
from deviceplugin.kubelet.lifecycle import Phase
from deviceplugin.testing import Kubelet, plugin_calls
from tests.kubelet.reception import reception
from tests.kubelet.serving import RESOURCE, Rack, overlaps, service_of, serving, wait_until


def preparing(prepares: bool) -> Rack:
    return Rack("a", prepare=lambda _self, _devices: None) if prepares else Rack("a")


def test_devices_are_listed_after_one_registration(either: Kubelet) -> None:
    with serving(either, Rack("a", "b")):
        either.wait_for(RESOURCE, healthy=2)
        assert [e.detail["streams"] for e in either.events.of("register")] == [0]
        assert either.streams(RESOURCE) == 1


def test_socket_answers_before_the_kubelet_is_told(short_root: str) -> None:
    with reception(short_root) as desk, serving(short_root, Rack("a")):
        call = desk.next()
        assert call.answering
        assert call.patience > registration.REGISTER_TIMEOUT - 2
        assert (call.request.version, call.request.resource_name) == ("v1beta1", RESOURCE)
        assert re.fullmatch(r"vendor\.example_device-[0-9a-f]{8}-[0-9]+\.sock", call.request.endpoint)


def test_register_waits_longer_than_the_kubelet_dials() -> None:
    assert registration.REGISTER_TIMEOUT >= 30.0


@pytest.mark.parametrize("prepares", [True, False])
def test_register_and_the_plugin_say_the_same_options(short_root: str, prepares: bool) -> None:
    with reception(short_root) as desk, serving(short_root, preparing(prepares)) as daemon:
        said = desk.next().request.options
        assert said == service_of(daemon).registrar._handlers.options()
        assert said.pre_start_required is prepares


@pytest.mark.parametrize("prepares", [True, False])
def test_options_follow_from_what_a_plugin_overrides(kubelet: Kubelet, prepares: bool) -> None:
    with serving(kubelet, preparing(prepares)):
        kubelet.wait_for(RESOURCE, healthy=1)
        assert plugin_calls.options(kubelet, RESOURCE) == pb.DevicePluginOptions(pre_start_required=prepares, get_preferred_allocation_available=True)


def test_slow_dial_back_is_waited_for(kubelet: Kubelet) -> None:
    kubelet.faults.dial_delay = 0.5
    with serving(kubelet, Rack("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
    assert len(kubelet.events.of("register")) == 1


def test_refused_registration_is_tried_again_until_it_succeeds(either: Kubelet) -> None:
    either.faults.refuse(4)
    with serving(either, Rack("a")) as daemon:
        either.wait_for(RESOURCE, healthy=1)
        assert service_of(daemon).registrar.registrations == 5
    names = [e.detail["endpoint"] for e in either.events.of("register")]
    assert len(set(names)) == 5, "each try has a socket of its own"


@pytest.mark.parametrize(
    "refusal",
    [
        'the ResourceName "vendor.example/device" is invalid',
        'requested API version "v1beta1" is not supported by kubelet. Supported version is ["v2"]',
    ],
)
def test_refusal_for_good_is_said_and_not_hammered(short_root: str, refusal: str, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        desk = stack.enter_context(reception(short_root))
        desk.refusal = refusal
        daemon = stack.enter_context(serving(short_root, Rack("a")))
        desk.next()
        registrar = service_of(daemon).registrar
        wait_until(lambda: registrar.standing().error and registrar.standing().phase is Phase.DOWN, "the refusal")
        for _ in range(3):
            registrar.wake()
        with pytest.raises(queue.Empty):
            desk.next(0.3)
        assert "for good" in registrar.standing().error
        assert refusal in registrar.standing().error
    assert sum(refusal in record.message for record in caplog.records) == 1


def test_kubelet_that_says_yes_and_never_reads_gets_a_fresh_socket(short_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "EXPECT", 0.2)
    with reception(short_root) as desk, serving(short_root, Rack("a")):
        names = [desk.next().request.endpoint for _ in range(3)]
    assert len(set(names)) == 3


def test_registration_without_an_answer_is_not_repeated(short_root: str) -> None:
    with reception(short_root) as desk:
        desk.gate.clear()
        with serving(short_root, Rack("a")) as daemon:
            desk.next()
            service_of(daemon).registrar.wake()
            with pytest.raises(queue.Empty):
                desk.next(0.3)
            assert service_of(daemon).registrar.standing().phase is Phase.REGISTERING


def test_register_is_never_called_while_a_stream_is_alive(either: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = overlaps(monkeypatch)
    with serving(either, Rack("a", "b")) as daemon:
        either.wait_for(RESOURCE, healthy=2)
        for _ in range(20):
            service_of(daemon).registrar.wake()
        either.drop_connections(RESOURCE)
        either.wait_for_event("registered", RESOURCE, count=2)
        either.wait_for(RESOURCE, healthy=2)
    assert streams == [0, 0]


def test_options_are_answered_while_every_hook_hangs(kubelet: Kubelet) -> None:
    rack = Rack("a", allocate=lambda _self, _devices: None)
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        hooks = daemon.scanners["device"].hooks
        with hooks._lock:  # whoever wants a hook now waits
            assert plugin_calls.options(kubelet, RESOURCE).get_preferred_allocation_available


@pytest.mark.parametrize("resource", ["gpu", "Vendor.example/gpu", "a/b/c", "x.kubernetes.io/y", "vendor.example/", "requests.vendor.example/x"])
def test_name_that_the_kubelet_refuses_is_refused_at_home(kubelet: Kubelet, resource: str) -> None:
    with serving(kubelet, Rack("a", Device("b", resource=resource))) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        (skipped,) = daemon.scanners["device"].inventory.skipped
        assert resource in skipped.reason
        assert list(daemon.services) == [RESOURCE]
    with pytest.raises(ConfigError):
        convert({"version": "v1", "resources": {resource: {}}}, Settings, "test")


@pytest.mark.parametrize("resource", ["vendor.example/a", "v" * 60 + "." + "x" * 60 + ".example/" + "n" * 63, "vendor.example/A_b.c-d"])
def test_socket_name_is_short_and_means_nothing_to_a_url(resource: str) -> None:
    name = endpoint.socket_name(resource)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,75}", name)
    assert name != endpoint.socket_name(resource)


def test_long_resource_names_are_served(kubelet: Kubelet) -> None:
    resource = "v" * 60 + "." + "x" * 60 + ".example/" + "n" * 63
    with serving(kubelet, Rack("a", resource=resource, label="long")):
        kubelet.wait_for(resource, healthy=1)


def test_nobody_else_may_use_the_socket(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        path = os.path.join(kubelet.device_plugins, service_of(daemon).registrar.standing().endpoint)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_connections_have_no_age() -> None:
    options = dict(endpoint._OPTIONS)
    assert options["grpc.max_connection_age_ms"] == options["grpc.max_connection_idle_ms"] == 2**31 - 1
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == -1


def test_two_plugins_cannot_have_one_resource(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a", label="one"), Rack("b", label="two")) as daemon:
        wait_until(lambda: daemon.conflicts, "the conflict")
        kubelet.wait_for(RESOURCE, healthy=1)
        lost = "one" if "plugin one has" in daemon.conflicts[RESOURCE] else "two"
        assert set(kubelet.devices(RESOURCE)) == {"b" if lost == "one" else "a"}


def test_orderly_stop_removes_our_socket_and_no_other(kubelet: Kubelet) -> None:
    other = os.path.join(kubelet.device_plugins, "other.sock")
    os.mknod(other, stat.S_IFSOCK | 0o600)
    with serving(kubelet, Rack("a"), Rack("b", resource="vendor.example/second")):
        kubelet.wait_for(RESOURCE, healthy=1)
        kubelet.wait_for("vendor.example/second", healthy=1)
    assert {"other.sock", "kubelet.sock"} == {e.name for e in os.scandir(kubelet.device_plugins) if e.name.endswith(".sock")}
    kubelet.wait_for(RESOURCE, healthy=0, unhealthy=1)


def test_nothing_but_sockets_is_put_into_the_kubelets_directory(kubelet: Kubelet) -> None:
    rack = Rack("a")
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=1)
        rack.sicken("a")
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=1)
        ours = [e for e in os.scandir(kubelet.device_plugins) if e.name not in ("kubelet.sock", "kubelet_internal_checkpoint")]
        assert [stat.S_ISSOCK(e.stat().st_mode) for e in ours] == [True]
