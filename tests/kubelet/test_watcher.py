# SPDX-License-Identifier: Apache-2.0
"""Registration through plugins_registry: the kubelet finds a socket there and asks who it is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from deviceplugin.kubelet import pluginregistration_v1_pb2 as reg
from deviceplugin.kubelet.lifecycle import Phase
from deviceplugin.testing import Kubelet, Pod
from deviceplugin.testing.clients import Clients, PluginClient
from tests.kubelet.reception import unary
from tests.kubelet.serving import RESOURCE, Rack, put_files, running, service_of, serving, wait_until

SERVICE = "/pluginregistration.Registration/"


@pytest.fixture(params=["v136", "post136"])
def watching(request: pytest.FixtureRequest, short_root: str) -> Iterator[Kubelet]:
    """A kubelet that looks at its registry ten times as often as the real one."""
    with Kubelet(short_root, semantics=request.param, watch_interval=0.1) as kubelet:
        yield kubelet


def sockets(kubelet: Kubelet) -> list[str]:
    return sorted(os.listdir(kubelet.plugins_registry))


def test_socket_is_found_and_nothing_is_registered_on_kubelet_sock(watching: Kubelet) -> None:
    with serving(watching, Rack("a", "b"), registration="watcher"):
        watching.wait_for(RESOURCE, healthy=2)
        assert watching.admit(Pod.requesting(RESOURCE))
        assert not watching.events.of("register")
        assert not [name for name in os.listdir(watching.device_plugins) if name.startswith("vendor")]


def test_socket_appears_complete_under_a_name_without_a_dot(watching: Kubelet) -> None:
    with serving(watching, Rack("a"), registration="watcher"):
        watching.wait_for(RESOURCE, healthy=1)
        (name,) = sockets(watching)
        assert not name.startswith(".")
    assert len(watching.events.of("plugin found")) == 1
    assert not watching.events.of("plugin registration failed")


def test_kubelet_restart_needs_nothing_from_us(watching: Kubelet) -> None:
    with serving(watching, Rack("a"), registration="watcher") as daemon:
        watching.wait_for(RESOURCE, healthy=1)
        before = sockets(watching)
        for _ in range(3):
            watching.restart()
            watching.wait_for(RESOURCE, healthy=1)
        assert sockets(watching) == before
        assert service_of(daemon).registrar.registrations == 1


def test_broken_stream_brings_a_new_socket(watching: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet asks again only where a socket is new."""
    monkeypatch.setattr("deviceplugin.kubelet.lifecycle.REDIAL", 0.2)
    with serving(watching, Rack("a"), registration="watcher"):
        for i in range(1, 3):
            watching.wait_for(RESOURCE, healthy=1)
            before = sockets(watching)
            watching.drop_connections(RESOURCE)
            watching.wait_for_event("plugin found", count=i + 1)
            watching.wait_for(RESOURCE, healthy=1)
            assert len(sockets(watching)) == 1
            assert sockets(watching) != before


