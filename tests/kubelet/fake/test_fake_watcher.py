# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from deviceplugin.kubelet import pluginregistration_v1_pb2 as registration_pb
from deviceplugin.testing import Kubelet
from tests.kubelet.fake.conftest import Clock
from tests.kubelet.fake.scripted import RESOURCE, Refuse, Scripted, healthy

KubeletWith = Callable[..., Kubelet]


@pytest.fixture
def watching(kubelet_with: KubeletWith, clock: Clock) -> Kubelet:
    return kubelet_with(watch_interval=0.02, clock=clock)


def publish(kubelet: Kubelet, plugin: Scripted, name: str = "plugin.sock") -> str:
    """Moves the plugin's socket into place, which is how it should be done: complete, and at once."""
    path = os.path.join(kubelet.plugins_registry, name)
    os.rename(plugin.path, path)
    return path


def test_a_socket_in_the_registry_is_asked_registered_and_told(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a")) as plugin:
        path = publish(watching, plugin)
        watching.wait_for(RESOURCE, healthy=1)
        watching.wait_until(lambda: bool(plugin.notified), "a notification")
        assert plugin.notified == [registration_pb.RegistrationStatus(plugin_registered=True)]
        assert watching.events.of("registered")[0].detail["path"] == path


def test_a_plugin_may_serve_elsewhere(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a"), directory=watching.root) as service, Scripted(watching) as plugin:
        plugin.info.endpoint = service.path
        publish(watching, plugin)
        watching.wait_for(RESOURCE, healthy=1)


def test_sockets_in_subdirectories_are_found_and_names_with_a_dot_in_front_are_not(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a")) as hidden, Scripted(watching, healthy("x")) as plugin:
        plugin.info.name = "vendor.example/other"
        publish(watching, hidden, ".plugin.sock")
        os.mkdir(os.path.join(watching.plugins_registry, "vendor"))
        publish(watching, plugin, "vendor/plugin.sock")
        watching.wait_for("vendor.example/other", healthy=1)
        assert not watching.events.of("plugin found", RESOURCE)
        os.rename(os.path.join(watching.plugins_registry, ".plugin.sock"), os.path.join(watching.plugins_registry, "plugin.sock"))
        watching.wait_for(RESOURCE, healthy=1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"type": "Mystery"}, "RegisterPlugin error -- no handler registered for plugin type: Mystery at socket {path}"),
        (
            {"supported_versions": ["v1", "v2"]},
            "RegisterPlugin error -- plugin validation failed with err: manager version, v1beta1, is not among plugin supported versions [v1 v2]",
        ),
        (
            {"name": "x"},
            'RegisterPlugin error -- plugin validation failed with err: invalid name of device plugin socket: the ResourceName "x" is invalid',
        ),
    ],
)
def test_what_is_wrong_is_told_to_the_plugin(watching: Kubelet, change: dict[str, object], error: str) -> None:
    with Scripted(watching, healthy("a")) as plugin:
        fields = {"type": "DevicePlugin", "name": RESOURCE, "supported_versions": ["v1beta1"]} | change
        plugin.info = registration_pb.PluginInfo(**fields)  # type: ignore[arg-type]
        path = publish(watching, plugin)
        watching.wait_for_event("plugin registration failed")
        assert plugin.notified == [registration_pb.RegistrationStatus(error=error.format(path=path))]


def test_after_a_failure_the_socket_is_left_alone_for_longer_and_longer(watching: Kubelet, clock: Clock) -> None:
    asked: list[float] = []

    def info() -> registration_pb.PluginInfo:
        asked.append(clock.now)
        raise Refuse("busy")

    with Scripted(watching, healthy("a")) as plugin:
        plugin.get_info = info
        publish(watching, plugin)
        for count, pause in enumerate((0.5, 1.0, 2.0), start=1):
            watching.wait_for_event("plugin registration failed", count=count)
            clock.now += pause
            with pytest.raises(AssertionError):
                watching.wait_for_event("plugin registration failed", count=count + 1, timeout=0.1)
            clock.now += 0.01
        watching.wait_for_event("plugin registration failed", count=4)
        plugin.get_info = lambda: plugin.info
        clock.now += 200
        watching.wait_for(RESOURCE, healthy=1)


def test_a_socket_that_goes_takes_its_plugin_along(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a")) as plugin:
        path = publish(watching, plugin)
        watching.wait_for(RESOURCE, healthy=1)
        os.unlink(path)
        watching.wait_for_event("plugin gone", RESOURCE)
        watching.wait_for(RESOURCE, healthy=0, unhealthy=1)


def test_a_socket_that_is_moved_away_is_not_missed(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a")) as plugin:
        path = publish(watching, plugin)
        watching.wait_for(RESOURCE, healthy=1)
        os.rename(path, os.path.join(watching.root, "away.sock"))
        with pytest.raises(AssertionError):
            watching.wait_for_event("plugin gone", timeout=0.15)


def test_a_socket_that_comes_anew_is_registered_anew(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a")) as plugin:
        path = publish(watching, plugin)
        watching.wait_for(RESOURCE, healthy=1)
        with Scripted(watching, healthy("a", "b")) as successor:
            os.rename(successor.path, path)
            watching.wait_for(RESOURCE, healthy=2)
            assert [event.kind for event in watching.events if event.kind.startswith("plugin")] == ["plugin found", "plugin gone", "plugin found"]


def test_a_broken_stream_alone_brings_no_new_registration(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a")) as plugin:
        publish(watching, plugin)
        watching.wait_for(RESOURCE, healthy=1)
        watching.drop_connections(RESOURCE)
        watching.wait_for_event("disconnected", RESOURCE)
        with pytest.raises(AssertionError):
            watching.wait_for(RESOURCE, healthy=1, timeout=0.15)


def test_a_kubelet_restart_needs_no_act_of_the_plugin(watching: Kubelet) -> None:
    with Scripted(watching, healthy("a")) as plugin:
        publish(watching, plugin)
        watching.wait_for(RESOURCE, healthy=1)
        watching.restart()
        watching.wait_for(RESOURCE, healthy=1)
        # The kubelet says so after it has begun to read the list.
        watching.wait_until(lambda: len(plugin.notified) == 2, "the plugin to be told again")
