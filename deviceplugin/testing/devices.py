# SPDX-License-Identifier: Apache-2.0
"""The kubelet's device manager: what plugins list, what is healthy, and what is given out (pkg/kubelet/cm/devicemanager/manager.go)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing.checkpoint import WITHOUT_TOPOLOGY, Assignment, Checkpoint, CheckpointCorrupt, Held
from deviceplugin.testing.events import EventLog
from deviceplugin.testing.pods import Pod
from deviceplugin.testing.rpc import Caller, Connection, RpcFailed
from deviceplugin.testing.settings import KubeletPanicked, KubeletStopped, Settings

GRACE = 300.0
"""Seconds for which a resource whose plugin has gone stays known (endpointStopGracePeriod)."""

HEALTHY = "Healthy"


@dataclass(frozen=True, slots=True)
class Listed:
    """A device as the plugin's last list had it. ``topology`` says whether the message carried one, which may be an empty one."""

    id: str
    health: str
    nodes: tuple[int, ...]
    topology: bool


class Client(Protocol):
    """What the manager needs of a connected plugin."""

    @property
    def path(self) -> str: ...

    @property
    def connection(self) -> Connection: ...


class Endpoint:
    """A plugin that registered, or after a kubelet restart the memory of one: no connection, no options, stopped from the start."""

    def __init__(self, resource: str, path: str, connection: Connection | None, options: pb.DevicePluginOptions | None) -> None:
        self.resource = resource
        self.path = path
        self.connection = connection
        self.options = options
        self.stopped_at: float | None = None

    def connected(self) -> Connection:
        """:raises RuntimeError: it has stopped. The kubelet's text holds a dump of the Go struct, of which only the resource is worth imitating."""
        if self.stopped_at is not None or self.connection is None:
            raise RuntimeError(f"endpoint &{{{self.resource}}} has been stopped")
        return self.connection