def test_socket_that_was_registered_and_got_no_stream_is_followed_by_a_new_one(watching: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 1.36 the kubelet closes the connection when it sees, only now, that the socket of the instance before has gone."""
    monkeypatch.setattr("deviceplugin.kubelet.lifecycle.REDIAL", 0.2)
    stream, closed = Clients._run, list[str]()

    def run(self: Clients, client: PluginClient) -> None:
        if closed:
            stream(self, client)
        else:
            closed.append(client.path)
            self._disconnect(client)

    monkeypatch.setattr(Clients, "_run", run)
    with serving(watching, Rack("a"), registration="watcher"):
        watching.wait_for(RESOURCE, healthy=1)
        assert closed == [watching.events.of("registered", RESOURCE)[0].detail["path"]]
        assert len(watching.events.of("plugin found", RESOURCE)) == 2


def test_removed_socket_is_made_anew(watching: Kubelet) -> None:
    with serving(watching, Rack("a"), registration="watcher"):
        watching.wait_for(RESOURCE, healthy=1)
        os.unlink(os.path.join(watching.plugins_registry, sockets(watching)[0]))
        watching.wait_for_event("plugin gone", RESOURCE)
        watching.wait_for_event("plugin found", RESOURCE, count=2)
        watching.wait_for(RESOURCE, healthy=1)


def test_orderly_stop_withdraws_the_socket(watching: Kubelet) -> None:
    with serving(watching, Rack("a"), registration="watcher"):
        watching.wait_for(RESOURCE, healthy=1)
    assert sockets(watching) == []
    watching.wait_for_event("plugin gone", RESOURCE)


def test_kubelet_that_comes_later_finds_the_socket(short_root: str) -> None:
    os.makedirs(os.path.join(short_root, "var/lib/kubelet/plugins_registry"))
    with serving(short_root, Rack("a"), registration="watcher") as daemon:
        wait_until(lambda: service_of(daemon).registrar.standing().phase is Phase.REGISTERING, "the socket")
        with Kubelet(short_root, watch_interval=0.1) as kubelet:
            kubelet.wait_for(RESOURCE, healthy=1)


def test_who_asks_is_told_at_once_while_hooks_hang(watching: Kubelet) -> None:
    with serving(watching, Rack("a"), registration="watcher") as daemon:
        watching.wait_for(RESOURCE, healthy=1)
        path = os.path.join(watching.plugins_registry, sockets(watching)[0])
        with daemon.scanners["device"].hooks._lock:
            info = unary(path, SERVICE + "GetInfo", reg.InfoRequest(), reg.PluginInfo.FromString, timeout=0.9)
        assert info == reg.PluginInfo(type="DevicePlugin", name=RESOURCE, supported_versions=["v1beta1"])


def test_refusal_is_said_in_the_kubelets_words(watching: Kubelet, caplog: pytest.LogCaptureFixture) -> None:
    said = "RegisterPlugin error -- plugin validation failed with err: manager version, v1beta1, is not among plugin supported versions [v0]"
    with serving(watching, Rack("a"), registration="watcher") as daemon:
        watching.wait_for(RESOURCE, healthy=1)
        path = os.path.join(watching.plugins_registry, sockets(watching)[0])
        for _ in range(3):
            status = reg.RegistrationStatus(plugin_registered=False, error=said)
            unary(path, SERVICE + "NotifyRegistrationStatus", status, reg.RegistrationStatusResponse.FromString)
        assert service_of(daemon).registrar.standing().error == said
    assert sum(said in record.getMessage() for record in caplog.records) == 1


def test_one_resource_by_the_watcher_and_one_by_kubelet_sock(watching: Kubelet) -> None:
    other = "vendor.example/other"
    resources = {other: {"registration": "watcher"}}
    from deviceplugin.config import ResourceSettings, convert

    settings = {name: convert(raw, ResourceSettings, "test") for name, raw in resources.items()}
    with serving(watching, Rack("a"), Rack("b", resource=other), resources=settings):
        watching.wait_for(RESOURCE, healthy=1)
        watching.wait_for(other, healthy=1)
    assert {e.resource for e in watching.events.of("register")} == {RESOURCE}
    assert {e.resource for e in watching.events.of("plugin found")} == {other}


def test_killed_process_is_followed_by_another(watching: Kubelet) -> None:
    put_files(watching, "a", "b")
    for i in range(2):
        with running(watching, "--registration", "watcher"):
            watching.wait_for_event("plugin found", RESOURCE, count=i + 1)
            watching.wait_for(RESOURCE, healthy=2)
    with serving(watching, Rack("a", "b"), registration="watcher"):
        watching.wait_for_event("plugin found", RESOURCE, count=3)
        watching.wait_for(RESOURCE, healthy=2)
        wait_until(lambda: len(sockets(watching)) == 1, "the removal of what the dead left behind", 1.0)


def test_connection_without_an_authority_is_served(watching: Kubelet) -> None:
    """The watcher's ``:authority`` is the socket's path, that of kubelet.sock's registrations is ``localhost``."""
    with serving(watching, Rack("a"), registration="watcher"):
        watching.wait_for(RESOURCE, healthy=1)
        for authority in (None, "localhost", "%2Fsomewhere"):
            from deviceplugin.testing.rpc import Connection

            connection = Connection(os.path.join(watching.plugins_registry, sockets(watching)[0]), authority)
            assert connection.call(SERVICE + "GetInfo", reg.InfoRequest(), reg.PluginInfo, timeout=1.0).name == RESOURCE
            connection.close()
