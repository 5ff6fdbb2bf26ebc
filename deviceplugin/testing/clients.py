# SPDX-License-Identifier: Apache-2.0
"""Connections to plugins and the streams on them (devicemanager/plugin/v1beta1: client.go, handler.go).

1.36 knows a client by its resource alone, later kubelets by resource and socket path. Every rule about who disconnects whom follows from that.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing.devices import DeviceManager
from deviceplugin.testing.faults import Faults
from deviceplugin.testing.names import go_quoted, is_extended_resource
from deviceplugin.testing.rpc import Caller, Connection, DialFailed, RpcFailed, dial

VERSION = "v1beta1"


class PluginClient:
    """One registration: its socket and, once dialled, its connection."""

    def __init__(self, resource: str, path: str) -> None:
        self.resource = resource
        self.path = path
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError(f"{self.path} has not been dialled")
        return self._connection

    @connection.setter
    def connection(self, connection: Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Table(Protocol):
    """Which clients are recorded."""

    def add(self, client: PluginClient) -> None: ...

    def remove(self, resource: str, path: str) -> None: ...

    def find(self, resource: str, path: str) -> PluginClient | None: ...


class ByResource:
    """1.36: one client per resource. The path asked for makes no difference, so the end of an old stream finds, and closes, the newer client."""

    def __init__(self) -> None:
        self._clients: dict[str, PluginClient] = {}

    def add(self, client: PluginClient) -> None:
        self._clients[client.resource] = client

    def remove(self, resource: str, path: str) -> None:
        self._clients.pop(resource, None)

    def find(self, resource: str, path: str) -> PluginClient | None:
        return self._clients.get(resource)


class ByPath:
    """After 1.36 (kubernetes/kubernetes#135437): one client per resource and socket path."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str], PluginClient] = {}

    def add(self, client: PluginClient) -> None:
        self._clients[client.resource, client.path] = client

    def remove(self, resource: str, path: str) -> None:
        self._clients.pop((resource, path), None)

    def find(self, resource: str, path: str) -> PluginClient | None:
        return self._clients.get((resource, path))


class Clients:
    """The registration service and the clients that came of it, for the life of one kubelet process."""

    def __init__(self, manager: DeviceManager, faults: Faults) -> None:
        self._manager = manager
        self._settings = manager.settings
        self._events = manager.events
        self._faults = faults
        self._lock = threading.Lock()
        self._table: Table = ByResource() if self._settings.semantics == "v136" else ByPath()
        self._opened: list[PluginClient] = []  # never shrinks: 1.36 leaves connections of replaced clients open
        self._threads: list[threading.Thread] = []
        self._callers: set[Caller] = set()
        self._streams: dict[str, list[PluginClient]] = {}

    def register(self, request: pb.RegisterRequest, caller: Caller) -> None:
        """The Register call. The request's options are not looked at. :raises RuntimeError: refused, in the kubelet's words."""
        resource = request.resource_name
        self._events.record("register", resource, endpoint=request.endpoint, version=request.version, streams=self.streams(resource))
        try:
            self._faults.refuse_register()
            if request.version != VERSION:
                raise RuntimeError(
                    f'requested API version {go_quoted(request.version)} is not supported by kubelet. Supported version is ["{VERSION}"]'
                )
            if not is_extended_resource(resource):
                raise RuntimeError(f"the ResourceName {go_quoted(resource)} is invalid")
            # Go's filepath.Join: an absolute endpoint is re-rooted, .. climbs, and an empty one is the directory itself.
            self.connect(resource, os.path.normpath(f"{self._settings.device_plugins}/{request.endpoint}"), caller)
        except RuntimeError as error:
            self._events.record("register failed", resource, error=str(error))
            raise

    def validate(self, name: str, versions: list[str]) -> None:
        """The plugin watcher's check. :raises RuntimeError: in the kubelet's words."""
        if VERSION not in versions:
            raise RuntimeError(f"manager version, {VERSION}, is not among plugin supported versions [{' '.join(versions)}]")
        if not is_extended_resource(name):
            raise RuntimeError(f"invalid name of device plugin socket: the ResourceName {go_quoted(name)} is invalid")

    def connect(self, resource: str, path: str, caller: Caller) -> None:
        """Dials back, asks for the options, and lets a stream begin after the answer. :raises RuntimeError: in the kubelet's words."""
        client = PluginClient(resource, path)
        with self._lock:
            if self._settings.semantics == "post136" and self._table.find(resource, path):
                self._events.record("register ignored", resource, path=path)
                return
            self._table.add(client)
            self._opened.append(client)
            self._callers.add(caller)
        try:
            self._faults.delay_dial(caller)
            client.connection = dial(path, authority="localhost", timeout=self._settings.dial_timeout, caller=caller)
            self._manager.plugin_connected(caller, resource, client)
        except (DialFailed, RuntimeError) as error:
            with self._lock:
                self._table.remove(resource, path)
            raise RuntimeError(f"failed to dial device plugin: {error}" if isinstance(error, DialFailed) else str(error)) from None
        finally:
            with self._lock:
                self._callers.discard(caller)
        self._events.record("registered", resource, path=path)
        thread = threading.Thread(target=self._run, args=(client,), name=f"fake-kubelet-{resource}", daemon=True)
        with self._lock:
            if self._manager.dead:
                return
            self._threads.append(thread)
            thread.start()

    def disconnect(self, resource: str) -> None:
        """What the plugin watcher does when a socket goes: whichever client is recorded first for the resource, whatever its socket."""
        with self._lock:
            client = next((c for c in reversed(self._opened) if self._table.find(resource, c.path) is c and c.resource == resource), None)
        if client:
            self._disconnect(client)

    def _disconnect(self, client: PluginClient) -> None:
        with self._lock:
            self._table.remove(client.resource, client.path)
        client.close()
        self._manager.plugin_disconnected(client.resource, client.path)

    def _run(self, client: PluginClient) -> None:
        resource = client.resource
        with self._lock:
            self._streams.setdefault(resource, []).append(client)
        self._events.record("stream opened", resource, path=client.path)
        reason, last = "EOF", None
        try:
            for message in client.connection.stream("/v1beta1.DevicePlugin/ListAndWatch", pb.Empty(), pb.ListAndWatchResponse):
                # Not asked after the message was taken in: one from before the fault, still in hand, would count as the last that is read.
                slow = self._faults.reads_slowly
                self._manager.receive(resource, message, repeated=message == last)
                last = message
                if slow:
                    self._faults.pause_reader()
        except RpcFailed as error:
            reason = str(error)
        self._faults.hold_stream_end()
        with self._lock:
            self._streams[resource].remove(client)
        if self._manager.dead:
            return
        self._events.record("stream ended", resource, path=client.path, reason=reason)
        with self._lock:
            recorded = self._table.find(resource, client.path)
        if recorded:  # in 1.36 this need not be the client whose stream ended
            self._disconnect(recorded)

    def streams(self, resource: str) -> int:
        """ListAndWatch streams that are open now."""
        with self._lock:
            return len(self._streams.get(resource, ()))

    def drop(self, resource: str) -> int:
        """Breaks the resource's connections, as a network would; how many there were."""
        with self._lock:
            broken = tuple(self._streams.get(resource, ()))
        for client in broken:
            client.close()
        return len(broken)

    def stop(self) -> None:
        """The process ends: every connection closes, nothing is disconnected in the orderly sense."""
        with self._lock:
            callers, opened, threads = tuple(self._callers), tuple(self._opened), tuple(self._threads)
        for caller in callers:
            caller.cancel()
        for client in opened:
            client.close()
        for thread in threads:
            thread.join(5)
