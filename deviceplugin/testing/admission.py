# SPDX-License-Identifier: Apache-2.0
"""Giving devices to pods (devicemanager/manager.go: Allocate, allocateContainerResources, devicesToAllocate).

A container gets its devices when its pod is admitted, one resource at a time, with the sync loop standing still; the answer is kept for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import topology
from deviceplugin.testing.devices import DeviceManager, Endpoint
from deviceplugin.testing.pods import Container, Pod
from deviceplugin.testing.rpc import Pending, RpcFailed

R = TypeVar("R", bound=Message)


class SyncLoopBlocked(AssertionError):
    """A plugin did not answer a call that has no deadline. In a real kubelet nothing moves any more: no pod starts, stops or changes."""


class AlignmentImpossible(Exception):
    """The topology policy does not admit the pod."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a pod. ``reason`` and ``message`` are the rejected pod's status, word for word. A rejection is final."""

    ok: bool
    reason: str = ""
    message: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class Blocking:
    """A call without a deadline that the sync loop is waiting for: which, of whom, and since when (on the kubelet's clock)."""

    method: str
    resource: str
    since: float


class Allocator:
    """Allocation for one kubelet process."""

    def __init__(self, manager: DeviceManager) -> None:
        self._manager = manager
        self._settings = manager.settings
        self._order = manager.settings.order
        self._events = manager.events
        self._reusable: dict[str, dict[str, set[str]]] = {}  # by pod and resource; only ever holds the pod at hand
        self._affinity: dict[tuple[str, str], int | None] = {}
        self._lock = threading.Lock()
        self._blocking: list[Blocking] = []

    def blocking(self) -> tuple[Blocking, ...]:
        """The calls without a deadline that are under way."""
        with self._lock:
            return tuple(self._blocking)

    def admit(self, pod: Pod) -> None:
        """:raises AlignmentImpossible, RuntimeError, RpcFailed: the pod is rejected, in the kubelet's words."""
        for container in pod.all_containers():
            by_resource = self._hints(pod, container)
            affinity, fits = topology.merge(self._settings.topology_policy, self._settings.numa, by_resource)
            if not fits:
                raise AlignmentImpossible("Resources cannot be allocated with Topology locality")
            self._affinity[pod.uid, container.name] = affinity
            self.allocate(pod, container)

    def allocate(self, pod: Pod, container: Container) -> None:
        """Devices for one container, and what its devices mean for the pod's later containers."""
        reusable = self._reusable.get(pod.uid, {})
        self._reusable = {pod.uid: reusable}
        self._allocate_resources(pod, container, reusable)
        held = self._manager.held.get(pod.uid, {}).get(container.name, {})
        passes_on = any(container.name == init.name and not init.restartable for init in pod.init_containers)
        for resource, assignment in held.items():
            free = reusable.setdefault(resource, set())
            reusable[resource] = free | assignment.ids() if passes_on else free - assignment.ids()

    def _hints(self, pod: Pod, container: Container) -> list[list[topology.Hint] | None]:
        if self._settings.topology_policy == "none":
            return []
        manager = self._manager
        manager.update_allocated()
        given: list[list[topology.Hint] | None] = []
        requests = {r: n for r, n in container.limits.items() if manager.is_plugin_resource(r)}
        with manager.mutex:
            for resource, count in requests.items():
                listed = manager.listed.get(resource, {})
                held = manager.held_by(pod.uid, container.name, resource)
                available = manager.healthy.get(resource, set()) - manager.allocated.get(resource, set())
                reusable = self._reusable.get(pod.uid, {}).get(resource, set())
                if not topology.is_aligned(listed):
                    given.append(None)
                    continue
                if held:  # as after a kubelet restart, before which the container got its devices
                    available, reusable = held, set()
                if len(available | reusable) < count or (held and len(held) != count):
                    given.append([])
                    continue
                for device in available | reusable:
                    manager.look_up(resource, device)
                given.append(topology.hints(listed, self._settings.numa, available, reusable, count))
        return given

    def _allocate_resources(self, pod: Pod, container: Container, reusable: dict[str, set[str]]) -> None:
        manager = self._manager
        collected = changed = False
        for resource in self._order.shuffled(container.limits):
            if not manager.is_plugin_resource(resource):
                continue
            if not collected:
                manager.update_allocated()
                collected = True
            with manager.mutex:
                ids = self._choose(pod.uid, container.name, resource, container.limits[resource], reusable.get(resource, set()))
            if not ids:
                continue
            changed = True
            try:
                with manager.mutex:
                    endpoint = manager.endpoint(resource)
                if endpoint is None:
                    raise RuntimeError(f"unknown Device Plugin {resource}")
                request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=self._order.shuffled(ids))])
                response = self._call(endpoint, "Allocate", request, pb.AllocateResponse)
            except (RuntimeError, RpcFailed):
                with manager.mutex:
                    manager.recount()
                raise
            if not response.container_responses:  # and here the ids stay marked: nobody holds them, nobody gets them
                raise RuntimeError("no containers return in allocation response ")
            manager.hold(pod.uid, container.name, resource, ids, response.container_responses[0])
        if changed:
            manager.write_checkpoint()

    def _choose(self, uid: str, container: str, resource: str, required: int, reusable: set[str]) -> set[str]:
        """The ids to allocate now; none if the container has what it needs. The caller holds the mutex. What is chosen is marked at once, and an
        error later on leaves it marked.
        """
        manager = self._manager
        held = manager.held_by(uid, container, resource)
        if held is not None and len(held) != required:
            raise RuntimeError(f'pod "{uid}" container "{container}" changed request for resource "{resource}" from {len(held)} to {required}')
        if not manager.sources_ready and (uid, container) in manager.running:
            return set()
        if resource not in manager.healthy:
            raise RuntimeError(f"cannot allocate unregistered device {resource}")
        healthy = manager.healthy[resource]
        if not healthy:
            raise RuntimeError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        if held is not None and not held <= healthy:
            raise RuntimeError(f"previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}")
        needed = required - len(held or ())
        chosen: set[str] = set()
        if needed == 0:
            return chosen

        def take(devices: Iterable[str]) -> bool:
            """Marks devices until there are enough; whether there are."""
            marked = manager.allocated.setdefault(resource, set())
            for device in self._order.shuffled(set(devices) - chosen):
                marked.add(device)
                chosen.add(device)
                if len(chosen) == needed:
                    return True
            return False

        if take(reusable):  # whether healthy or not
            return chosen
        missing = needed - len(chosen)
        available = manager.healthy[resource] - manager.allocated.get(resource, set())
        if len(available) < missing:
            raise RuntimeError(f"requested number of devices unavailable for {resource}. Requested: {missing}, Available: {len(available)}")
        affinity = self._affinity.get((uid, container))
        aligned, unaligned, nowhere = topology.split(manager.listed.get(resource, {}), available, affinity, self._order)
        if missing < len(aligned):
            if take(self._preferred(resource, aligned | chosen, chosen, required) & aligned) or take(aligned):
                return chosen
        elif take(aligned) or take(self._preferred(resource, available | chosen, chosen, required) & available) or take(unaligned) or take(nowhere):
            return chosen
        raise RuntimeError(f"unexpectedly allocated less resources than required. Requested: {required}, Got: {len(chosen)}")

    def _preferred(self, resource: str, available: set[str], must_include: set[str], size: int) -> set[str]:
        """What the plugin would take; nothing if it does not say. ``size`` is the total, with what must be included. Lets the mutex go meanwhile."""
        endpoint = self._manager.endpoint(resource)
        if endpoint is None:
            raise RuntimeError(f"endpoint not found in cache for a registered resource: {resource}")
        if endpoint.options is None or not endpoint.options.get_preferred_allocation_available:
            return set()
        request = pb.PreferredAllocationRequest(
            container_requests=[
                pb.ContainerPreferredAllocationRequest(
                    available_deviceIDs=self._order.shuffled(available),
                    must_include_deviceIDs=self._order.shuffled(must_include),
                    allocation_size=size,
                )
            ]
        )
        try:
            with self._manager.unlocked():
                response = self._call(endpoint, "GetPreferredAllocation", request, pb.PreferredAllocationResponse)
        except (RuntimeError, RpcFailed) as error:
            raise RuntimeError(f"device plugin GetPreferredAllocation rpc failed with err: {error}") from None
        return set(response.container_responses[0].deviceIDs) if response.container_responses else set()

    def _call(self, endpoint: Endpoint, method: str, request: Message, response: type[R]) -> R:
        """A call without a deadline. :raises SyncLoopBlocked: it took longer than the test's patience."""
        pending: Pending[R] = endpoint.connected().start(f"/v1beta1.DevicePlugin/{method}", request, response)
        mark = Blocking(method, endpoint.resource, self._settings.clock())
        with self._lock:
            self._blocking.append(mark)
        self._events.record("call", endpoint.resource, method=method, request=request)
        began = time.monotonic()
        try:
            answer = pending.result(self._settings.patience)
        except TimeoutError:
            pending.cancel()
            self._events.record("sync loop blocked", endpoint.resource, method=method)
            raise SyncLoopBlocked(
                f"kubelet sync loop blocked: {method} of {endpoint.resource} has not answered for {self._settings.patience:g} s. "
                f"The kubelet sets no deadline here\nlast events:\n{self._events.last()}"
            ) from None
        except RpcFailed as error:
            self._manager.check_alive()
            self._events.record("call failed", endpoint.resource, method=method, error=str(error))
            raise
        finally:
            with self._lock:
                self._blocking.remove(mark)
        self._events.record("answer", endpoint.resource, method=method, response=answer, seconds=time.monotonic() - began)
        return answer
