# SPDX-License-Identifier: Apache-2.0
"""Which container holds which device, as the kubelet says: it never tells a plugin when one is released."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

import grpc
from msgspec import Struct, field

from deviceplugin.cell import Cell
from deviceplugin.kubelet import podresources_v1_pb2 as pb
from deviceplugin.kubelet.paths import identify
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

PERIOD = 10.0
"""Seconds between two looks when nothing calls for one sooner. The kubelet answers 100 calls a second for everybody on the node together."""

UNUSED = 60.0
"""Seconds between two looks where nothing on the node is held: nothing can be released, and what is allocated calls for a look."""

UNUSED_LOOKS = 2
"""So many looks in a row that nothing called for must have found nothing held: a container that just started may not be told of yet."""

TIMEOUT = 5.0

SETTLE = 0.3
"""Seconds from a call for a look to the look: what was just allocated is there by then, and many calls are one look."""


class Holder(Struct, frozen=True, order=True):
    """A container that holds a device. There may be several: an init container and the one after it, or containers that share."""

    namespace: str
    pod: str
    container: str


class Holdings(Struct, frozen=True):
    """What the kubelet said last. ``taken_at`` is on the monotonic clock, 0 if it never answered; ``error`` is why the view is old."""

    by_device: Mapping[tuple[str, str], tuple[Holder, ...]] = field(default_factory=dict)
    taken_at: float = 0.0
    error: str = "not asked yet"

    @property
    def fresh(self) -> bool:
        return not self.error

    def holders(self, resource: str, device_id: str) -> tuple[Holder, ...]:
        return self.by_device.get((resource, device_id), ())


def aggregate(response: pb.ListPodResourcesResponse) -> dict[tuple[str, str], tuple[Holder, ...]]:
    """By resource and id. The kubelet lists a device once for each of its NUMA nodes; here it is there once."""
    found: dict[tuple[str, str], set[Holder]] = {}
    for pod in response.pod_resources:
        for container in pod.containers:
            for devices in container.devices:
                for device_id in devices.device_ids:
                    found.setdefault((devices.resource_name, device_id), set()).add(Holder(pod.namespace, pod.name, container.name))
    return {key: tuple(sorted(holders)) for key, holders in found.items()}


class PodResources:
    """Asks the kubelet now and then, on a thread of its own; :attr:`holdings` is the latest view. An error keeps the last view and says so."""

    def __init__(self, socket_path: str, tally: Tally, on_view: Callable[[], None] = lambda: None, period: float = PERIOD) -> None:
        self.holdings: Cell[Holdings] = Cell(Holdings())
        self._path = socket_path
        self._tally = tally
        self._on_view = on_view
        self._period = period
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="podresources", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._wake.set()

    def refresh(self) -> None:
        """Asks for a look soon."""
        self._wake.set()

    def ask(self) -> Holdings:
        """Asks once, here and now, and publishes the answer."""
        started = time.monotonic()
        last = self.holdings.get()
        if identify(self._path) is None:
            view = Holdings(last.by_device, last.taken_at, f"no socket at {self._path}")
        else:
            view = self._list(started, last)
        if view.error and view.error != last.error:
            log.info("podresources: %s; who holds which device is not known", view.error)
        elif last.error and not view.error and last.taken_at:
            log.info("podresources: the kubelet answers again")
        self.holdings.set(view)
        return view

    def _list(self, started: float, last: Holdings) -> Holdings:
        # A channel for each look: the kubelet replaces its socket at every start, and a channel that lost it backs off for minutes. One that is kept
        # costs more than it saves: gRPC's threads wake ten times a second more while any is open, 0.05 % of a core.
        options = (("grpc.max_receive_message_length", -1), ("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1))
        with grpc.insecure_channel(f"unix:{self._path}", options=options) as channel:
            call = channel.unary_unary(
                "/v1.PodResourcesLister/List",
                request_serializer=pb.ListPodResourcesRequest.SerializeToString,
                response_deserializer=pb.ListPodResourcesResponse.FromString,
            )
            try:
                response = call(pb.ListPodResourcesRequest(), timeout=TIMEOUT)
            except grpc.RpcError as error:
                code = error.code().name
                self._tally.count("podresources_failures", code=code)
                return Holdings(last.by_device, last.taken_at, f"List on {self._path} failed: {code}: {error.details()}")
        return Holdings(aggregate(response), started, "")

    def _run(self) -> None:
        called, unused = True, 0
        while not self._ended.is_set():
            view = self.ask()
            self._on_view()
            unused = 0 if called or view.error or view.by_device else unused + 1
            called = self._wake.wait(self._period if unused < UNUSED_LOOKS else max(self._period, UNUSED))
            if called:
                self._ended.wait(SETTLE)
            self._wake.clear()
