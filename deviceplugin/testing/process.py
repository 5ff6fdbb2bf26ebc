# SPDX-License-Identifier: Apache-2.0
"""One run of the kubelet, from exec to death. All that is in memory dies with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing.admission import Allocator
from deviceplugin.testing.checkpoint import Checkpoint
from deviceplugin.testing.clients import Clients
from deviceplugin.testing.containers import Starter
from deviceplugin.testing.devices import DeviceManager
from deviceplugin.testing.events import EventLog
from deviceplugin.testing.faults import Faults
from deviceplugin.testing.podresources import PodResources
from deviceplugin.testing.pods import Pod
from deviceplugin.testing.rpc import Caller
from deviceplugin.testing.settings import Settings
from deviceplugin.testing.sockets import Listener, remove_sockets
from deviceplugin.testing.watcher import Watcher

_A_YEAR = 365 * 86400.0


class Process:
    """``start`` once, ``kill`` once."""

    def __init__(
        self,
        settings: Settings,
        events: EventLog,
        faults: Faults,
        checkpoint: Checkpoint,
        active_pods: Callable[[], Collection[Pod]],
        running: frozenset[tuple[str, str]],
    ) -> None:
        self._settings = settings
        self.manager = DeviceManager(settings, events, checkpoint, active_pods)
        self.manager.running = running
        self.clients = Clients(self.manager, faults)
        self.allocator = Allocator(self.manager)
        self.starter = Starter(self.manager, self.allocator)
        self.pod_resources = PodResources(self.manager, active_pods)
        self.watcher = Watcher(settings, events, self.clients)
        handler = grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": grpc.unary_unary_rpc_method_handler(self._register)})
        self._registration = Listener(settings.kubelet_socket, settings.hidden, [handler])

    def start(self, inode: int | None = None) -> bool:
        """Comes up in the kubelet's order. Whether ``kubelet.sock`` has the inode number asked for."""
        os.makedirs(self._settings.hidden, mode=0o700, exist_ok=True)
        self.pod_resources.start()
        self.watcher.start()
        self.manager.read_checkpoint()
        os.makedirs(self._settings.device_plugins, mode=0o750, exist_ok=True)
        remove_sockets(self._settings.device_plugins)
        return self._registration.start(inode)

    def kill(self) -> None:
        with self.manager.mutex:
            self.manager.dead = True
        ended = [self._registration.stop(), self.pod_resources.stop()]
        self.clients.stop()
        self.watcher.stop()
        for wait in ended:
            wait()

    def _register(self, data: bytes, context: Any) -> bytes:
        left = context.time_remaining()
        caller = Caller(left if left is not None and left < _A_YEAR else None)
        context.add_callback(caller.cancel)
        try:
            self.clients.register(pb.RegisterRequest.FromString(data), caller)
        except DecodeError as error:
            context.abort(grpc.StatusCode.INTERNAL, f"grpc: error unmarshalling request: {error}")
        except RuntimeError as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return b""
