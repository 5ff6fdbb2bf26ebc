# SPDX-License-Identifier: Apache-2.0
"""A control plane and its nodes as a test sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.cluster import network
from tests.e2e.cluster.api import Api, Object
from tests.e2e.cluster.controlplane import ControlPlane
from tests.e2e.cluster.worker import Worker
from tests.e2e.harness.waiting import WaitError, wait_for

NODES = 2
POD_SECONDS = 30.0
PODS = "/api/v1/namespaces/default/pods"
T = TypeVar("T")


def phase(pod: Mapping[str, Any]) -> str:
    """Pending, Running, Succeeded or Failed."""
    return str(pod["status"].get("phase", ""))


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the pod runs and its probes say so too."""
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))


class Cluster:
    """A running Kubernetes of two nodes. All timeouts are in seconds; each waiting method raises WaitError, with the logs' ends in it.

    bin_dir: what tools/e2e/provision.py prints.
    """

    def __init__(self, bin_dir: Path) -> None:
        self.plane = ControlPlane(bin_dir)
        self.nodes: list[Worker] = []

    @property
    def api(self) -> Api:
        """For whatever there is no method for."""
        return self.plane.api

    def start(self) -> None:
        """Returns once both nodes are ready. Raises WaitError, OSError; nothing is left running then, but the work folders, for their logs."""
        try:
            self.plane.start([network.node_address(number) for number in range(1, NODES + 1)])
            self.nodes = [Worker(self.plane, number) for number in range(1, NODES + 1)]
            self._each(Worker.start)
            # Without its service account a namespace lets no pod in.
            self.wait(lambda: all(map(self._has_account, ("default", "kube-system"))), 30, "the service accounts")
        except BaseException:
            self.stop(keep=True)
            raise

    def stop(self, keep: bool = False) -> None:
        """Ends everything, and leaves nothing, but with keep the work folders. Raises AssertionError naming what could not be ended or removed."""
        failures = []
        for one in (*self.nodes, self.plane):
            try:
                one.stop(keep)
            except AssertionError as error:  # the others have to go all the same
                failures.append(str(error))
        self.nodes = []
        if failures:
            raise AssertionError("\n".join(failures))

    def load(self, archive: Path) -> None:
        """Gives every node the images in a tar."""
        self._each(lambda node: node.load(archive))

    def kubectl(self, *arguments: str | Path, text: str = "") -> str:
        """See ControlPlane."""
        return self.plane.kubectl(*arguments, text=text)

    # Pods, of the namespace "default".

    def create_pod(self, pod: Mapping[str, Any]) -> None:
        """Hands a manifest to the API server and returns at once."""
        self.api.create(PODS, pod)

    def pod(self, name: str) -> Object | None:
        """The pod as the API server knows it."""
        return self.api.find(f"{PODS}/{name}")

    def delete_pods(self, names: Iterable[str], grace: int = 0, timeout: float = POD_SECONDS) -> None:
        """Deletes pods and waits until they are gone. Harmless where there is none."""
        wanted = list(names)
        for name in wanted:
            self.api.delete(f"{PODS}/{name}", grace)
        self.wait(lambda: all(self.pod(name) is None for name in wanted), timeout, f"pods {', '.join(wanted)} to be gone")

    def wait_pod(self, name: str, wanted: str = "Running", timeout: float = POD_SECONDS) -> Object:
        """Waits for a phase of the pod. A pod that has failed ends the wait at once."""

        def there() -> Object | None:
            pod = self.pod(name)
            if pod and phase(pod) == "Failed" != wanted:
                raise WaitError(f"pod {name} failed instead of becoming {wanted}: {pod['status'].get('reason')}: {pod['status'].get('message')}")
            return pod if pod and phase(pod) == wanted else None

        return self.wait(there, timeout, f"pod {name} to be {wanted}", lambda: self.events(name))

    def wait_unschedulable(self, name: str, timeout: float = POD_SECONDS) -> str:
        """Waits until the scheduler has found no node for a pod, and returns its reason."""

        def refused() -> str:
            conditions = ((self.pod(name) or {}).get("status") or {}).get("conditions", [])
            return next((one["message"] for one in conditions if one["type"] == "PodScheduled" and one.get("reason") == "Unschedulable"), "")

        return self.wait(refused, timeout, f"pod {name} to fit nowhere", lambda: self.events(name))

    def events(self, name: str = "") -> str:
        """What was said of an object, or of all, oldest first."""
        options = ("--field-selector", f"involvedObject.name={name}") if name else ("-A",)
        try:
            return "\n" + self.kubectl("get", "events", *options, "--sort-by=.lastTimestamp") + self.kubectl("get", "pods", "-A", "-o", "wide")
        except OSError as error:  # it is asked for to explain another failure, which must not be lost
            return str(error)

    def wait(self, predicate: Callable[[], T | None], timeout: float, what: str, seen: Callable[[], object] | None = None) -> T:
        """Polls until something is true; a failure shows how the logs of all nodes end."""
        return wait_for(predicate, timeout, what, tuple(node.kubelet_log for node in self.nodes), seen or self.events)

    def _has_account(self, namespace: str) -> bool:
        return self.api.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/default") is not None

    def _each(self, do: Callable[[Worker], None]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            for done in [threads.submit(do, node) for node in self.nodes]:
                done.result()
