# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Container, CreateContainerConfigError, Kubelet, Pod
from deviceplugin.testing.containers import CriDevice, CriMount
from tests.kubelet.fake.conftest import Clock
from tests.kubelet.fake.scripted import RESOURCE, Refuse, Scripted, healthy, unhealthy

KubeletWith = Callable[..., Kubelet]

OTHER = "vendor.example/other"


def serve(kubelet: Kubelet, devices: list[pb.Device], resource: str = RESOURCE, *, pre_start: bool = False) -> Scripted:
    plugin = Scripted(kubelet, devices)
    plugin.options = lambda: pb.DevicePluginOptions(pre_start_required=pre_start)
    plugin.register(resource)
    kubelet.wait_for(resource, healthy=len(devices))
    return plugin


def test_the_runtime_is_told_all_that_allocate_answered(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as plugin:
        plugin.allocate = lambda ids: pb.ContainerAllocateResponse(
            envs={"DEVICE": "a", "SHARED": "plugin"},
            devices=[pb.DeviceSpec(container_path="/dev/x", host_path="/dev/a", permissions="rwm")],
            mounts=[pb.Mount(container_path="/lib/x", host_path="/opt/x", read_only=True)],
            annotations={"vendor.example/key": "value", "io.kubernetes.container.restartCount": "99"},
            cdi_devices=[pb.CDIDevice(name="vendor.example/class=a")],
        )
        pod = Pod(containers=(Container(limits={RESOURCE: 1}, envs={"SHARED": "pod"}),))
        assert kubelet.admit(pod)
        config = kubelet.start_container(pod)
        assert config.envs[-1] == ("SHARED", "pod")
        assert config.environ == {"DEVICE": "a", "SHARED": "pod"}
        assert config.devices == (CriDevice("/dev/x", "/dev/a", "rwm"),)
        assert config.mounts == (CriMount("/lib/x", "/opt/x", True),)
        assert config.cdi_devices == ("vendor.example/class=a",)
        assert (config.annotations["vendor.example/key"], config.annotations["io.kubernetes.container.restartCount"]) == ("value", "0")


def test_of_two_resources_that_clash_one_wins_and_the_clash_is_noted(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as one, serve(kubelet, healthy("x"), OTHER) as other:
        for plugin, host in ((one, "/dev/one"), (other, "/dev/other")):
            plugin.allocate = lambda ids, host=host: pb.ContainerAllocateResponse(  # type: ignore[misc]
                envs={"HOST": host},
                devices=[pb.DeviceSpec(container_path="/dev/x", host_path=host, permissions="r")],
                mounts=[pb.Mount(container_path="/x", host_path=host)],
                annotations={"vendor.example/host": host},
                cdi_devices=[pb.CDIDevice(name="vendor.example/class=same")],
            )
        pod = Pod(containers=(Container(limits={RESOURCE: 1, OTHER: 1}),))
        assert kubelet.admit(pod)
        config = kubelet.start_container(pod)
        assert len(config.devices) == len(config.mounts) == len(config.cdi_devices) == 1
        winner = config.environ["HOST"]
        assert {config.devices[0].host_path, config.mounts[0].host_path, config.annotations["vendor.example/host"]} == {winner}
        assert {event.detail["what"] for event in kubelet.events.of("conflict")} == {"env", "device", "mount", "annotation"}


def test_a_restart_replays_the_first_answer_whatever_has_become_of_the_device(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as plugin:
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        first = kubelet.start_container(pod)
        plugin.allocate = lambda ids: pb.ContainerAllocateResponse(envs={"IDS": "changed"})
        plugin.relist(unhealthy("a"))
        kubelet.wait_for(RESOURCE, unhealthy=1)
        again = kubelet.restart_container(pod)
        assert (first.environ, again.environ) == ({"IDS": "a"}, {"IDS": "a"})
        assert again.annotations["io.kubernetes.container.restartCount"] == "1"
        assert len(plugin.calls("Allocate")) == 1


def test_pre_start_comes_before_every_start_with_the_containers_ids(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a", "b"), pre_start=True) as plugin:
        pod = Pod.requesting(RESOURCE, 2)
        assert kubelet.admit(pod)
        assert not plugin.calls("PreStartContainer")
        kubelet.start_container(pod)
        kubelet.restart_container(pod)
        assert [sorted(request.devices_ids) for request in plugin.calls("PreStartContainer")] == [["a", "b"], ["a", "b"]]


def test_pre_start_that_fails_or_takes_too_long_keeps_the_container_from_starting_for_now(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(prestart_timeout=0.2)
    with serve(kubelet, healthy("a"), pre_start=True) as plugin:
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)

        def refuse(ids: list[str]) -> None:
            raise Refuse("still warm")

        plugin.pre_start = refuse
        with pytest.raises(CreateContainerConfigError) as error:
            kubelet.start_container(pod)
        assert str(error.value) == "device plugin PreStartContainer rpc failed with err: rpc error: code = Unknown desc = still warm"

        def hang(ids: list[str]) -> None:
            plugin.hold.wait(5)

        plugin.pre_start = hang
        with pytest.raises(CreateContainerConfigError, match="code = DeadlineExceeded desc = context deadline exceeded"):
            kubelet.start_container(pod)
        plugin.pre_start = lambda ids: None
        assert kubelet.start_container(pod).annotations["io.kubernetes.container.restartCount"] == "0"


def test_a_pod_admitted_before_the_plugin_listed_gets_its_devices_at_container_start(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    assert kubelet.admit(pod)
    assert kubelet.start_container(pod).envs == ()
    with serve(kubelet, healthy("a")) as plugin:
        assert kubelet.restart_container(pod).environ == {"IDS": "a"}
        assert len(plugin.calls("Allocate")) == 1


def test_such_a_pod_never_starts_when_the_plugin_wants_pre_start(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    assert kubelet.admit(pod)
    with (
        serve(kubelet, healthy("a"), pre_start=True),
        pytest.raises(CreateContainerConfigError, match=f"no devices found allocated in local cache for pod {pod.uid}, container main"),
    ):
        kubelet.start_container(pod)


def test_late_allocations_of_several_pods_come_at_once(kubelet: Kubelet) -> None:
    pods = [Pod.requesting(RESOURCE, name=f"pod-{n}") for n in range(3)]
    for pod in pods:
        assert kubelet.admit(pod)
    together = threading.Barrier(3)
    with serve(kubelet, healthy("a", "b", "c")) as plugin:

        def meet(ids: list[str]) -> pb.ContainerAllocateResponse:
            together.wait(5)
            return pb.ContainerAllocateResponse()

        plugin.allocate = meet
        threads = [threading.Thread(target=kubelet.start_container, args=(pod,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert set().union(*(kubelet.held(pod) for pod in pods)) == {"a", "b", "c"}


def test_containers_restart_for_five_minutes_after_the_plugin_has_gone_and_then_no_more(kubelet_with: KubeletWith, clock: Clock) -> None:
    kubelet = kubelet_with(clock=clock)
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
    kubelet.wait_for(RESOURCE, healthy=0)
    assert kubelet.restart_container(pod).environ == {"IDS": "a"}
    clock.now += 301
    kubelet.capacity(RESOURCE)
    with pytest.raises(CreateContainerConfigError, match=f"endpoint not found in cache for a registered resource: {RESOURCE}"):
        kubelet.restart_container(pod)


def test_pre_start_of_a_stopped_plugin_fails(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a"), pre_start=True):
        assert kubelet.admit(pod)
    kubelet.wait_for(RESOURCE, healthy=0)
    with pytest.raises(CreateContainerConfigError, match=r"PreStartContainer rpc failed with err: endpoint .* has been stopped"):
        kubelet.start_container(pod)


def test_a_pod_that_was_not_admitted_has_no_containers_to_start(kubelet: Kubelet) -> None:
    with pytest.raises(ValueError, match="has not been admitted"):
        kubelet.start_container(Pod())


def test_a_container_that_the_pod_does_not_have_is_named(kubelet: Kubelet) -> None:
    pod = Pod()
    assert kubelet.admit(pod)
    with pytest.raises(KeyError, match="pod pod has no container 'other', only main"):
        kubelet.start_container(pod, "other")
