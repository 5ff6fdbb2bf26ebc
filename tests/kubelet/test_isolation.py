# SPDX-License-Identifier: Apache-2.0
"""A plugin that hangs or fails takes down nothing but itself, and never the kubelet's sync loop for longer than its budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from deviceplugin import Device, Edits
from deviceplugin.config import Deadlines
from deviceplugin.hooks import DEADLINES, MAX_HUNG
from deviceplugin.testing import CreateContainerConfigError, Kubelet, Pod, plugin_calls
from deviceplugin.testing.rpc import RpcFailed
from tests.kubelet.serving import FILES, RESOURCE, Rack, put_files, running, service_of, serving, wait_until

OTHER = "vendor.example/other"
BUDGET = 1.0
SHORT = {"deadlines": Deadlines(discover=BUDGET, allocate=BUDGET, prefer=BUDGET, prepare=BUDGET, start=BUDGET)}


class Stuck:
    """Hangs whoever calls it, until released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()
        self.calls = 0

    def hang(self) -> None:
        self.calls += 1
        self.entered.set()
        self.released.wait(30.0)

    def found(self) -> Iterable[Device]:
        self.hang()
        return ()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    one = Stuck()
    yield one
    one.released.set()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"it took {took:.2f} s"


def other_is_well(kubelet: Kubelet) -> None:
    kubelet.wait_for(OTHER, healthy=1)
    pod = Pod.requesting(OTHER)
    with within(BUDGET):
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
    kubelet.delete_pod(pod)


def test_hanging_allocate_fails_its_pod_within_the_budget(kubelet: Kubelet, stuck: Stuck, caplog: pytest.LogCaptureFixture) -> None:
    def allocate(_self: object, _devices: Sequence[Device]) -> Edits:
        stuck.hang()
        return Edits()

    with serving(kubelet, Rack("a", "b", allocate=allocate, settings=SHORT), Rack("o", resource=OTHER)):
        kubelet.wait_for(RESOURCE, healthy=2)
        with within(BUDGET + 1.0):
            refused = kubelet.admit(Pod.requesting(RESOURCE))
        assert "code = DeadlineExceeded" in refused.message
        assert "plugin device: allocate() did not answer within 1 s" in caplog.text
        other_is_well(kubelet)
        kubelet.restart()
        kubelet.wait_for(RESOURCE, healthy=2)


def test_hung_calls_do_not_pile_up_threads(kubelet: Kubelet, stuck: Stuck) -> None:
    def allocate(_self: object, _devices: Sequence[Device]) -> Edits:
        stuck.hang()
        return Edits()

    short = {"deadlines": Deadlines(allocate=0.02)}
    with serving(kubelet, Rack("a", allocate=allocate, settings=short), Rack("o", resource=OTHER)):
        kubelet.wait_for(RESOURCE, healthy=1)
        before = threading.active_count()
        for _ in range(MAX_HUNG + 20):
            with pytest.raises(RpcFailed):
                plugin_calls.allocate(kubelet, RESOURCE, [["a"]])
        assert stuck.calls == MAX_HUNG
        assert threading.active_count() - before <= MAX_HUNG + 4
        with pytest.raises(RpcFailed, match="since 16 calls hang"):
            plugin_calls.allocate(kubelet, RESOURCE, [["a"]])
        other_is_well(kubelet)
        stuck.released.set()

        def works() -> bool:
            try:
                return bool(plugin_calls.allocate(kubelet, RESOURCE, [["a"]]))
            except RpcFailed:
                return False

        wait_until(works, "the hook to work again")


def test_hanging_preference_is_decided_without_the_vendor(kubelet: Kubelet, stuck: Stuck) -> None:
    def prefer(_self: object, available: Sequence[Device], _required: Sequence[Device], size: int) -> Iterable[Device]:
        stuck.hang()
        return available[:size]

    with serving(kubelet, Rack("a", "b", "c", prefer=prefer, settings=SHORT), Rack("o", resource=OTHER)):
        kubelet.wait_for(RESOURCE, healthy=3)
        with within(BUDGET + 1.0):
            assert kubelet.admit(Pod.requesting(RESOURCE, 2))
        assert stuck.calls == 1
        other_is_well(kubelet)


def test_hanging_prepare_keeps_its_container_waiting_and_no_other(kubelet: Kubelet, stuck: Stuck) -> None:
    def prepare(_self: object, _devices: Sequence[Device]) -> None:
        stuck.hang()

    with serving(kubelet, Rack("a", prepare=prepare, settings=SHORT), Rack("o", resource=OTHER)):
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        with within(BUDGET + 1.0), pytest.raises(CreateContainerConfigError, match="DeadlineExceeded"):
            kubelet.start_container(pod)
        other_is_well(kubelet)
        stuck.released.set()
        kubelet.start_container(pod)


