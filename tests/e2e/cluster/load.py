# SPDX-License-Identifier: Apache-2.0
"""Pods that ask for devices: one, or one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from tests.e2e.cluster.api import Object
from tests.e2e.cluster.cluster import POD_SECONDS, PODS, Cluster, phase
from tests.e2e.harness.images import PROBE_IMAGE

PERIOD = 0.2  # seconds between two pods
KEPT = 1.0  # seconds, at least, that a pod is left once it was admitted


def pod(name: str, limits: Mapping[str, int], command: tuple[str, ...] = (), node: str = "", waits: bool = False) -> Object:
    """A pod on the host's network. node: the only one that it may be scheduled on. waits: admitted, it waits for a volume that never comes."""
    container: Object = {
        "name": "main",
        "image": PROBE_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["/bin/devprobe", *command],
        "resources": {"limits": {resource: str(amount) for resource, amount in limits.items()}},
    }
    spec: Object = {"hostNetwork": True, "restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    if waits:
        spec["volumes"] = [{"name": "never", "hostPath": {"path": "/nonexistent", "type": "Directory"}}]
        container["volumeMounts"] = [{"name": "never", "mountPath": "/never"}]
    return {"metadata": {"name": name, "labels": {"test": "load"}}, "spec": spec}


class Load:
    """Pods that ask for a device, one every PERIOD, on each node in turn. They are admitted, which is what is tried, and then wait for a volume that
    never comes, so that their number costs no containers. One in nine runs."""

    def __init__(self, cluster: Cluster, resource: str) -> None:
        self.cluster = cluster
        self.resource = resource
        self.created = 0
        self.admitted: set[str] = set()
        self.failed: dict[str, str] = {}
        self.trouble: list[OSError] = []
        self._stop = threading.Event()

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._guard, args=(each,)) for each in (self._create, self._watch)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        try:
            if error == (None, None, None):
                self.cluster.wait(self._all_seen, POD_SECONDS, "all pods to be admitted")
        finally:
            self.cluster.delete_pods(one["metadata"]["name"] for one in self._pods())
        assert self.trouble == []

    def _all_seen(self) -> bool:
        self._look()
        return len(self.admitted | self.failed.keys()) == self.created

    def _pods(self) -> list[Object]:
        return self.cluster.api.list(f"{PODS}?labelSelector=test%3Dload")

    def _guard(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            self.trouble.append(error)
            self._stop.set()

    def _create(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            node = self.cluster.nodes[self.created % len(self.cluster.nodes)]
            self.cluster.create_pod(pod(f"load-{self.created}", {self.resource: 1}, node=node.name, waits=self.created % 9 != 0))
            self.created += 1
            due += PERIOD
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _watch(self) -> None:
        deleted: set[str] = set()
        while not self._stop.wait(KEPT):
            for name in self.admitted - deleted:
                self.cluster.api.delete(f"{PODS}/{name}", grace=0)
                deleted.add(name)
            self._look()

    def _look(self) -> None:
        for one in self._pods():
            name = one["metadata"]["name"]
            if phase(one) == "Failed":
                self.failed[name] = f"{one['status'].get('reason')}: {one['status'].get('message')}"
            # What the kubelet admits it starts to work on, and says so.
            elif one["status"].get("containerStatuses"):
                self.admitted.add(name)
