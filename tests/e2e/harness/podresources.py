"""The kubelet's own view of which devices exist and who holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from deviceplugin.kubelet import podresources_v1_pb2 as api

# Device ids with their NUMA nodes, by resource name.
Devices = dict[str, dict[str, list[int]]]

MAX_MESSAGE_BYTES = 64 << 20
M = TypeVar("M", bound=Message)


def _devices(entries: Any) -> Devices:
    """Joins the kubelet's entries: it sends one for every pair of device and NUMA node."""
    found: Devices = {}
    for entry in entries:
        for device in entry.device_ids:
            nodes = found.setdefault(entry.resource_name, {}).setdefault(device, [])
            nodes.extend(sorted({node.ID for node in entry.topology.nodes} - set(nodes)))
    return found


class PodResources:
    """A client of the podresources service. Every call opens a channel of its own, so a kubelet that restarts needs no care.

    Each method raises ConnectionError, while the kubelet is down or because it refuses.
    """

    def __init__(self, socket: Path, timeout: float = 5.0) -> None:
        self._target = f"unix:{socket}"
        self._timeout = timeout

    def _call(self, method: str, request: Message, reply: type[M]) -> M:
        with grpc.insecure_channel(self._target, options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]) as channel:
            call = channel.unary_unary(
                f"/v1.PodResourcesLister/{method}", request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
            )
            try:
                result: M = call(request, timeout=self._timeout)
            except grpc.RpcError as error:
                raise ConnectionError(f"podresources {method}: {error}") from error
            return result

    def list(self) -> dict[str, dict[str, Devices]]:
        """What active pods hold: devices by container name, by pod name. Ordinary init containers are not in it.

        A static pod's name ends in the name of its node.
        """
        reply = self._call("List", api.ListPodResourcesRequest(), api.ListPodResourcesResponse)
        return {pod.name: {container.name: _devices(container.devices) for container in pod.containers} for pod in reply.pod_resources}

    def allocatable(self) -> Devices:
        """All healthy devices, whether or not a pod holds them."""
        return _devices(self._call("GetAllocatableResources", api.AllocatableResourcesRequest(), api.AllocatableResourcesResponse).devices)
