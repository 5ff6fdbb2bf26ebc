# SPDX-License-Identifier: Apache-2.0
"""A plugin that behaves: the smallest that passes every conformance check."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable

import grpc

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Kubelet
from tests.kubelet.fake.scripted import RESOURCE, Refuse, Scripted, healthy


class Reference:
    """Serves until stopped: a new socket and one registration whenever there is a kubelet and no stream."""

    def __init__(self, kubelet: Kubelet, ids: Iterable[str] = ("a", "b", "c")) -> None:
        self._kubelet = kubelet
        self._ids = tuple(ids)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reference:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            # First the kubelet, then the socket: a kubelet that starts removes every socket, and then makes its own.
            if self._kubelet_listens():
                self._serve(self._plugin())
            self._stop.wait(0.02)

    def _kubelet_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self._kubelet.socket) == 0

    def _serve(self, plugin: Scripted) -> None:
        try:
            plugin.register()
            if plugin.opened.wait(5):
                self._until_the_stream_ends(plugin)
        except grpc.RpcError:
            return
        finally:
            plugin.stop()

    def _until_the_stream_ends(self, plugin: Scripted) -> None:
        while plugin.active and os.path.lexists(plugin.path) and not self._stop.is_set():
            self._stop.wait(0.02)

    def _plugin(self) -> Scripted:
        plugin = Scripted(self._kubelet, healthy(*self._ids))
        plugin.options = lambda: pb.DevicePluginOptions(get_preferred_allocation_available=True, pre_start_required=True)
        plugin.prefer = lambda available, required, size: (required + sorted(set(available) - set(required)))[:size]
        plugin.allocate = self._allocate
        return plugin

    def _allocate(self, ids: list[str]) -> pb.ContainerAllocateResponse:
        if unknown := sorted(set(ids) - set(self._ids)):
            raise Refuse(f"{RESOURCE} has no device {', '.join(unknown)}")
        specs = [pb.DeviceSpec(container_path=f"/dev/{one}", host_path=f"/dev/{one}", permissions="rw") for one in sorted(ids)]
        return pb.ContainerAllocateResponse(devices=specs, envs={"IDS": ",".join(sorted(ids))})