class DeviceManager:
    """The state of one kubelet process. Everything is guarded by ``mutex``, which is let go during calls to plugins as the kubelet does.

    A list, and the end of one, is recorded under it too: whoever sees what it brought finds its event.
    """

    def __init__(self, settings: Settings, events: EventLog, checkpoint: Checkpoint, active_pods: Callable[[], Collection[Pod]]) -> None:
        self.settings = settings
        self.events = events
        self.checkpoint = checkpoint
        self.active_pods = active_pods
        self.mutex = threading.Lock()
        self.endpoints: dict[str, list[Endpoint]] = {}  # the last one is asked; only post136 has more than one
        self.healthy: dict[str, set[str]] = {}
        self.unhealthy: dict[str, set[str]] = {}
        self.listed: dict[str, dict[str, Listed]] = {}
        self.allocated: dict[str, set[str]] = {}
        self.held: Held = {}
        self.sources_ready = False
        self.running: frozenset[tuple[str, str]] = frozenset()  # (pod uid, container) that ran when this process started
        self.dead = False

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        self.mutex.release()
        try:
            yield
        finally:
            self.mutex.acquire()

    def plugin_connected(self, caller: Caller, resource: str, client: Client) -> None:
        """Asks for the options, with no limit but the caller's, and makes the plugin the resource's. :raises RuntimeError: no options came."""
        try:
            options = client.connection.call("/v1beta1.DevicePlugin/GetDevicePluginOptions", pb.Empty(), pb.DevicePluginOptions, caller)
        except RpcFailed as error:
            raise RuntimeError(f"failed to get device plugin options: {error}") from None
        endpoint = Endpoint(resource, client.path, client.connection, options)
        with self.mutex:
            others = self.endpoints.get(resource, []) if self.settings.semantics == "post136" else []
            self.endpoints[resource] = [other for other in others if other.stopped_at is None] + [endpoint]

    def plugin_disconnected(self, resource: str, path: str) -> None:
        """1.36 stops whichever endpoint the resource has, whatever ``path`` it had; later kubelets only the one of that path."""
        with self.mutex:
            endpoints = self.endpoints.get(resource)
            if not endpoints or self.dead:
                return
            if self.settings.semantics == "post136":
                rest = [endpoint for endpoint in endpoints if endpoint.path != path]
                if rest and any(endpoint.stopped_at is None for endpoint in rest):
                    self.endpoints[resource] = rest
                    return
            self.unhealthy[resource] = self.unhealthy.get(resource, set()) | self.healthy.get(resource, set())
            self.healthy[resource] = set()
            endpoints[-1].stopped_at = self.settings.clock()
            self.events.record("disconnected", resource, path=path)

    def receive(self, resource: str, message: pb.ListAndWatchResponse, *, repeated: bool) -> None:
        """A list: it replaces everything the resource had. An id listed twice is the last one to status and, where healths differ, both to counts.

        ``repeated`` says that it is the stream's last message once more, which only the events show.
        """
        refreshed: set[str] = set()
        with self.mutex:
            if self.dead:
                return
            before = self.listed.get(resource, {})
            self.healthy[resource], self.unhealthy[resource], self.listed[resource] = set(), set(), {}
            for device in message.devices:
                nodes = tuple(node.ID for node in device.topology.nodes)
                known = before.get(device.ID)
                if (known is None or known.health != device.health) and (owner := self._owner(device.ID)):
                    refreshed.add(owner)
                self.listed[resource][device.ID] = Listed(device.ID, device.health, nodes, device.HasField("topology"))
                (self.healthy if device.health == HEALTHY else self.unhealthy)[resource].add(device.ID)
            self.events.record(
                "list",
                resource,
                healthy=len(self.healthy[resource]),
                unhealthy=len(self.unhealthy[resource]),
                listed=len(message.devices),
                bytes=message.ByteSize(),
                repeated=repeated,
            )
        for uid in sorted(refreshed):
            self.events.record("pod refreshed", resource, uid=uid)
        self.write_checkpoint()

    def _owner(self, device: str) -> str | None:
        """A pod that holds a device of this id. The kubelet does not look at the resource, so ids shared by two resources refresh the wrong pod."""
        for uid in self.settings.order.shuffled(self.held):
            if any(device in assignment.ids() for resources in self.held[uid].values() for assignment in resources.values()):
                return uid
        return None

    def counts(self, resource: str) -> tuple[int, int]:
        """Healthy and unhealthy devices now; unlike :meth:`capacity` this never removes anything."""
        with self.mutex:
            return len(self.healthy.get(resource, ())), len(self.unhealthy.get(resource, ()))

    def capacity(self) -> tuple[dict[str, int], dict[str, int], set[str]]:
        """Capacity and allocatable by resource, and the resources that this very call forgot, their plugins being gone for too long."""
        with self.mutex:
            removed = {resource for resource in self.healthy.keys() | self.unhealthy.keys() if self._expired(resource)}
            for resource in removed:
                for table in (self.endpoints, self.healthy, self.unhealthy):
                    table.pop(resource, None)
            allocatable = {resource: len(ids) for resource, ids in self.healthy.items()}
            capacity = {r: allocatable.get(r, 0) + len(self.unhealthy.get(r, ())) for r in self.healthy.keys() | self.unhealthy.keys()}
        if removed:
            for resource in sorted(removed):
                self.events.record("resource removed", resource)
            self.write_checkpoint()
        return capacity, allocatable, removed

    def _expired(self, resource: str) -> bool:
        endpoints = self.endpoints.get(resource)
        if not endpoints:
            return True
        stopped_at = endpoints[-1].stopped_at
        return stopped_at is not None and self.settings.clock() - stopped_at > GRACE

    def endpoint(self, resource: str) -> Endpoint | None:
        """The caller holds the mutex."""
        endpoints = self.endpoints.get(resource)
        return endpoints[-1] if endpoints else None

    def is_plugin_resource(self, resource: str) -> bool:
        with self.mutex:
            return resource in self.healthy or resource in self.allocated

    def update_allocated(self) -> None:
        """Frees what dead pods hold. Only once all sources of pods have been heard: until then nobody knows who is dead."""
        active = {pod.uid for pod in self.active_pods()}
        if not self.sources_ready:
            return
        with self.mutex:
            dead = self.held.keys() - active
            if dead:
                for uid in dead:
                    del self.held[uid]
                self.recount()

    def recount(self) -> None:
        """Marks as allocated what pods hold, and nothing else: this is what ends leaks. The caller holds the mutex."""
        self.allocated = {}
        for containers in self.held.values():
            for resources in containers.values():
                for resource, assignment in resources.items():
                    self.allocated.setdefault(resource, set()).update(assignment.ids())

    def held_by(self, uid: str, container: str, resource: str) -> set[str] | None:
        assignment = self.held.get(uid, {}).get(container, {}).get(resource)
        return assignment.ids() if assignment else None

    def hold(self, uid: str, container: str, resource: str, ids: Iterable[str], response: pb.ContainerAllocateResponse) -> None:
        with self.mutex:
            by_node: dict[int, tuple[str, ...]] = {}
            for device in ids:
                for node in self.look_up(resource, device).nodes or (WITHOUT_TOPOLOGY,):
                    by_node[node] = (*by_node.get(node, ()), device)
            self.held.setdefault(uid, {}).setdefault(container, {})[resource] = Assignment(by_node, response)

    def look_up(self, resource: str, device: str) -> Listed:
        """The caller holds the mutex. :raises KubeletPanicked: the device is in no list; the kubelet reads through a nil pointer here."""
        listed = self.listed.get(resource, {}).get(device)
        if listed is None:
            raise KubeletPanicked(
                f"invalid memory address or nil pointer dereference: {resource} device {device!r} is being allocated and is no longer listed. "
                "List a device that goes away as Unhealthy until no pod can hold it"
            )
        return listed

    def write_checkpoint(self) -> None:
        with self.mutex:
            if self.dead:
                return
            try:
                self.checkpoint.write(self.held, {resource: self.settings.order.shuffled(ids) for resource, ids in self.healthy.items()})
            except OSError as error:  # the kubelet logs it and goes on
                self.events.record("checkpoint failed", error=str(error))
                return
        self.events.record("checkpoint written", writes=self.checkpoint.writes)

    def read_checkpoint(self) -> None:
        """Every resource that was registered is known again, with no devices and a stopped endpoint, whose grace starts now."""
        try:
            remembered = self.checkpoint.read()
        except CheckpointCorrupt as error:
            self.events.record("checkpoint corrupt", error=str(error))
            return
        if remembered is None:
            return
        with self.mutex:
            self.held, registered = remembered
            self.recount()
            for resource in registered:
                self.healthy[resource], self.unhealthy[resource] = set(), set()
                endpoint = Endpoint(resource, "", None, None)
                endpoint.stopped_at = self.settings.clock()
                self.endpoints[resource] = [endpoint]

    def check_alive(self) -> None:
        """:raises KubeletStopped: this process is no more."""
        if self.dead:
            raise KubeletStopped("the kubelet was stopped meanwhile")
