# SPDX-License-Identifier: Apache-2.0
"""The kubelet's calls as plain functions from request to response. Nothing here knows of gRPC.

Every one of them answers within a budget: the kubelet sets no deadline for Allocate and GetPreferredAllocation, and makes them inside the loop that
serves every pod of the node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from deviceplugin.cell import Cell
from deviceplugin.hooks import HookFailed, HookTimeout
from deviceplugin.inventory import GONE, Row, Snapshot
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.model import Device, Edits, Health
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

SHOWN = 5
"""How many ids a message names before it says how many more there are."""


class Refused(Exception):
    """The call cannot be answered. ``code`` is the name of a gRPC status; the text reaches the pod's status, so it is short and has no secrets."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Handlers:
    """Answers for one resource, always from its latest snapshot. Safe from any thread."""

    def __init__(
        self,
        resource: str,
        snapshots: Cell[Snapshot],
        tally: Tally,
        policy: Callable[[], str] = lambda: "spread",
        on_allocate: Callable[[], None] = lambda: None,
    ) -> None:
        self.resource = resource
        self.snapshots = snapshots
        self._tally = tally
        self._policy = policy
        self._on_allocate = on_allocate
        self._count_allocation = tally.counter("allocations", resource=resource)
        self._count_devices = tally.counter("allocated_devices", resource=resource)

    def options(self) -> pb.DevicePluginOptions:
        """Constant time and no I/O: the kubelet asks while it holds the Register call."""
        return pb.DevicePluginOptions(pre_start_required=self.snapshots.get().hooks.has("prepare"), get_preferred_allocation_available=True)

    def allocate(self, request: pb.AllocateRequest) -> pb.AllocateResponse:
        """One response for each container request, in order. Raises Refused: the kubelet then fails the pod for good."""
        snapshot = self.snapshots.get()
        return pb.AllocateResponse(container_responses=[self._container(snapshot, list(one.devices_ids)) for one in request.container_requests])

    def preferred(self, request: pb.PreferredAllocationRequest) -> pb.PreferredAllocationResponse:
        """Never fails: an error here would fail the pod, whereas a short answer is filled by the kubelet."""
        snapshot = self.snapshots.get()
        return pb.PreferredAllocationResponse(
            container_responses=[
                pb.ContainerPreferredAllocationResponse(
                    deviceIDs=self._prefer(snapshot, list(one.available_deviceIDs), list(one.must_include_deviceIDs), one.allocation_size)
                )
                for one in request.container_requests
            ]
        )

    def prestart(self, request: pb.PreStartContainerRequest) -> pb.PreStartContainerResponse:
        """Raises Refused: the kubelet then tries to start the container again later."""
        snapshot = self.snapshots.get()
        if snapshot.hooks.has("prepare"):
            rows = self._find(snapshot, sorted(set(request.devices_ids)))
            self._hook(snapshot, "prepare", _devices(rows))
        return pb.PreStartContainerResponse()

    def _container(self, snapshot: Snapshot, ids: Sequence[str]) -> pb.ContainerAllocateResponse:
        rows = self._find(snapshot, sorted(set(ids)))
        sharing = snapshot.sharing
        if sharing.replicas > 1 and sharing.fail_requests_greater_than_one and len(rows) > 1:
            raise Refused(
                "INVALID_ARGUMENT",
                f"{self.resource}: a container asked for {len(rows)} shares; shares of one device give nothing more than one does: ask for 1",
            )
        gone = [row.id for row in rows if row.cause == GONE]
        if gone:
            raise Refused("FAILED_PRECONDITION", f"{self.resource}: {_some(gone)} {'is' if len(gone) == 1 else 'are'} no longer there")
        sick = [row for row in rows if row.health is not Health.HEALTHY]
        if sick:
            # Legitimate when a container that already holds the device is resized or restarted, or when the kubelet has not read our last list yet.
            log.warning("%s: allocated although not healthy: %s", self.resource, ", ".join(f"{row.id} ({row.cause})" for row in sick[:SHOWN]))
        devices = _devices(rows)
        if snapshot.hooks.has("allocate") and devices:
            edits = self._hook(snapshot, "allocate", devices)
            if not isinstance(edits, Edits):
                raise Refused("INTERNAL", f"plugin {snapshot.hooks.name}: allocate() answered {type(edits).__name__} instead of Edits")
        else:
            edits = sum_edits(devices)
        try:
            response = to_response(edits)
        except (TypeError, ValueError, AttributeError) as error:
            text = f"plugin {snapshot.hooks.name}: allocate() answered Edits with a field of the wrong type"
            log.error("%s: %s: %s", self.resource, text, error)
            raise Refused("INTERNAL", text) from error
        self._count_allocation(1)
        self._on_allocate()
        self._count_devices(len(rows))
        return response

    def _find(self, snapshot: Snapshot, ids: Iterable[str]) -> list[Row]:
        index = snapshot.index
        rows, unknown = [], []
        for one in ids:
            row = index.get(one)
            if row is None:
                unknown.append(one)
            else:
                rows.append(row)
        if unknown:
            raise Refused("NOT_FOUND", f"{self.resource} has no device {_some(unknown)}")
        return rows

    def _hook(self, snapshot: Snapshot, hook: str, devices: Sequence[Device]) -> object:
        try:
            return snapshot.hooks.call(hook, devices)
        except HookTimeout as error:
            log.error("%s: %s", self.resource, error)
            raise Refused("DEADLINE_EXCEEDED", str(error)) from error
        except HookFailed as error:
            log.error("%s: %s", self.resource, error)
            raise Refused("INTERNAL", str(error)) from error

    def _prefer(self, snapshot: Snapshot, available: list[str], required: list[str], size: int) -> list[str]:
        try:
            chosen = self._ask_vendor(snapshot, available, required, size) if snapshot.hooks.has("prefer") else []
            if chosen and len(chosen) == size:
                return chosen
            return snapshot.table.choose(self._policy(), available, required, size)
        except Exception:  # whatever goes wrong here, the pod must not pay for it
            log.exception("%s: choosing devices failed; the first free ones are taken", self.resource)
            self._tally.count("preferred_failures", resource=self.resource)
            first, rest = sorted(set(required)), sorted(set(available) - set(required))
            return first + rest[: max(0, size - len(first))]

    def _ask_vendor(self, snapshot: Snapshot, available: list[str], required: list[str], size: int) -> list[str]:
        """The vendor's choice as row ids, or nothing if it is unusable. The vendor chooses devices and sees each once per free replica."""
        index = snapshot.index
        if not index.keys() >= set(required):
            return []  # the answer must have them all, and a vendor can only choose what is there
        free: dict[str, list[str]] = {}
        for one in sorted(set(available) - set(required)):
            if one in index:
                free.setdefault(index[one].device.id, []).append(one)
        must = [index[one] for one in sorted(set(required))]
        offered = [row.device for row in must] + [index[slot].device for slots in free.values() for slot in slots]
        try:
            answer = snapshot.hooks.call("prefer", offered, [row.device for row in must], size)
        except HookFailed as error:
            log.warning("%s: %s; policy %s decides", self.resource, error, self._policy())
            return []
        if answer is None:
            return []
        chosen = [row.id for row in must]
        pending = {row.device.id for row in must}
        for device in answer:
            device_id = getattr(device, "id", None)
            if device_id in pending:
                pending.discard(device_id)
            elif device_id in free and free[device_id] and len(chosen) < size:
                chosen.append(free[device_id].pop(0))
        if len(chosen) != size:
            log.warning(
                "%s: plugin %s: prefer() gave %d usable devices of %d; policy %s decides",
                self.resource,
                snapshot.hooks.name,
                len(chosen),
                size,
                self._policy(),
            )
            return []
        return chosen


