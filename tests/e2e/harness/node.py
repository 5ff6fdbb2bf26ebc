"""A node as a test sees it: something that runs pods."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.harness.holder import groups_below
from tests.e2e.harness.machine import Machine
from tests.e2e.harness.podresources import Devices, PodResources
from tests.e2e.harness.pods import ContainerStatus, Pod, PodStatus
from tests.e2e.harness.waiting import WaitError, wait_for

POD_SECONDS = 30.0
T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """One report of devprobe from inside a container. devices: "ok" or the name of an errno, by path or by the argument of --mknod."""

    seq: int
    devices: Mapping[str, str]
    env: Mapping[str, str]


class Node(Machine):
    """A Machine that runs static pods. All timeouts are in seconds; each waiting method raises WaitError."""

    _uids: dict[str, str]

    def start(self) -> None:
        self._uids = {}
        super().start()

    @property
    def pod_resources(self) -> PodResources:
        """A client of this node's podresources service."""
        return PodResources(self.pod_resources_socket)

    # Pods. A name is the one in the manifest; the kubelet appends the node's to it.

    def create_pod(self, pod: Pod) -> None:
        """Hands a pod to the kubelet and returns at once. The name must be free. Raises OSError."""
        self._uids[pod.name] = str(uuid.uuid4())
        manifest = self._manifest(pod.name)
        # The kubelet reads a file as soon as it appears and ignores those with a dot: so it never sees half of one.
        aside = manifest.with_name(f".{manifest.name}")
        aside.write_text(pod.manifest(self._uids[pod.name]))
        aside.rename(manifest)

    def delete_pod(self, name: str, timeout: float = POD_SECONDS) -> None:
        """Takes a pod away and waits until it is gone. Harmless when there is none."""
        self._manifest(name).unlink(missing_ok=True)
        self.wait_gone(name, timeout)

    def clear(self, timeout: float = POD_SECONDS) -> None:
        """Deletes all pods."""
        names = [manifest.stem for manifest in self.manifests_dir.glob("*.yaml")]
        for name in names:
            self._manifest(name).unlink(missing_ok=True)
        for name in names:
            self.wait_gone(name, timeout)

    @contextlib.contextmanager
    def pod(self, pod: Pod, timeout: float = POD_SECONDS) -> Iterator[PodStatus]:
        """A running pod for the length of a with block."""
        self.create_pod(pod)
        try:
            yield self.wait_running(pod.name, timeout)
        finally:
            self.delete_pod(pod.name, timeout)

    def pod_status(self, name: str) -> PodStatus | None:
        """The pod's status, None if the kubelet does not know it. Raises OSError while the kubelet is down."""
        for pod in json.loads(self.get("pods")).get("items") or []:
            # The same name with another uid is a pod of before that still ends.
            if pod["metadata"]["name"] == f"{name}-{self.name}" and pod["metadata"]["uid"] == self._uids.get(name):
                return PodStatus.parse(pod)
        return None

    def wait_running(self, name: str, timeout: float = POD_SECONDS) -> PodStatus:
        """Waits until all containers of the pod run. A pod that has failed ends the wait at once."""

        def running() -> PodStatus | None:
            status = self.pod_status(name)
            if status and status.phase == "Failed":
                raise WaitError(f"pod {name} failed instead of running: {status.reason}: {status.message}")
            return status if status and status.all_running else None

        return self._wait(running, timeout, f"pod {name} to run", name)

    def wait_failed(self, name: str, timeout: float = POD_SECONDS) -> PodStatus:
        """Waits until the pod has failed, as one does that the kubelet rejects."""

        def failed() -> PodStatus | None:
            status = self.pod_status(name)
            return status if status and status.phase == "Failed" else None

        return self._wait(failed, timeout, f"pod {name} to fail", name)

    def wait_gone(self, name: str, timeout: float = POD_SECONDS) -> None:
        """Waits until the kubelet has forgotten the pod and its last process has ended."""
        uid = self._uids.get(name)
        if uid is not None:
            self._wait(lambda: self.pod_status(name) is None and not self._has_group(uid), timeout, f"pod {name} to be gone", name)

    def wait_health(self, name: str, resource: str, health: Mapping[str, str], container: str = "main", timeout: float = POD_SECONDS) -> None:
        """Waits until the pod's status shows exactly these devices of the resource, with this health each ("Healthy", "Unhealthy")."""

        def shown() -> bool:
            status = self.pod_status(name)
            return bool(status and container in status.containers and status.containers[container].allocated.get(resource, {}) == health)

        self._wait(shown, timeout, f"pod {name} to show {resource} {dict(health)}", name)

    def container(self, name: str, container: str = "main") -> ContainerStatus:
        """A container's status. Raises LookupError if the pod or container is not there."""
        status = self.pod_status(name)
        if status is None or container not in status.containers:
            raise LookupError(f"no container {container} of pod {name}: {status}")
        return status.containers[container]

    def pod_env(self, name: str, container: str = "main") -> dict[str, str]:
        """The environment that the runtime gave a container."""
        return dict(entry.split("=", 1) for entry in self.oci_spec(name, container)["process"]["env"])

    def oci_spec(self, name: str, container: str = "main") -> dict[str, Any]:
        """containerd's specification (config.json) of a running container: its devices, mounts, environment. Raises OSError."""
        spec: dict[str, Any] = json.loads((self._bundle(name, container) / "config.json").read_text())
        return spec

    def pod_logs(self, name: str, container: str = "main") -> list[str]:
        """The lines that the present instance of a container has written."""
        status = self.container(name, container)
        path = self.pod_logs_dir / f"default_{name}-{self.name}_{self._uids[name]}" / container / f"{status.restarts}.log"
        lines, part = [], ""
        for line in path.read_text().splitlines():
            # TIME STREAM TAG TEXT, where the tag P marks all but the last part of a long line.
            _, _, tag, text = line.split(" ", 3)
            part += text
            if tag == "F":
                lines.append(part)
                part = ""
        return lines

    def probe(self, name: str, container: str = "main", timeout: float = POD_SECONDS) -> Probe:
        """Has a container that runs probe() look again, now, and returns what it reports."""

        def after(seq: int) -> Probe | None:
            reports = [Probe(**json.loads(line)) for line in self.pod_logs(name, container) if line.startswith("{")]
            return reports[-1] if reports and reports[-1].seq > seq else None

        # Once its first report is out, devprobe is ready for the signal.
        last = self._wait(lambda: after(0), timeout, f"the first report of pod {name}", name)
        os.kill(self.container_pid(name, container), signal.SIGUSR1)
        return self._wait(lambda: after(last.seq), timeout, f"another report of pod {name}", name)

    def container_pid(self, name: str, container: str = "main") -> int:
        """The process id, on this machine, of a container's first process. Raises OSError if it does not run."""
        return int((self._bundle(name, container) / "init.pid").read_text())

    # Devices.

    def wait_resource(self, resource: str, amount: int, timeout: float = POD_SECONDS) -> dict[str, list[int]]:
        """Waits until the kubelet has exactly this many healthy devices of a resource; returns their NUMA nodes by id."""
        seen: Devices = {}

        def listed() -> bool:
            nonlocal seen
            seen = self.pod_resources.allocatable()
            return len(seen.get(resource, {})) == amount

        self._wait(listed, timeout, f"{amount} healthy devices of {resource}", None, lambda: seen)
        return seen.get(resource, {})

    def pod_devices(self, name: str, container: str = "main") -> dict[str, list[str]]:
        """What podresources says a container holds: sorted device ids by resource name."""
        held = self.pod_resources.list().get(f"{name}-{self.name}", {}).get(container, {})
        return {resource: sorted(ids) for resource, ids in held.items()}

    def _wait(self, predicate: Callable[[], T | None], timeout: float, what: str, name: str | None, seen: Callable[[], object] | None = None) -> T:
        return wait_for(predicate, timeout, what, (self.kubelet_log,), seen or (lambda: self._describe(name)))

    def _describe(self, name: str | None) -> object:
        try:
            return self.pod_status(name) if name else None
        except OSError as error:
            return error

    def _manifest(self, name: str) -> Path:
        return self.manifests_dir / f"{name}.yaml"

    def _bundle(self, name: str, container: str) -> Path:
        return self.bundles_dir / self.container(name, container).id

    def _has_group(self, uid: str) -> bool:
        return any(f"pod{uid}" in group.name for group in groups_below(self.name))
