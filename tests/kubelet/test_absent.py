# SPDX-License-Identifier: Apache-2.0
"""The kubelet is not there, or only seems to be."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack

import pytest

from deviceplugin.kubelet import lifecycle
from deviceplugin.kubelet.lifecycle import Action, Facts, Outcome, Phase, State, announced, wake_at
from deviceplugin.kubelet.paths import Paths, SocketId
from deviceplugin.testing import Kubelet
from tests.kubelet.reception import reception
from tests.kubelet.serving import RESOURCE, Rack, running, service_of, serving, wait_until


def bound(path: str) -> socket.socket:
    """A socket that is there and takes no connection."""
    one = socket.socket(socket.AF_UNIX)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    one.bind(path)
    return one


def test_kubelet_that_comes_later_gets_the_devices(short_root: str) -> None:
    with serving(short_root, Rack("a", "b")) as daemon:
        assert service_of(daemon).registrar.standing().phase is Phase.DOWN
        with Kubelet(short_root) as kubelet:
            kubelet.wait_for(RESOURCE, healthy=2, timeout=3.0)
            assert len(kubelet.events.of("register")) == 1


def test_kubelet_that_comes_after_five_minutes_is_answered_at_once() -> None:
    state, now = State(), 0.0
    while now < 300.0:
        state, action = announced(state, Facts(now=now), lambda: 1.0)
        assert action is Action.NONE
        now += 5.0
    state, action = announced(state, Facts(now=now, kubelet=SocketId(1, 1, 1)), lambda: 1.0)
    assert action is Action.ANNOUNCE


def test_five_minutes_of_refusals_are_tried_at_a_pace_that_harms_nobody_and_forgotten_with_the_next_kubelet() -> None:
    kubelet, state, now, tries = SocketId(1, 1, 1), State(), 0.0, []
    while now < 300.0:
        outcome = Outcome.FAILED if state.phase is Phase.REGISTERING else None
        state, action = announced(state, Facts(now=now, kubelet=kubelet, outcome=outcome), lambda: 1.0)
        if action is Action.ANNOUNCE:
            tries.append(now)
        elif action is Action.NONE:
            due = wake_at(state)
            now = max(now + 0.001, due if due is not None else now)
    assert 60 <= len(tries) <= 80, "every 5 s after the first few"
    assert tries[3] < 0.5
    state, action = announced(state, Facts(now=now, kubelet=SocketId(1, 1, 2)), lambda: 1.0)
    assert action is Action.ANNOUNCE, "its socket's number came back, its change time did not"
    assert lifecycle.BACKOFF_CAP <= 5.0


def test_stale_socket_of_a_dead_kubelet_is_waited_out(either: Kubelet, caplog: pytest.LogCaptureFixture) -> None:
    either.stop()
    assert os.path.exists(either.socket)
    with serving(either, Rack("a")) as daemon:
        registrar = service_of(daemon).registrar
        wait_until(lambda: "no kubelet listens" in registrar.standing().error, "the reason")
        for _ in range(10):
            registrar.wake()
        assert registrar.registrations == 0
        either.start()
        either.wait_for(RESOURCE, healthy=1, timeout=3.0)
        assert registrar.standing().error == ""
    assert sum("no kubelet listens" in record.message for record in caplog.records) == 1, "said once, however often it was tried"


def test_socket_that_is_bound_before_anybody_listens(short_root: str) -> None:
    path = Paths.below(short_root).kubelet_socket
    with bound(path) as early, serving(short_root, Rack("a")) as daemon:
        wait_until(lambda: service_of(daemon).registrar.standing().error, "the first try")
        early.listen(8)
        early.settimeout(3.0)
        client, _ = early.accept()
        client.close()


def test_kubelet_that_accepts_and_never_answers_is_replaced_by_one_that_does(either: Kubelet) -> None:
    either.stop(unlink=True)
    with ExitStack() as hung:
        deaf = hung.enter_context(bound(either.socket))
        deaf.listen(8)
        with serving(either, Rack("a")) as daemon:
            wait_until(lambda: service_of(daemon).registrar.standing().phase is Phase.REGISTERING, "the try")
            os.unlink(either.socket)
            either.start()
            either.wait_for(RESOURCE, healthy=1, timeout=3.0)


def test_kubelet_that_dies_during_register_is_tried_again(short_root: str) -> None:
    with serving(short_root, Rack("a")):
        with reception(short_root) as desk:
            desk.gate.clear()
            desk.next()
        with Kubelet(short_root) as kubelet:
            kubelet.wait_for(RESOURCE, healthy=1, timeout=3.0)


def test_file_that_is_no_socket_is_no_kubelet(short_root: str) -> None:
    path = Paths.below(short_root).kubelet_socket
    os.makedirs(os.path.dirname(path))
    with open(path, "w", encoding="ascii"), serving(short_root, Rack("a")) as daemon:
        assert service_of(daemon).registrar.standing().phase is Phase.DOWN
        assert service_of(daemon).registrar.registrations == 0


def test_symbolic_link_to_a_kubelet_elsewhere_is_not_followed(short_root: str, kubelet: Kubelet) -> None:
    path = Paths.below(short_root).kubelet_socket
    os.makedirs(os.path.dirname(path))
    os.symlink(kubelet.socket, path)
    with serving(short_root, Rack("a")) as daemon:
        registrar = service_of(daemon).registrar
        registrar.wake()
        assert registrar.registrations == 0
    assert not kubelet.events.of("register")


def test_resource_that_the_kubelet_forgot_after_five_minutes_comes_back(short_root: str) -> None:
    offset = 0.0
    with Kubelet(short_root, clock=lambda: time.monotonic() + offset) as kubelet:
        with serving(kubelet, Rack("a", "b")):
            kubelet.wait_for(RESOURCE, healthy=2)
        kubelet.wait_for(RESOURCE, healthy=0)
        offset += 301.0
        assert kubelet.capacity(RESOURCE) == 0
        kubelet.wait_for_event("resource removed", RESOURCE)
        with serving(kubelet, Rack("a", "b")):
            kubelet.wait_for(RESOURCE, healthy=2)
            assert kubelet.allocatable(RESOURCE) == 2


def test_process_waits_for_the_kubelet_and_says_so(short_root: str) -> None:
    os.makedirs(os.path.join(short_root, "devices"))
    with open(os.path.join(short_root, "devices", "a"), "w", encoding="ascii"):
        pass
    with running(short_root) as daemon:
        daemon.wait_log("no kubelet at")
        with Kubelet(short_root) as kubelet:
            kubelet.wait_for(RESOURCE, healthy=1)
        assert daemon.end() == 0


def test_kubelet_that_hangs_is_left_for_the_one_that_took_its_place(kubelet: Kubelet) -> None:
    """Its stream still lives, its kubelet.sock is another's: after a second the other one counts."""
    with serving(kubelet, Rack("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
        os.unlink(kubelet.socket)
        with reception(kubelet.root) as desk:
            assert desk.next().request.resource_name == RESOURCE
    assert len(kubelet.events.of("register")) == 1


def test_touch_of_kubelet_sock_is_no_new_kubelet(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        registrar = service_of(daemon).registrar
        for mode in (0o700, 0o755):
            os.chmod(kubelet.socket, mode)
            registrar.wake()
        kubelet.drop_connections(RESOURCE)
        kubelet.wait_for_event("registered", RESOURCE, count=2)
        kubelet.wait_for(RESOURCE, healthy=1)
        assert registrar.registrations == 2