def sum_edits(devices: Sequence[Device]) -> Edits:
    """What the devices carry, together. A variable that they set differently becomes their values joined by commas."""
    if len(devices) == 1:
        (one,) = devices
        return Edits(envs=one.envs, nodes=one.nodes, mounts=one.mounts, annotations=one.annotations, cdi=one.cdi)
    envs: dict[str, list[str]] = {}
    annotations: dict[str, list[str]] = {}
    for device in devices:
        for into, source in ((envs, device.envs), (annotations, device.annotations)):
            for key, value in source.items():
                values = into.setdefault(key, [])
                if value not in values:
                    values.append(value)
    return Edits(
        envs={key: ",".join(values) for key, values in envs.items()},
        nodes=tuple(dict.fromkeys(node for device in devices for node in device.nodes)),
        mounts=tuple(dict.fromkeys(mount for device in devices for mount in device.mounts)),
        annotations={key: ",".join(values) for key, values in annotations.items()},
        cdi=tuple(dict.fromkeys(name for device in devices for name in device.cdi)),
    )


def to_response(edits: Edits) -> pb.ContainerAllocateResponse:
    """The wire form. Equal edits give equal messages: the kubelet keeps the answer and people compare it."""
    response = pb.ContainerAllocateResponse(
        mounts=[pb.Mount(container_path=m.container_path, host_path=m.path, read_only=m.read_only) for m in edits.mounts],
        devices=[pb.DeviceSpec(container_path=n.container_path, host_path=n.path, permissions=n.permissions) for n in edits.nodes],
        cdi_devices=[pb.CDIDevice(name=name) for name in edits.cdi],
    )
    if edits.envs:
        response.envs.update(edits.envs)
    if edits.annotations:
        response.annotations.update(edits.annotations)
    return response


def _devices(rows: Sequence[Row]) -> list[Device]:
    """Each device once, however many of its replicas are there, by id."""
    return sorted({row.device.id: row.device for row in rows}.values(), key=lambda device: device.id)


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(repr(one[:64]) for one in ids[:SHOWN])
    return shown if len(ids) <= SHOWN else f"{shown} and {len(ids) - SHOWN} more"
