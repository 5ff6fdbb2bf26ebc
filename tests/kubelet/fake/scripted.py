# SPDX-License-Identifier: Apache-2.0
"""A plugin that does exactly what a test tells it, rightly or wrongly."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet import pluginregistration_v1_pb2 as registration_pb
from deviceplugin.testing import Kubelet

RESOURCE = "vendor.example/device"

_numbers = itertools.count()


def healthy(*ids: str, nodes: Iterable[int] = ()) -> list[pb.Device]:
    topology = pb.TopologyInfo(nodes=[pb.NUMANode(ID=node) for node in nodes])
    return [pb.Device(ID=device, health="Healthy", topology=topology if topology.nodes else None) for device in ids]


def unhealthy(*ids: str) -> list[pb.Device]:
    return [pb.Device(ID=device, health="Unhealthy") for device in ids]


def message(devices: Iterable[pb.Device]) -> bytes:
    return pb.ListAndWatchResponse(devices=devices).SerializeToString()


class Scripted:
    """Serves on a socket of its own name in the kubelet's directory, or in ``directory``. Behaviour is what the attributes say."""

    def __init__(self, kubelet: Kubelet, devices: Iterable[pb.Device] = (), *, name: str = "", directory: str = "") -> None:
        self.kubelet = kubelet
        self.name = name or f"scripted-{next(_numbers)}.sock"
        self.path = os.path.join(directory or kubelet.device_plugins, self.name)
        self.options: Callable[[], pb.DevicePluginOptions] = pb.DevicePluginOptions
        self.allocate: Callable[[list[str]], pb.ContainerAllocateResponse | None] = lambda ids: pb.ContainerAllocateResponse(
            envs={"IDS": ",".join(sorted(ids))}
        )
        self.prefer: Callable[[list[str], list[str], int], list[str]] = lambda available, required, size: []
        self.pre_start: Callable[[list[str]], None] = lambda ids: None
        self.info = registration_pb.PluginInfo(type="DevicePlugin", name=RESOURCE, supported_versions=["v1beta1"])
        self.get_info: Callable[[], registration_pb.PluginInfo] = lambda: self.info
        self.notified: list[registration_pb.RegistrationStatus] = []
        self.authorities: list[str] = []
        self.requests: list[tuple[str, Any]] = []
        self.opened = threading.Event()
        self.active = 0  # streams
        self.hold = threading.Event()  # whatever blocks waits for this, and it is set when the plugin stops
        self._lists = [message(devices)]
        self._changed = threading.Condition()
        self._ended = False
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool, options=(("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)))
        self._server.add_generic_rpc_handlers([_Handler(self)])
        self._server.add_insecure_port("unix:" + self.path)
        self._server.start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def register(self, resource: str = RESOURCE, *, version: str = "v1beta1", endpoint: str | None = None, timeout: float = 20) -> None:
        """:raises grpc.RpcError: refused."""
        register(self.kubelet, resource, self.name if endpoint is None else endpoint, version=version, timeout=timeout)

    def relist(self, devices: Iterable[pb.Device]) -> None:
        self.send(message(devices))

    def send(self, data: bytes) -> None:
        """The next message, as bytes that need not be a message."""
        with self._changed:
            self._lists.append(data)
            self._changed.notify_all()

    def end_streams(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        self.hold.set()
        self.end_streams()
        self._server.stop(None).wait()
        self._pool.shutdown(wait=False)

    def streams(self, context: Any) -> Iterator[bytes]:
        context.add_callback(self._closed)
        self.active += 1
        self.opened.set()
        sent = max(0, len(self._lists) - 1)
        while context.is_active():
            with self._changed:
                while not (self._ended or len(self._lists) > sent) and context.is_active():
                    self._changed.wait()
                if self._ended or not context.is_active():
                    return
                data, sent = self._lists[sent], sent + 1
            yield data

    def _closed(self) -> None:
        with self._changed:
            self.active -= 1
            self._changed.notify_all()

    def answer(self, method: str, data: bytes) -> bytes:
        if method == "GetDevicePluginOptions":
            return self.options().SerializeToString()
        if method == "Allocate":
            allocate = pb.AllocateRequest.FromString(data)
            self.requests.append((method, allocate))
            answers = [self.allocate(list(request.devices_ids)) for request in allocate.container_requests]
            return pb.AllocateResponse(container_responses=[answer for answer in answers if answer is not None]).SerializeToString()
        if method == "GetPreferredAllocation":
            preferred = pb.PreferredAllocationRequest.FromString(data)
            self.requests.append((method, preferred))
            return pb.PreferredAllocationResponse(
                container_responses=[
                    pb.ContainerPreferredAllocationResponse(
                        deviceIDs=self.prefer(list(r.available_deviceIDs), list(r.must_include_deviceIDs), r.allocation_size)
                    )
                    for r in preferred.container_requests
                ]
            ).SerializeToString()
        if method == "PreStartContainer":
            start = pb.PreStartContainerRequest.FromString(data)
            self.requests.append((method, start))
            self.pre_start(list(start.devices_ids))
            return b""
        if method == "GetInfo":
            return self.get_info().SerializeToString()
        assert method == "NotifyRegistrationStatus", method
        self.notified.append(registration_pb.RegistrationStatus.FromString(data))
        return b""

    def calls(self, method: str) -> list[Any]:
        return [request for name, request in self.requests if name == method]


class Refuse(Exception):
    """Raised by a test's function: the call fails with UNKNOWN and this text."""


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, plugin: Scripted) -> None:
        self._plugin = plugin

    def service(self, details: Any) -> Any:
        method = details.method.rsplit("/", 1)[1]
        if method == "ListAndWatch":
            return grpc.unary_stream_rpc_method_handler(lambda data, context: self._plugin.streams(context))
        return grpc.unary_unary_rpc_method_handler(lambda data, context: self._unary(method, data, context))

    def _unary(self, method: str, data: bytes, context: Any) -> bytes:
        try:
            return self._plugin.answer(method, data)
        except Refuse as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
            raise


def register(kubelet: Kubelet, resource: str, endpoint: str, *, version: str = "v1beta1", timeout: float = 20) -> None:
    request = pb.RegisterRequest(version=version, endpoint=endpoint, resource_name=resource, options=pb.DevicePluginOptions(pre_start_required=True))
    register_bytes(kubelet, request.SerializeToString(), timeout=timeout)


def register_bytes(kubelet: Kubelet, data: bytes, *, timeout: float = 20) -> None:
    with grpc.insecure_channel("unix:" + kubelet.socket, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        channel.unary_unary("/v1beta1.Registration/Register")(data, timeout=timeout)
