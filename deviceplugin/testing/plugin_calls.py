# SPDX-License-Identifier: Apache-2.0
"""Calls to a registered plugin that no kubelet makes in just this way: for checks, and to provoke."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing.kubelet import Kubelet
from deviceplugin.testing.rpc import Connection, Pending

_SERVICE = "/v1beta1.DevicePlugin/"
_LIMIT = 10.0


def _connection(kubelet: Kubelet, resource: str) -> Connection:
    endpoint = kubelet.endpoint(resource)
    if endpoint is None:
        raise LookupError(f"no plugin of {resource} has registered\n{kubelet.describe()}")
    return endpoint.connected()


def options(kubelet: Kubelet, resource: str) -> pb.DevicePluginOptions:
    """What the plugin answers when asked for its options. :raises RpcFailed: it does not."""
    return _connection(kubelet, resource).call(_SERVICE + "GetDevicePluginOptions", pb.Empty(), pb.DevicePluginOptions, timeout=_LIMIT)


def allocate(kubelet: Kubelet, resource: str, containers: Iterable[Iterable[str]]) -> list[pb.ContainerAllocateResponse]:
    """One Allocate call for several containers, in which the ids have the order given. Nothing is recorded as given out."""
    return list(_allocate(kubelet, resource, containers).result(_LIMIT).container_responses)


def allocate_concurrently(kubelet: Kubelet, resource: str, batches: Sequence[Iterable[str]]) -> list[pb.ContainerAllocateResponse]:
    """One Allocate call per batch of ids, all under way at once, as the kubelet's pod workers may make them. :raises RpcFailed: one failed."""
    pending = [_allocate(kubelet, resource, [ids]) for ids in batches]
    return [one.result(_LIMIT).container_responses[0] for one in pending]


def _allocate(kubelet: Kubelet, resource: str, containers: Iterable[Iterable[str]]) -> Pending[pb.AllocateResponse]:
    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids) for ids in containers])
    return _connection(kubelet, resource).start(_SERVICE + "Allocate", request, pb.AllocateResponse, _LIMIT)


def prefer(kubelet: Kubelet, resource: str, available: Iterable[str], required: Iterable[str], size: int) -> list[str]:
    """One GetPreferredAllocation call. :raises RpcFailed: it failed."""
    container = pb.ContainerPreferredAllocationRequest(available_deviceIDs=available, must_include_deviceIDs=required, allocation_size=size)
    request = pb.PreferredAllocationRequest(container_requests=[container])
    response = _connection(kubelet, resource).call(_SERVICE + "GetPreferredAllocation", request, pb.PreferredAllocationResponse, timeout=_LIMIT)
    return list(response.container_responses[0].deviceIDs)


def oversized(kubelet: Kubelet, resource: str) -> list[str]:
    """A GetPreferredAllocation call of more than 4 MiB: the listed devices and 100000 that are not. :raises RpcFailed: it failed."""
    listed = sorted(kubelet.devices(resource))
    return prefer(kubelet, resource, [*listed, *(f"no-such-device-{n:06}-{'x' * 24}" for n in range(100_000))], [], 1)
