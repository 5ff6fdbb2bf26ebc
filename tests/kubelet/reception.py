# SPDX-License-Identifier: Apache-2.0
"""A kubelet.sock that takes registrations and then does only what a test says: it never dials back by itself."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet.paths import Paths


@dataclass(frozen=True, slots=True)
class Registration:
    """One Register call: what it said, how long its caller would wait (seconds), and whether its socket took a connection at that moment."""

    request: pb.RegisterRequest
    patience: float
    answering: bool


class Reception:
    """Answers Register, with an error where ``refusal`` is set, once ``gate`` is open; :attr:`calls` are the calls so far."""

    def __init__(self, root: str) -> None:
        self.paths = Paths.below(root)
        self.calls: queue.SimpleQueue[Registration] = queue.SimpleQueue()
        self.refusal = ""
        self.gate = threading.Event()
        self.gate.set()

    def next(self, timeout: float = 5.0) -> Registration:
        """The next Register call. :raises queue.Empty: none came."""
        return self.calls.get(timeout=timeout)

    def register(self, request: pb.RegisterRequest, context: Any) -> pb.Empty:
        answering = dialled(os.path.join(self.paths.device_plugins, request.endpoint))
        self.calls.put(Registration(request, context.time_remaining(), answering))
        self.gate.wait(30.0)
        if self.refusal:
            context.abort(grpc.StatusCode.UNKNOWN, self.refusal)
        return pb.Empty()


def dialled(path: str) -> bool:
    """Whether a gRPC connection to the socket can be had at once."""
    with channel_to(path) as channel:
        try:
            channel.unary_unary("/v1beta1.DevicePlugin/GetDevicePluginOptions")(b"", timeout=1.0)
        except grpc.RpcError:
            return False
    return True


def channel_to(path: str) -> grpc.Channel:
    return grpc.insecure_channel(f"unix:{path}", (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)))


def unary(path: str, method: str, request: Any, response: Callable[[bytes], Any], timeout: float = 5.0) -> Any:
    """One call on a connection of its own."""
    with channel_to(path) as channel:
        return response(channel.unary_unary(method)(request.SerializeToString(), timeout=timeout))


@contextmanager
def reception(root: str) -> Iterator[Reception]:
    """Opens below a root."""
    desk = Reception(root)
    os.makedirs(desk.paths.device_plugins, exist_ok=True)
    handler = grpc.unary_unary_rpc_method_handler(desk.register, pb.RegisterRequest.FromString, pb.Empty.SerializeToString)
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": handler})])
    server.add_insecure_port(f"unix:{desk.paths.kubelet_socket}")
    server.start()
    try:
        yield desk
    finally:
        desk.gate.set()
        server.stop(None).wait()
        pool.shutdown()
