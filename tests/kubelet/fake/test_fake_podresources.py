# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable

import grpc
import pytest

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as device_pb
from deviceplugin.kubelet import podresources_v1_pb2 as pb
from deviceplugin.testing import Container, Kubelet, Pod
from tests.kubelet.fake.conftest import Clock
from tests.kubelet.fake.scripted import RESOURCE, Scripted, healthy, unhealthy

KubeletWith = Callable[..., Kubelet]


class Client:
    def __init__(self, kubelet: Kubelet) -> None:
        self._socket = kubelet.pod_resources_socket

    def call(self, method: str, request: bytes) -> bytes:
        with grpc.insecure_channel("unix:" + self._socket, (("grpc.use_local_subchannel_pool", 1),)) as channel:
            answer: bytes = channel.unary_unary("/v1.PodResourcesLister/" + method)(request, timeout=5)
            return answer

    def held(self) -> dict[str, dict[str, list[tuple[str, str, tuple[int, ...]]]]]:
        response = pb.ListPodResourcesResponse.FromString(self.call("List", b""))
        return {
            pod.name: {
                container.name: sorted((d.resource_name, d.device_ids[0], tuple(n.ID for n in d.topology.nodes)) for d in container.devices)
                for container in pod.containers
            }
            for pod in response.pod_resources
        }

    def allocatable(self) -> list[tuple[str, tuple[int, ...]]]:
        response = pb.AllocatableResourcesResponse.FromString(self.call("GetAllocatableResources", b""))
        return sorted((d.device_ids[0], tuple(n.ID for n in d.topology.nodes)) for d in response.devices)


def test_each_device_is_an_entry_per_numa_node(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a", nodes=[0, 1])) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        assert kubelet.admit(Pod.requesting(RESOURCE))
        assert Client(kubelet).held() == {"pod": {"main": [(RESOURCE, "a", (0,)), (RESOURCE, "a", (1,))]}}
        assert Client(kubelet).allocatable() == [("a", (0,)), ("a", (1,))]


def test_only_active_pods_are_listed_and_listing_frees_what_dead_ones_held(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a", "b")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=2)
        pod, rejected = Pod.requesting(RESOURCE), Pod.requesting(RESOURCE, 5, name="rejected")
        assert kubelet.admit(pod)
        assert not kubelet.admit(rejected)
        assert set(Client(kubelet).held()) == {"pod"}
        kubelet.delete_pod(pod)
        assert len(kubelet.allocated(RESOURCE)) == 1
        assert Client(kubelet).held() == {}
        assert kubelet.allocated(RESOURCE) == set()


def test_sidecars_are_shown_and_ordinary_init_containers_are_not(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a", "b", "c")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=3)
        pod = Pod(
            init_containers=(Container("init", {RESOURCE: 1}), Container("sidecar", {RESOURCE: 1}, restartable=True)),
            containers=(Container("main", {RESOURCE: 1}),),
        )
        assert kubelet.admit(pod)
        assert [len(devices) for devices in Client(kubelet).held()["pod"].values()] == [1, 1]
        assert list(Client(kubelet).held()["pod"]) == ["sidecar", "main"]


def test_only_healthy_devices_are_allocatable_and_an_empty_topology_hides_one(kubelet: Kubelet) -> None:
    empty = device_pb.Device(ID="empty", health="Healthy", topology=device_pb.TopologyInfo())
    with Scripted(kubelet, healthy("a") + unhealthy("b") + [empty]) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=2, unhealthy=1)
        assert Client(kubelet).allocatable() == [("a", ())]
        plugin.stop()
        kubelet.wait_for(RESOURCE, healthy=0)
        assert Client(kubelet).allocatable() == []


def test_one_pod_can_be_asked_for_by_name(kubelet: Kubelet) -> None:
    assert kubelet.admit(Pod(name="there"))
    response = pb.GetPodResourcesResponse.FromString(
        Client(kubelet).call("Get", pb.GetPodResourcesRequest(pod_name="there", pod_namespace="default").SerializeToString())
    )
    assert response.pod_resources.name == "there"
    with pytest.raises(grpc.RpcError) as error:
        Client(kubelet).call("Get", pb.GetPodResourcesRequest(pod_name="away", pod_namespace="ns").SerializeToString())
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.UNKNOWN, "pod away in namespace ns not found")


def test_ten_calls_at_once_and_a_hundred_a_second_are_answered(kubelet_with: KubeletWith, clock: Clock) -> None:
    client = Client(kubelet_with(clock=clock))
    for _ in range(10):
        client.call("List", b"")
    with pytest.raises(grpc.RpcError) as error:
        client.call("List", b"")
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
    clock.now += 0.0201
    client.call("GetAllocatableResources", b"")
    client.call("List", b"")
    with pytest.raises(grpc.RpcError):
        client.call("List", b"")


def test_the_socket_is_replaced_at_each_start_and_stays_when_the_kubelet_is_down(kubelet: Kubelet) -> None:
    before = os.stat(kubelet.pod_resources_socket)
    kubelet.stop()
    with pytest.raises(grpc.RpcError):
        Client(kubelet).held()
    assert os.stat(kubelet.pod_resources_socket).st_ino == before.st_ino
    kubelet.start()
    assert Client(kubelet).held() == {}
