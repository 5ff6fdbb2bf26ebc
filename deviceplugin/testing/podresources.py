# SPDX-License-Identifier: Apache-2.0
"""The pod resources service, v1 (pkg/kubelet/apis/podresources/server_v1.go): which container holds which devices."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from deviceplugin.kubelet import podresources_v1_pb2 as pb
from deviceplugin.testing.checkpoint import WITHOUT_TOPOLOGY
from deviceplugin.testing.devices import DeviceManager
from deviceplugin.testing.pods import Container, Pod
from deviceplugin.testing.sockets import Listener

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

QPS = 100.0
BURST = 10.0


class Limiter:
    """A token bucket on the kubelet's clock; a clock that a test stops refills nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = BURST
        self._at = clock()

    def allow(self) -> bool:
        with self._lock:
            now = self._clock()
            self._tokens = min(BURST, self._tokens + (now - self._at) * QPS)
            self._at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class PodResources:
    """The service of one kubelet process."""

    def __init__(self, manager: DeviceManager, active_pods: Callable[[], Collection[Pod]]) -> None:
        self._manager = manager
        self._active_pods = active_pods
        self._limiter = Limiter(manager.settings.clock)
        handlers = {
            "List": self._handler(self.list, pb.ListPodResourcesRequest),
            "Get": self._handler(self.get, pb.GetPodResourcesRequest),
            "GetAllocatableResources": self._handler(self.allocatable, pb.AllocatableResourcesRequest),
        }
        settings = manager.settings
        self._listener = Listener(
            settings.pod_resources_socket,
            settings.hidden,
            [grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers)],
            rename=True,
            workers=8,
        )

    def start(self) -> None:
        os.makedirs(os.path.dirname(self._listener.path), mode=0o750, exist_ok=True)
        self._listener.start()

    def stop(self) -> Callable[[], object]:
        return self._listener.stop()

    def list(self, request: pb.ListPodResourcesRequest) -> pb.ListPodResourcesResponse:
        """Active pods only. Frees what dead pods hold, as a side effect."""
        pods = self._active_pods()
        self._manager.update_allocated()
        return pb.ListPodResourcesResponse(pod_resources=[self._pod(pod) for pod in pods])

    def get(self, request: pb.GetPodResourcesRequest) -> pb.GetPodResourcesResponse:
        """:raises LookupError: no such pod."""
        for pod in self._active_pods():
            if (pod.name, pod.namespace) == (request.pod_name, request.pod_namespace):
                return pb.GetPodResourcesResponse(pod_resources=self._pod(pod))
        raise LookupError(f"pod {request.pod_name} in namespace {request.pod_namespace} not found")

    def allocatable(self, request: pb.AllocatableResourcesRequest) -> pb.AllocatableResourcesResponse:
        """All healthy devices, whether in use or not. One whose list entry had an empty topology is missing, as in the kubelet."""
        manager = self._manager
        devices: list[pb.ContainerDevices] = []
        with manager.mutex:
            for resource, healthy in manager.healthy.items():
                for device in manager.settings.order.shuffled(healthy):
                    listed = manager.listed[resource][device]
                    devices += _entries(resource, device, listed.nodes if listed.topology else None)
        return pb.AllocatableResourcesResponse(devices=devices)

    def _pod(self, pod: Pod) -> pb.PodResources:
        shown = [init for init in pod.init_containers if init.restartable] + list(pod.containers)
        return pb.PodResources(name=pod.name, namespace=pod.namespace, containers=[self._container(pod, container) for container in shown])

    def _container(self, pod: Pod, container: Container) -> pb.ContainerResources:
        manager = self._manager
        devices: list[pb.ContainerDevices] = []
        with manager.mutex:
            for resource, assignment in manager.held.get(pod.uid, {}).get(container.name, {}).items():
                nodes: dict[str, list[int]] = {}
                for node, ids in assignment.by_node.items():
                    for device in ids:
                        nodes.setdefault(device, []).extend([] if node == WITHOUT_TOPOLOGY else [node])
                for device, its_nodes in nodes.items():
                    devices += _entries(resource, device, its_nodes or None)
        return pb.ContainerResources(name=container.name, devices=devices)

    def _handler(self, answer: Callable[[Q], A], request: type[Q]) -> Any:
        def handle(data: Q, context: Any) -> A:
            if not self._limiter.allow():
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
            try:
                return answer(data)
            except LookupError as error:
                context.abort(grpc.StatusCode.UNKNOWN, error.args[0])
                raise  # abort has raised already

        return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=request.FromString, response_serializer=_serialize)


def _entries(resource: str, device: str, nodes: Iterable[int] | None) -> list[pb.ContainerDevices]:
    """One entry per NUMA node, one without topology when nothing is known of it."""
    if nodes is None:
        return [pb.ContainerDevices(resource_name=resource, device_ids=[device])]
    return [
        pb.ContainerDevices(resource_name=resource, device_ids=[device], topology=pb.TopologyInfo(nodes=[pb.NUMANode(ID=node)])) for node in nodes
    ]


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
