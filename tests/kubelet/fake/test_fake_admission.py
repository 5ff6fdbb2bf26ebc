# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Container, Kubelet, KubeletPanicked, KubeletStopped, Pod, SyncLoopBlocked
from tests.kubelet.fake.conftest import Clock
from tests.kubelet.fake.scripted import RESOURCE, Refuse, Scripted, healthy, unhealthy

KubeletWith = Callable[..., Kubelet]

OTHER = "vendor.example/other"


def rejection(text: str) -> str:
    return f"Pod was rejected: Allocate failed due to {text}, which is unexpected"


def serve(kubelet: Kubelet, devices: list[pb.Device], *, resource: str = RESOURCE, prefers: bool = False) -> Scripted:
    plugin = Scripted(kubelet, devices)
    plugin.options = lambda: pb.DevicePluginOptions(get_preferred_allocation_available=prefers)
    plugin.register(resource)
    kubelet.wait_for(resource, healthy=sum(device.health == "Healthy" for device in devices))
    return plugin


def test_a_pod_gets_as_many_devices_as_it_asks_for_in_one_call_with_one_container(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b", "c")) as plugin:
        pod = Pod.requesting(RESOURCE, 2)
        assert kubelet.admit(pod)
        (request,) = plugin.calls("Allocate")
        (container,) = request.container_requests
        assert set(container.devices_ids) == kubelet.held(pod) == kubelet.allocated(RESOURCE)
        assert len(kubelet.held(pod)) == 2


def test_one_seed_gives_one_order_and_another_seed_another(short_root: str) -> None:
    def pick(seed: int) -> list[str]:
        with Kubelet(short_root, seed=seed) as kubelet, serve(kubelet, healthy(*map(str, range(30)))) as plugin:
            kubelet.admit(Pod.requesting(RESOURCE, 10))
            return list(plugin.calls("Allocate")[0].container_requests[0].devices_ids)

    first, again, other = pick(1), pick(1), pick(2)
    assert first == again
    assert first != other


def test_too_few_devices_reject_the_pod_for_good(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b") + unhealthy("c")) as plugin:
        holder, pod = Pod.requesting(RESOURCE, 1), Pod.requesting(RESOURCE, 2)
        assert kubelet.admit(holder)
        admission = kubelet.admit(pod)
        assert (admission.ok, admission.reason) == (False, "UnexpectedAdmissionError")
        assert admission.message == rejection(f"requested number of devices unavailable for {RESOURCE}. Requested: 2, Available: 1")
        kubelet.delete_pod(holder)
        assert kubelet.admit(pod) == admission
        assert kubelet.admit(Pod.requesting(RESOURCE, 2))
        assert len(plugin.calls("Allocate")) == 2


def test_no_healthy_device_rejects_even_a_request_for_none(kubelet: Kubelet) -> None:
    with serve(kubelet, unhealthy("a")):
        kubelet.wait_for(RESOURCE, unhealthy=1)
        for count in (0, 1):
            assert kubelet.admit(Pod.requesting(RESOURCE, count)).message == rejection(
                f"no healthy devices present; cannot allocate unhealthy devices {RESOURCE}"
            )


def test_a_resource_that_nobody_has_registered_is_no_matter_of_the_device_manager(kubelet: Kubelet) -> None:
    assert kubelet.admit(Pod.requesting("vendor.example/unheard-of", 5))


def test_an_error_of_allocate_is_the_pods_message_and_frees_the_devices(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as plugin:

        def refuse(ids: list[str]) -> pb.ContainerAllocateResponse:
            raise Refuse("out of luck")

        plugin.allocate = refuse
        assert kubelet.admit(Pod.requesting(RESOURCE)).message == rejection("rpc error: code = Unknown desc = out of luck")
        assert kubelet.allocated(RESOURCE) == set()


def test_an_answer_for_no_container_leaks_the_devices_until_a_pod_goes(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b")) as plugin:
        holder = Pod.requesting(RESOURCE)
        assert kubelet.admit(holder)
        plugin.allocate = lambda ids: None
        assert kubelet.admit(Pod.requesting(RESOURCE)).message == rejection("no containers return in allocation response ")
        assert kubelet.allocated(RESOURCE) == {"a", "b"}
        plugin.allocate = lambda ids: pb.ContainerAllocateResponse()
        assert "Requested: 1, Available: 0" in kubelet.admit(Pod.requesting(RESOURCE)).message
        kubelet.delete_pod(holder)
        assert kubelet.admit(Pod.requesting(RESOURCE, 2))


def test_ordinary_init_containers_pass_their_devices_on_and_sidecars_keep_theirs(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b", "c", "d")) as plugin:
        pod = Pod(
            init_containers=(
                Container("init", {RESOURCE: 2}),
                Container("sidecar", {RESOURCE: 1}, restartable=True),
                Container("late", {RESOURCE: 2}),
            ),
            containers=(Container("one", {RESOURCE: 1}), Container("two", {RESOURCE: 2})),
        )
        assert kubelet.admit(pod)
        init, sidecar, late, one, two = (kubelet.held(pod, c.name) for c in pod.all_containers())
        assert sidecar < init  # reused from the first init container, and kept
        assert not sidecar & (late | one | two)
        assert one < late | init
        assert not one & two
        assert len(sidecar | one | two) == 4
        assert len(plugin.calls("Allocate")) == 5
        assert "Available: 0" in kubelet.admit(Pod.requesting(RESOURCE)).message


def test_devices_are_reused_whatever_has_become_of_their_health(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b", "c")) as plugin:
        pod = Pod(init_containers=(Container("init", {RESOURCE: 1}),), containers=(Container("main", {RESOURCE: 1}),))

        def fall_ill(ids: list[str]) -> pb.ContainerAllocateResponse:
            if len(plugin.calls("Allocate")) == 1:
                plugin.relist(unhealthy(*ids) + healthy(*({"a", "b", "c"} - set(ids))))
                kubelet.wait_for(RESOURCE, unhealthy=1)
            return pb.ContainerAllocateResponse()

        plugin.allocate = fall_ill
        assert kubelet.admit(pod)
        assert kubelet.held(pod, "main") == kubelet.held(pod, "init")
        assert not kubelet.held(pod) & kubelet.healthy(RESOURCE)


def test_a_device_that_leaves_the_list_while_it_is_allocated_crashes_the_kubelet(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b")) as plugin:

        def vanish(ids: list[str]) -> pb.ContainerAllocateResponse:
            plugin.relist(healthy("z"))
            kubelet.wait_for(RESOURCE, healthy=1)
            return pb.ContainerAllocateResponse()

        plugin.allocate = vanish
        with pytest.raises(KubeletPanicked, match=r"nil pointer dereference: vendor.example/device device '[ab]' is being allocated"):
            kubelet.admit(Pod.requesting(RESOURCE))
        assert not kubelet.running
        with pytest.raises(KubeletStopped):
            kubelet.capacity(RESOURCE)


def test_a_hung_allocate_is_reported_as_a_blocked_sync_loop(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(patience=0.3)
    with serve(kubelet, healthy("a")) as plugin:
        seen: list[str] = []

        def hang(ids: list[str]) -> pb.ContainerAllocateResponse:
            seen.extend(f"{blocking.method} of {blocking.resource}" for blocking in kubelet.sync_loop_blocked)
            plugin.hold.wait(10)
            return pb.ContainerAllocateResponse()

        plugin.allocate = hang
        with pytest.raises(SyncLoopBlocked, match=f"kubelet sync loop blocked: Allocate of {RESOURCE} has not answered for 0.3 s"):
            kubelet.admit(Pod.requesting(RESOURCE))
        assert seen == [f"Allocate of {RESOURCE}"]
        assert not kubelet.sync_loop_blocked


def test_a_kubelet_killed_during_allocate_admits_nothing_and_may_admit_the_pod_later(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as plugin:
        called = threading.Event()

        def hang(ids: list[str]) -> pb.ContainerAllocateResponse:
            called.set()
            plugin.hold.wait(10)
            return pb.ContainerAllocateResponse()

        plugin.allocate = hang

        def kill() -> None:
            assert called.wait(5)
            kubelet.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        pod = Pod.requesting(RESOURCE)
        with pytest.raises(KubeletStopped):
            kubelet.admit(pod)
        killer.join(5)
    kubelet.start()
    assert kubelet.admit(pod).message == rejection(f"no healthy devices present; cannot allocate unhealthy devices {RESOURCE}")


def test_a_pod_can_be_rejected_after_its_devices_were_allocated(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as plugin:
        kubelet.faults.reject_after_allocate = "Node didn't have enough resource: cpu"
        admission = kubelet.admit(Pod.requesting(RESOURCE))
        assert (admission.reason, len(plugin.calls("Allocate"))) == ("OutOfcpu", 1)
        kubelet.faults.reject_after_allocate = ""
        assert kubelet.admit(Pod.requesting(RESOURCE))  # frees what the rejected one held


def test_a_stopped_plugin_rejects_pods(kubelet_with: KubeletWith, clock: Clock) -> None:
    kubelet = kubelet_with(clock=clock)
    with serve(kubelet, healthy("a")):
        pass
    kubelet.wait_for(RESOURCE, healthy=0)
    assert "no healthy devices present" in kubelet.admit(Pod.requesting(RESOURCE)).message
    clock.now += 301
    kubelet.capacity(RESOURCE)
    assert kubelet.admit(Pod.requesting(RESOURCE))  # unknown by now, so nobody's matter: the container would start without a device


def test_several_resources_are_allocated_one_call_each(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as one, serve(kubelet, healthy("x"), resource=OTHER) as other:
        pod = Pod(containers=(Container(limits={RESOURCE: 1, OTHER: 1, "cpu": 4}),))
        assert kubelet.admit(pod)
        assert (kubelet.held(pod, resource=RESOURCE), kubelet.held(pod, resource=OTHER)) == ({"a"}, {"x"})
        assert len(one.calls("Allocate")) == len(other.calls("Allocate")) == 1
        assert len(kubelet.events.of("call")) == 2


def test_the_preferred_devices_are_taken(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b", "c", "d"), prefers=True) as plugin:
        plugin.prefer = lambda available, required, size: sorted(available)[-size:]
        pod = Pod.requesting(RESOURCE, 2)
        assert kubelet.admit(pod)
        assert kubelet.held(pod) == {"c", "d"}
        (request,) = plugin.calls("GetPreferredAllocation")
        (container,) = request.container_requests
        assert sorted(container.available_deviceIDs) == ["a", "b", "c", "d"]
        assert (list(container.must_include_deviceIDs), container.allocation_size) == ([], 2)


@pytest.mark.parametrize(
    ("answer", "sure"),
    [([], set()), (["a"], {"a"}), (["zz", "a"], {"a"}), (["a", "b", "c"], set())],
    ids=["nothing", "too few", "unknown ids", "too many"],
)
def test_a_preference_of_the_wrong_size_is_filled_up_or_cut_at_random(kubelet: Kubelet, answer: list[str], sure: set[str]) -> None:
    with serve(kubelet, healthy("a", "b", "c", "d"), prefers=True) as plugin:
        plugin.prefer = lambda available, required, size: answer
        pod = Pod.requesting(RESOURCE, 2)
        assert kubelet.admit(pod)
        assert len(kubelet.held(pod)) == 2
        assert sure <= kubelet.held(pod)
        if len(answer) > 2:
            assert kubelet.held(pod) < set(answer)


def test_the_preference_is_asked_for_even_when_there_is_no_choice(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b"), prefers=True) as plugin:
        assert kubelet.admit(Pod.requesting(RESOURCE, 2))
        assert len(plugin.calls("GetPreferredAllocation")) == 1


def test_the_preference_is_not_asked_for_when_reused_devices_suffice_and_counts_them_when_not(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b", "c", "d"), prefers=True) as plugin:
        enough = Pod(init_containers=(Container("init", {RESOURCE: 1}),), containers=(Container("main", {RESOURCE: 1}),))
        assert kubelet.admit(enough)
        assert len(plugin.calls("GetPreferredAllocation")) == 1
        kubelet.delete_pod(enough)
        more = Pod(init_containers=(Container("init", {RESOURCE: 1}),), containers=(Container("main", {RESOURCE: 3}),))
        assert kubelet.admit(more)
        container = plugin.calls("GetPreferredAllocation")[-1].container_requests[0]
        assert set(container.must_include_deviceIDs) == kubelet.held(more, "init")
        assert set(container.available_deviceIDs) == {"a", "b", "c", "d"}
        assert container.allocation_size == 3


def test_an_error_of_the_preference_rejects_the_pod_and_leaks_what_was_marked(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b", "c"), prefers=True) as plugin:

        def refuse(available: list[str], required: list[str], size: int) -> list[str]:
            if required:
                raise Refuse("no idea")
            return available[:size]

        plugin.prefer = refuse
        pod = Pod(init_containers=(Container("init", {RESOURCE: 1}),), containers=(Container("main", {RESOURCE: 2}),))
        expected = "device plugin GetPreferredAllocation rpc failed with err: rpc error: code = Unknown desc = no idea"
        assert kubelet.admit(pod).message == rejection(expected)


def test_pods_admitted_at_once_never_share_a_device(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy(*"abcdefgh"), prefers=True):
        pods = [Pod.requesting(RESOURCE, 2, name=f"pod-{n}") for n in range(5)]
        threads = [threading.Thread(target=kubelet.admit, args=(pod,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        held = [kubelet.held(pod) for pod in pods if kubelet.admit(pod)]
        assert len(held) == 4
        assert len(set().union(*held)) == 8
