# SPDX-License-Identifier: Apache-2.0
"""An instance that is told to go hands over: at no moment is the kubelet without devices, and in the end its records are as they should be."""

from __future__ import annotations

import glob
import os
import socket
from contextlib import ExitStack, suppress

from deviceplugin.kubelet.handover import offer
from deviceplugin.kubelet.paths import Paths
from deviceplugin.kubelet.registration import SETTLE
from deviceplugin.service import Role
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.serving import RESOURCE, Rack, service_of, serving
from tests.kubelet.test_standby import standing_by


def heirs(kubelet: Kubelet) -> list[str]:
    return glob.glob(os.path.join(Paths.below(kubelet.root).locks, "*.heir"))


def test_the_kubelet_is_never_without_devices(either: Kubelet) -> None:
    with ExitStack() as second:
        with serving(either, Rack("a", "b")) as first:
            either.wait_for(RESOURCE, healthy=2)
            standby = second.enter_context(serving(either, Rack("a", "b")))
            standing_by(standby)
            mark = len(either.events)
            lock = service_of(first).lock
        # The old stream has ended by now.
        assert not lock.held
        assert either.healthy(RESOURCE) == {"a", "b"}
        assert not either.events.of("disconnected", RESOURCE, since=mark)
        assert either.admit(Pod.requesting(RESOURCE))
        assert service_of(standby).role is Role.ACTIVE
        assert service_of(standby).lock.held
        assert not heirs(either)


def test_after_a_handover_the_kubelet_notices_again_when_the_plugin_dies(either: Kubelet) -> None:
    with ExitStack() as second:
        with serving(either, Rack("a")):
            either.wait_for(RESOURCE, healthy=1)
            standing_by(second.enter_context(serving(either, Rack("a"))))
            mark = len(either.events)
        # Once to serve, once to be refused, and once more, beside its own stream, to be known.
        either.wait_for_event("registered", RESOURCE, count=2, since=mark, timeout=SETTLE + 3)
        assert len(either.events.of("register failed", RESOURCE, since=mark)) == 1
        either.wait_until(lambda: either.streams(RESOURCE) == 2, "both streams of one process")
        assert either.healthy(RESOURCE) == {"a"}
    either.wait_for(RESOURCE, healthy=0)
    either.wait_until(lambda: either.streams(RESOURCE) == 0, "the end of both streams")


def test_changes_reach_the_kubelet_after_a_handover(either: Kubelet) -> None:
    rack = Rack("a")
    with ExitStack() as second:
        with serving(either, Rack("a")):
            either.wait_for(RESOURCE, healthy=1)
            standing_by(second.enter_context(serving(either, rack)))
            mark = len(either.events)
        rack.put("b")
        either.wait_for(RESOURCE, healthy=2)
        either.wait_for_event("registered", RESOURCE, count=2, since=mark, timeout=SETTLE + 3)
        rack.put("c")
        either.wait_for(RESOURCE, healthy=3)
        either.restart()
        either.wait_for(RESOURCE, healthy=3)
        either.wait_until(lambda: either.streams(RESOURCE) == 1, "one stream")


def test_handovers_in_a_row_before_things_settle(either: Kubelet) -> None:
    with ExitStack() as last:
        stack = ExitStack()
        stack.enter_context(serving(either, Rack("a")))
        either.wait_for(RESOURCE, healthy=1)
        for _ in range(4):
            following = ExitStack()
            standing_by(following.enter_context(serving(either, Rack("a"))))
            mark = len(either.events)
            stack.close()
            assert either.healthy(RESOURCE) == {"a"}
            assert not either.events.of("disconnected", RESOURCE, since=mark)
            stack = following
        last.push(stack)
        either.wait_for_event("registered", RESOURCE, count=2, since=mark, timeout=SETTLE + 3)
    either.wait_for(RESOURCE, healthy=0)


def test_standby_that_was_killed_is_no_heir(either: Kubelet) -> None:
    locks = Paths.below(either.root).locks
    os.makedirs(locks)
    dead = os.path.join(locks, "vendor.example_device-00000000-1.heir")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(dead)
    assert not offer(locks, RESOURCE, 0)
    assert not os.path.exists(dead)


def test_stranger_on_the_heirs_socket_gets_nothing(either: Kubelet) -> None:
    with serving(either, Rack("a")) as first:
        either.wait_for(RESOURCE, healthy=1)
        with serving(either, Rack("a")) as second:
            standing_by(second)
            (path,) = heirs(either)
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(path)
                stranger.sendall(b"give me everything\n" * 100)
                stranger.settimeout(5)
                with suppress(ConnectionResetError):  # what was not read of it
                    assert stranger.recv(100) == b""
            assert service_of(second).role is Role.STANDBY
            assert service_of(first).role is Role.ACTIVE
