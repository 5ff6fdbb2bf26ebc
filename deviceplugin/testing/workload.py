# SPDX-License-Identifier: Apache-2.0
"""The node's pods: who was admitted, who was rejected for good, what runs. It outlives the kubelet, as the API server and the runtime do."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from deviceplugin.testing.admission import Admission, AlignmentImpossible
from deviceplugin.testing.containers import ContainerConfig, CreateContainerConfigError
from deviceplugin.testing.events import EventLog
from deviceplugin.testing.faults import Faults
from deviceplugin.testing.pods import Pod
from deviceplugin.testing.process import Process
from deviceplugin.testing.rpc import RpcFailed


class Workload:
    """Pods come one at a time, through the sync loop; their containers start on whatever thread asks for it, as on the kubelet's pod workers."""

    def __init__(self, events: EventLog, faults: Faults) -> None:
        self._events = events
        self._faults = faults
        self._sync_loop = threading.Lock()
        self._pods: dict[str, Pod] = {}
        self._admissions: dict[str, Admission] = {}
        self._restarts: dict[tuple[str, str], int] = {}
        self._running: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._pods)

    def active(self) -> list[Pod]:
        """Pods that are neither deleted nor rejected, the one being admitted among them."""
        return [pod for pod in tuple(self._pods.values()) if self._admissions.get(pod.uid, True)]

    def running(self) -> frozenset[tuple[str, str]]:
        """Pod uid and name of each container that runs."""
        return frozenset(self._running)

    def keep_running(self, containers: Iterable[tuple[str, str]]) -> None:
        """Every other container has ended."""
        self._running &= set(containers)

    def admit(self, process: Process, pod: Pod) -> Admission:
        with self._sync_loop:
            return self._admit(process, pod)

    def readmit(self, process: Process) -> dict[str, Admission]:
        """All pods anew, by uid. A rejection stays, but for static pods, which no API server remembers as failed."""
        with self._sync_loop:
            self._admissions = {uid: a for uid, a in self._admissions.items() if uid in self._pods and not a and not self._pods[uid].static}
            answers = {pod.uid: self._admit(process, pod) for pod in tuple(self._pods.values())}
            process.manager.sources_ready = True  # a source is ready after its first pods have been handled
            return answers

    def delete(self, pod: Pod) -> None:
        self._pods.pop(pod.uid, None)
        self._admissions.pop(pod.uid, None)
        self._running -= {(pod.uid, container.name) for container in pod.all_containers()}

    def start(self, process: Process, pod: Pod, name: str) -> ContainerConfig:
        """:raises ValueError: the pod was not admitted. :raises CreateContainerConfigError: not now."""
        spec = pod.container(name)
        if pod.uid not in self._pods or not self._admissions.get(pod.uid):
            raise ValueError(f"pod {pod.name} ({pod.uid}) has not been admitted: {self._admissions.get(pod.uid, 'it is not on this node')}")
        key = pod.uid, spec.name
        restarts = self._restarts.get(key, -1) + 1
        try:
            config = process.starter.start(pod, spec, restarts)
        except CreateContainerConfigError as error:
            self._events.record("container failed", pod=pod.name, container=spec.name, error=str(error))
            raise
        self._restarts[key] = restarts
        if spec.restartable or spec in pod.containers:  # any other one has run to its end by now
            self._running.add(key)
        self._events.record("container started", pod=pod.name, container=spec.name, restarts=restarts)
        return config

    def stop(self, pod: Pod, name: str) -> None:
        self._running.discard((pod.uid, pod.container(name).name))

    def _admit(self, process: Process, pod: Pod) -> Admission:
        known = self._admissions.get(pod.uid)
        if known is not None:
            return known
        self._pods[pod.uid] = pod
        try:
            process.allocator.admit(pod)
            admission = Admission(True)
            if self._faults.reject_after_allocate:
                admission = Admission(False, "OutOfcpu", f"Pod was rejected: {self._faults.reject_after_allocate}")
        except AlignmentImpossible as error:
            admission = Admission(False, "TopologyAffinityError", f"Pod was rejected: {error}")
        except (RuntimeError, RpcFailed) as error:
            admission = Admission(False, "UnexpectedAdmissionError", f"Pod was rejected: Allocate failed due to {error}, which is unexpected")
        self._admissions[pod.uid] = admission
        self._events.record("admitted" if admission else "rejected", pod=pod.name, **({} if admission else {"message": admission.message}))
        return admission