def test_hanging_discovery_leaves_the_devices_as_they_were(kubelet: Kubelet, stuck: Stuck) -> None:
    rack, other = Rack("a", settings=SHORT), Rack("o", resource=OTHER)
    with serving(kubelet, rack, other) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        well = rack.found

        def found() -> Iterable[Device]:
            stuck.hang()
            return [Device("late answer")]

        rack.found = found
        rack.event()
        wait_until(lambda: "did not answer" in daemon.scanners["device"].report.error, "the verdict")
        for _ in range(3):
            rack.event()
        assert kubelet.admit(Pod.requesting(RESOURCE))
        kubelet.restart()
        kubelet.wait_for(RESOURCE, healthy=1)
        other.put("p")
        kubelet.wait_for(OTHER, healthy=2)
        assert stuck.calls == 1, "not called again while it hangs"
        rack.found = well
        stuck.released.set()
        rack.put("b")

        def seen() -> bool:
            rack.event()
            return len(kubelet.healthy(RESOURCE)) == 2

        wait_until(seen, "both devices")
        assert "late answer" not in kubelet.devices(RESOURCE)


def test_plugin_that_hangs_from_the_start_hides_nobody(kubelet: Kubelet, stuck: Stuck) -> None:
    rack = Rack("a", settings=SHORT)
    rack.found = stuck.found
    with serving(kubelet, Rack("o", resource=OTHER), rack) as daemon:
        kubelet.wait_for(OTHER, healthy=1)
        other_is_well(kubelet)
        assert RESOURCE not in daemon.services


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3), KeyboardInterrupt(), RecursionError()], ids=lambda e: type(e).__name__)
def test_whatever_a_hook_raises_stays_with_the_plugin(kubelet: Kubelet, error: BaseException) -> None:
    def fail(_self: object, *_args: object) -> object:
        raise error

    rack = Rack("a", allocate=fail, prepare=fail, prefer=fail)
    with serving(kubelet, rack, Rack("o", resource=OTHER)) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        assert type(error).__name__ in kubelet.admit(Pod.requesting(RESOURCE)).message

        def found() -> Iterable[Device]:
            raise error

        rack.found = found
        rack.event()
        wait_until(lambda: type(error).__name__ in daemon.scanners["device"].report.error, "the failure")
        other_is_well(kubelet)
        assert kubelet.streams(RESOURCE) == 1


def test_stop_is_not_held_up_by_what_hangs(kubelet: Kubelet, stuck: Stuck) -> None:
    def stop(_self: object) -> None:
        stuck.hang()

    def allocate(_self: object, _devices: Sequence[Device]) -> Edits:
        stuck.hang()
        return Edits()

    with serving(kubelet, Rack("a", allocate=allocate, settings=SHORT), Rack("o", resource=OTHER, stop=stop)):
        kubelet.wait_for(RESOURCE, healthy=1)
        kubelet.wait_for(OTHER, healthy=1)
        kubelet.admit(Pod.requesting(RESOURCE))
        began = time.monotonic()
    assert time.monotonic() - began < 2.0


def test_allocate_and_prefer_have_budgets_that_a_kubelet_can_bear() -> None:
    assert DEADLINES["allocate"] <= 10.0
    assert DEADLINES["prefer"] <= 2.0
    assert DEADLINES["prepare"] < 30.0, "the kubelet waits no longer for PreStartContainer"


def test_plugin_may_run_programs(kubelet: Kubelet) -> None:
    """A fork in a process with gRPC threads, with and without calls under way."""
    put_files(kubelet, "a", "b")
    with running(kubelet, plugin=FILES.replace(":Files", ":Programs")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        for n in range(5):
            pod = Pod.requesting(RESOURCE, 2, name=f"pod-{n}")
            assert kubelet.admit(pod)
            assert kubelet.start_container(pod).environ == {"SAID": "a b"}
            kubelet.delete_pod(pod)
        for answer in plugin_calls.allocate_concurrently(kubelet, RESOURCE, [["a"]] * 8):
            assert answer.envs["SAID"] == "a"
        kubelet.restart()
        kubelet.wait_for(RESOURCE, healthy=2)
        assert daemon.end() == 0
        assert "fork" not in daemon.log()


def test_slow_vendor_of_one_resource_does_not_delay_the_lists_of_another(kubelet: Kubelet, stuck: Stuck) -> None:
    rack, other = Rack("a", settings={"deadlines": Deadlines(discover=20.0)}), Rack("o", resource=OTHER)
    with serving(kubelet, rack, other) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        kubelet.wait_for(OTHER, healthy=1)
        rack.found = stuck.found
        rack.event()
        assert stuck.entered.wait(5.0)
        look: Callable[[], None] = other.event
        with within(10.0):
            other.put("p")
            look()
            kubelet.wait_for(OTHER, healthy=2)
        assert service_of(daemon).registrar.standing().streams == 1
        stuck.released.set()
