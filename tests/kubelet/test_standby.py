# SPDX-License-Identifier: Apache-2.0
"""Several instances on one node: one serves, the others stand by with everything ready, and take over the moment it is gone."""

from __future__ import annotations

import os
import signal
import stat
from contextlib import ExitStack

import pytest

from deviceplugin.daemon import Daemon
from deviceplugin.service import Role
from deviceplugin.testing import Kubelet, Pod
from deviceplugin.testing.devices import Endpoint
from tests.kubelet.serving import RESOURCE, Rack, put_files, running, service_of, serving, wait_until


def standing_by(daemon: Daemon, resource: str = RESOURCE) -> None:
    service = service_of(daemon, resource)
    wait_until(lambda: service.role is Role.STANDBY and "waits for" in service.error, "the standby")


def test_second_instance_waits_and_says_for_whom(either: Kubelet) -> None:
    with serving(either, Rack("a")) as first:
        either.wait_for(RESOURCE, healthy=1)
        with serving(either, Rack("a")) as second:
            standing_by(second)
            assert service_of(first).role is Role.ACTIVE
            wait_until(lambda: service_of(second).lock.owner(), "the owner's name")
            assert service_of(second).error in (f"waits for pid {os.getpid()}", f"waits for pid {os.getpid()} on {os.environ.get('HOSTNAME')}")
        assert either.streams(RESOURCE) == 1
    assert len(either.events.of("register")) == 1


def test_orderly_stop_hands_over_without_a_moment_in_which_the_kubelet_has_no_devices(either: Kubelet) -> None:
    with ExitStack() as second:
        with serving(either, Rack("a", "b")):
            either.wait_for(RESOURCE, healthy=2)
            standby = second.enter_context(serving(either, Rack("a", "b")))
            standing_by(standby)
            mark = len(either.events)
        assert either.admit(Pod.requesting(RESOURCE, 2))
        assert service_of(standby).role is Role.ACTIVE
        either.wait_for(RESOURCE, healthy=2)
        assert not either.events.of("disconnected", RESOURCE, since=mark)
        for _ in range(2):
            either.restart()
            either.wait_for(RESOURCE, healthy=2)
        either.wait_until(lambda: either.streams(RESOURCE) == 1, "one stream")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_standby_takes_over_from_a_process_that_ends(either: Kubelet, number: signal.Signals) -> None:
    put_files(either, "a", "b")
    with running(either) as first:
        either.wait_for(RESOURCE, healthy=2)
        with serving(either, Rack("a", "b")) as standby:
            standing_by(standby)
            assert service_of(standby).error.startswith(f"waits for pid {first.pid}")
            mark = len(either.events)
            assert first.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
            either.wait_until(lambda: service_of(standby).registrar.standing().streams == 1, "the takeover", timeout=5.0)
            either.wait_for(RESOURCE, healthy=2)
            ended = either.wait_for_event("stream ended", RESOURCE, since=mark)
            assert either.events.of("list", RESOURCE, since=mark)[-1].at - ended.at < 1.0
            assert either.admit(Pod.requesting(RESOURCE, 2))


def test_three_instances_serve_one_after_another(either: Kubelet) -> None:
    put_files(either, "a")
    with running(either) as first, running(either) as second, running(either) as third:
        alive = {one.pid: one for one in (first, second, third)}
        wait_until(lambda: sum("ready to take over" in one.log() for one in alive.values()) == 2, "the standbys")
        while alive:
            wait_until(lambda: any("the kubelet reads the list" in one.log() for one in alive.values()), "an instance that serves")
            either.wait_for(RESOURCE, healthy=1)
            (active,) = (one for one in alive.values() if "the kubelet reads the list" in one.log())
            endpoint = either.endpoint(RESOURCE)
            active.end(signal.SIGKILL)
            del alive[active.pid]

            def over(killed: Endpoint | None = endpoint) -> bool:
                now = either.endpoint(RESOURCE)
                return now is not killed or now is None or now.stopped_at is not None

            either.wait_until(over, "the end of the one that was killed")


def test_late_end_of_the_old_instance_does_not_cost_the_new_one_its_devices(kubelet: Kubelet) -> None:
    """A kubelet up to 1.36 that handles the takeover before it has seen the old stream end closes the new one."""
    put_files(kubelet, "a")
    with running(kubelet) as first:
        kubelet.wait_for(RESOURCE, healthy=1)
        with serving(kubelet, Rack("a")) as standby:
            standing_by(standby)
            with kubelet.faults.unnoticed_stream_ends():
                first.end(signal.SIGKILL)
                kubelet.wait_for_event("list", RESOURCE, count=2)
            kubelet.wait_for_event("registered", RESOURCE, count=3)
            kubelet.wait_for(RESOURCE, healthy=1)
            kubelet.wait_until(lambda: kubelet.streams(RESOURCE) == 1, "one stream")


