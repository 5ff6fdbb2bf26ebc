# SPDX-License-Identifier: Apache-2.0
"""The kubelet goes and comes back, or only its sockets do; devices return by themselves and nothing piles up."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Sequence

import psutil
import pytest

from deviceplugin import Device, Edits
from deviceplugin.kubelet import endpoint, lifecycle, registration
from deviceplugin.testing import Container, Kubelet, Pod
from tests.kubelet.serving import RESOURCE, Rack, put_files, running, service_of, serving, wait_until

RESTARTS = 50
RSS_GROWTH = 4.0  # MiB: what allocators keep; the kubelet and its log of events are in this process too


def test_restart_costs_one_registration_and_a_fresh_socket(either: Kubelet) -> None:
    with serving(either, Rack("a", "b")):
        either.wait_for(RESOURCE, healthy=2)
        for _ in range(3):
            either.restart()
            either.wait_for(RESOURCE, healthy=2, timeout=2.0)
    names = [e.detail["endpoint"] for e in either.events.of("register")]
    assert len(names) == len(set(names)) == 4


def test_time_from_the_kubelets_start_to_the_list_is_under_a_second(either: Kubelet) -> None:
    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        mark = len(either.events)
        either.restart()
        listed = either.wait_for_event("list", RESOURCE, since=mark)
    (started,) = either.events.of("kubelet started", since=mark)
    assert listed.at - started.at < 1.0


def test_restart_looks_at_no_hardware(either: Kubelet) -> None:
    rack = Rack("a")
    with serving(either, rack):
        either.wait_for(RESOURCE, healthy=1)
        either.restart()
        either.wait_for(RESOURCE, healthy=1)
        assert rack.looks == 1


def test_first_list_after_a_restart_is_complete(either: Kubelet) -> None:
    rack = Rack("a", "b", "c")
    with serving(either, rack):
        either.wait_for(RESOURCE, healthy=3)
        rack.sicken("b")
        either.wait_for(RESOURCE, healthy=2, unhealthy=1)
        mark = len(either.events)
        either.restart()
        first = either.wait_for_event("list", RESOURCE, since=mark)
        assert (first.detail["healthy"], first.detail["unhealthy"]) == (2, 1)


def test_kubelet_sock_with_the_inode_number_of_the_last_one_is_a_new_kubelet(either: Kubelet) -> None:
    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        reused = [either.restart(same_inode=True) for _ in range(3)]
        either.wait_for(RESOURCE, healthy=1)
    assert len(reused) == 3  # whether a number comes back is the file system's choice


def test_fifty_restarts_pile_up_no_threads_no_descriptors_and_no_memory(either: Kubelet) -> None:
    process = psutil.Process()

    def held() -> tuple[int, int]:
        return threading.active_count(), process.num_fds()

    def settled() -> tuple[int, int]:
        """Idle: threads of a stopped server take a moment to end."""
        gc.collect()
        least = held()

        def calm() -> bool:
            nonlocal least
            last, least = least, min(least, held())
            return last == least and not any("reaper" in thread.name for thread in threading.enumerate())

        for _ in range(20):
            wait_until(calm, "the threads to end")
        return least

    with serving(either, Rack("a", "b")):
        for i in range(RESTARTS + 1):
            either.wait_for(RESOURCE, healthy=2, timeout=3.0)
            if i == 10:
                threads, descriptors = settled()
                rss = process.memory_info().rss
            either.restart()
        either.wait_for(RESOURCE, healthy=2)
        after = settled()
        assert after[0] - threads <= 4
        assert after[1] - descriptors <= 4
        assert (process.memory_info().rss - rss) / (1 << 20) < RSS_GROWTH
    assert len(either.events.of("register")) == RESTARTS + 2


def test_process_keeps_its_size_over_restarts(kubelet: Kubelet) -> None:
    put_files(kubelet, "a", "b")
    with running(kubelet) as daemon:
        process = psutil.Process(daemon.pid)

        def restarted(times: int) -> tuple[int, int, int]:
            for _ in range(times):
                kubelet.restart()
                kubelet.wait_for(RESOURCE, healthy=2)
            return process.num_threads(), process.num_fds(), process.memory_info().rss

        kubelet.wait_for(RESOURCE, healthy=2)
        before = restarted(10)
        after = restarted(20)
        assert after[0] - before[0] <= 8  # idle threads of a server that was stopped a moment ago
        assert after[1] - before[1] <= 8
        assert (after[2] - before[2]) / (1 << 20) < RSS_GROWTH


def test_old_server_does_not_take_the_new_socket_along(either: Kubelet) -> None:
    with serving(either, Rack("a")) as daemon:
        either.wait_for(RESOURCE, healthy=1)
        for _ in range(3):
            either.restart()
            either.wait_for(RESOURCE, healthy=1)
        registrar = service_of(daemon).registrar
        for done in registrar._stopped:
            assert done.wait(2.0)
        path = os.path.join(either.device_plugins, registrar.standing().endpoint)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_other_resources_do_not_notice_that_one_stream_broke(either: Kubelet) -> None:
    other = "vendor.example/other"
    with serving(either, Rack("a"), Rack("b", resource=other)):
        either.wait_for(RESOURCE, healthy=1)
        either.wait_for(other, healthy=1)
        mark = len(either.events)
        either.drop_connections(RESOURCE)
        either.wait_for_event("registered", RESOURCE, since=mark)
        either.wait_for(RESOURCE, healthy=1)
        assert not either.events.of("stream ended", other, since=mark)
        assert not either.events.of("register", other, since=mark)


def test_broken_stream_is_answered_by_a_new_registration(either: Kubelet) -> None:
    with serving(either, Rack("a", "b")):
        for i in range(1, 4):
            either.wait_for(RESOURCE, healthy=2)
            assert either.streams(RESOURCE) == 1
            either.drop_connections(RESOURCE)
            either.wait_for_event("registered", RESOURCE, count=i + 1)
        either.wait_for(RESOURCE, healthy=2)


def test_pods_keep_their_devices_and_their_answer_over_a_restart(either: Kubelet) -> None:
    calls: list[object] = []

    def allocate(_self: object, devices: Sequence[Device]) -> Edits:
        calls.append(devices)
        return Edits(envs={"IDS": ",".join(device.id for device in devices)})

    with serving(either, Rack("a", "b", "c", allocate=allocate)):
        either.wait_for(RESOURCE, healthy=3)
        pod = Pod.requesting(RESOURCE, 2)
        assert either.admit(pod)
        before, held = either.start_container(pod), either.held(pod)
        either.restart()
        either.wait_for(RESOURCE, healthy=3)
        assert either.restart_container(pod).environ == before.environ
        assert either.held(pod) == held
        assert len(calls) == 1, "the kubelet replays the answer"
        rest = Pod.requesting(RESOURCE, 1, name="next")
        assert either.admit(rest)
        assert not either.held(rest) & held


def test_restart_with_an_init_container_that_has_ended_needs_only_a_pod_that_comes_after_the_list(either: Kubelet) -> None:
    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        limits = {RESOURCE: 1}
        pod = Pod(init_containers=(Container("init", limits),), containers=(Container("main", limits),), static=True)
        assert either.admit(pod)
        either.start_container(pod, "init")
        either.start_container(pod, "main")
        either.restart(readmit=False)
        either.wait_for(RESOURCE, healthy=1, timeout=1.0)
        assert all(either.readmit().values()), "listed within a second, before the pod was looked at"


def test_reboot_with_the_plugin_first_gives_pods_the_devices_they_had(short_root: str) -> None:
    with Kubelet(short_root) as kubelet:
        with serving(kubelet, Rack("a", "b")):
            kubelet.wait_for(RESOURCE, healthy=2)
            pod = Pod.requesting(RESOURCE)
            assert kubelet.admit(pod)
            kubelet.start_container(pod)
            held = kubelet.held(pod)
        kubelet.restart(running=(), readmit=False)  # no container survives a reboot; the checkpoint does
        with serving(kubelet, Rack("a", "b")):
            kubelet.wait_for(RESOURCE, healthy=2)
            mark = len(kubelet.events)
            assert kubelet.readmit()[pod.uid]
            assert not [e for e in kubelet.events.of("call", since=mark) if e.detail["method"] == "Allocate"]
            assert kubelet.held(pod) == held
            kubelet.start_container(pod)


def test_corrupt_checkpoint_costs_the_kubelet_its_memory_and_us_nothing(either: Kubelet) -> None:
    with serving(either, Rack("a", "b")):
        either.wait_for(RESOURCE, healthy=2)
        either.stop()
        with open(either.checkpoint.path, "w", encoding="ascii") as file:
            file.write('{"Data": {"RegisteredDevices"')
        either.start()
        either.wait_for_event("checkpoint corrupt")
        either.wait_for(RESOURCE, healthy=2)
        assert either.admit(Pod.requesting(RESOURCE, 2))


@pytest.mark.parametrize("listed", [True, False])
def test_registration_that_the_kubelet_takes_before_it_sees_the_old_streams_end(
    either: Kubelet, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 1.36 the late end of the old stream closes the new client, whether that has read a list yet or not. It is noticed and repaired."""
    monkeypatch.setattr(lifecycle, "EXPECT", 0.3)
    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        with either.faults.unnoticed_stream_ends():
            either.drop_connections(RESOURCE)
            either.wait_for_event("list" if listed else "registered", RESOURCE, count=2)
        either.wait_for_event("stream ended", RESOURCE)
        if either.settings.semantics == "v136":
            either.wait_for_event("registered", RESOURCE, count=3)
        either.wait_until(lambda: either.streams(RESOURCE) == 1, "one stream")
        either.wait_for(RESOURCE, healthy=1)