def test_resources_are_taken_over_one_by_one(either: Kubelet) -> None:
    other = "vendor.example/other"
    with ExitStack() as third:
        with serving(either, Rack("a")), serving(either, Rack("b", resource=other)):
            either.wait_for(RESOURCE, healthy=1)
            either.wait_for(other, healthy=1)
            both = third.enter_context(serving(either, Rack("a"), Rack("b", resource=other)))
            standing_by(both)
            standing_by(both, other)
        either.wait_for_event("registered", RESOURCE, count=2)
        either.wait_for_event("registered", other, count=2)
        either.wait_for(RESOURCE, healthy=1)
        either.wait_for(other, healthy=1)


def test_standby_is_ready_through_kubelet_restarts(either: Kubelet) -> None:
    """Its socket, made in advance, is removed by a kubelet that starts: it is made anew."""
    with ExitStack() as second:
        with serving(either, Rack("a")):
            either.wait_for(RESOURCE, healthy=1)
            standing_by(second.enter_context(serving(either, Rack("a"))))
            for _ in range(2):
                either.restart()
                either.wait_for(RESOURCE, healthy=1)
            mark = len(either.events)
        either.wait_for_event("registered", RESOURCE, since=mark, timeout=3.0)
        either.wait_for(RESOURCE, healthy=1)


def test_standby_shows_its_own_health_when_it_takes_over(either: Kubelet) -> None:
    rack = Rack("a", "b")
    with ExitStack() as second:
        with serving(either, Rack("a", "b")):
            either.wait_for(RESOURCE, healthy=2)
            standing_by(second.enter_context(serving(either, rack)))
            rack.sicken("a")
            wait_until(lambda: rack.looks >= 2, "the look")
        either.wait_for_event("registered", RESOURCE, count=2)
        either.wait_for(RESOURCE, healthy=1, unhealthy=1)


def test_standby_that_stops_waiting_leaves_the_lock_and_no_socket(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
        sockets = set(os.listdir(kubelet.device_plugins))
        with serving(kubelet, Rack("a")) as second:
            standing_by(second)
        assert {name for name in os.listdir(kubelet.device_plugins) if name.endswith(".sock")} == {s for s in sockets if s.endswith(".sock")}
        kubelet.restart()
        kubelet.wait_for(RESOURCE, healthy=1)
    with serving(kubelet, Rack("a")) as third:
        assert service_of(third).role is Role.ACTIVE


def test_standby_by_the_watcher_shows_no_socket_before_it_is_its_turn(short_root: str) -> None:
    """To the plugin watcher a socket that is there is a registration."""
    with Kubelet(short_root, watch_interval=0.05) as kubelet, ExitStack() as second:
        with serving(kubelet, Rack("a"), registration="watcher"):
            kubelet.wait_for(RESOURCE, healthy=1)
            standing_by(second.enter_context(serving(kubelet, Rack("a"), registration="watcher")))
            assert len(os.listdir(kubelet.plugins_registry)) == 1
            mark = len(kubelet.events)
        kubelet.wait_for_event("plugin found", RESOURCE, since=mark)
        kubelet.wait_for(RESOURCE, healthy=1)


def test_socket_of_a_killed_instance_is_removed_and_no_other(short_root: str) -> None:
    """The kubelet removes it when it starts; until then it would lie there, and in plugins_registry for ever."""
    with Kubelet(short_root) as kubelet:
        put_files(kubelet, "a")
        with running(kubelet):
            kubelet.wait_for(RESOURCE, healthy=1)
        strangers = ["vendor.example_device-short.sock", "vendor.example_device2-0123abcd-1.sock", "other.sock"]
        for name in strangers:
            os.mknod(os.path.join(kubelet.device_plugins, name), stat.S_IFSOCK | 0o600)
        file = "vendor.example_device-0123abcd-1.sock"
        with open(os.path.join(kubelet.device_plugins, file), "w", encoding="ascii"):
            pass
        with serving(kubelet, Rack("a")) as daemon:
            kubelet.wait_for_event("registered", RESOURCE, count=2)
            left = {name for name in os.listdir(kubelet.device_plugins) if name.endswith(".sock")}
            assert left == {"kubelet.sock", file, *strangers, service_of(daemon).registrar.standing().endpoint}