def test_process_killed_and_started_at_once_comes_back(either: Kubelet) -> None:
    put_files(either, "a", "b")
    for _ in range(2):
        with running(either):
            either.wait_for(RESOURCE, healthy=2)
    with running(either):
        either.wait_for_event("registered", RESOURCE, count=3)
        either.wait_for(RESOURCE, healthy=2)
        either.wait_until(lambda: either.streams(RESOURCE) == 1, "one stream")


def test_socket_that_the_kubelet_removes_while_we_do(either: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubelet that starts removes all sockets; ours may go between our look at it and its removal."""
    with serving(either, Rack("a")) as daemon:
        either.wait_for(RESOURCE, healthy=1)
        os.unlink(os.path.join(either.device_plugins, service_of(daemon).registrar.standing().endpoint))
        monkeypatch.setattr(endpoint.Endpoint, "intact", True)
        either.drop_connections(RESOURCE)
        either.wait_for_event("registered", RESOURCE, count=2)
        either.wait_for(RESOURCE, healthy=1)


@pytest.mark.parametrize("step", ["_announce", "_retire", "_register"])
def test_bug_of_ours_in_one_step_is_logged_and_the_step_tried_again(
    either: Kubelet, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults, real = [RuntimeError("what nobody thought of")], getattr(registration.Registrar, step)

    def sometimes(self: registration.Registrar, *args: object) -> None:
        if faults:
            raise faults.pop()
        real(self, *args)

    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        monkeypatch.setattr(registration.Registrar, step, sometimes)
        either.drop_connections(RESOURCE)
        either.wait_for_event("registered", RESOURCE, count=2, timeout=4.0)
        either.wait_for(RESOURCE, healthy=1)
    assert "what nobody thought of" in caplog.text


@pytest.mark.parametrize("prepares", [True, False])
def test_container_restart_while_the_kubelet_waits_for_us(either: Kubelet, prepares: bool) -> None:
    prepared: list[object] = []
    with serving(either, Rack("a", prepare=lambda _self, devices: prepared.append(devices)) if prepares else Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert either.admit(pod)
        either.start_container(pod)
        with either.faults.unnoticed_stream_ends():  # nothing registers while the old stream seems alive to the kubelet
            either.restart_container(pod)
        either.restart()
        either.wait_for(RESOURCE, healthy=1)
        either.restart_container(pod)
        assert len(prepared) == (3 if prepares else 0)
