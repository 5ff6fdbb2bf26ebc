"""Pods as these tests write them, and their status as the kubelet reports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.e2e.harness.images import PROBE_IMAGE


def probe(*paths: str, mknod: Sequence[str] = ()) -> tuple[str, ...]:
    """The command of a container that tells which device files it may open, read with Node.probe().

    paths: files to open. mknod: devices such as "c:10:229" that it first makes a file for itself, to see whether the device cgroup
    lets it: "EPERM" is a refusal.
    """
    return ("/bin/devprobe", *paths, *(argument for device in mknod for argument in ("--mknod", device)))


@dataclass(frozen=True)
class Container:
    """One container of a pod.

    limits: amounts by resource name; the kubelet takes them as requests too.
    mounts: host paths by the path inside the container; a host path that is absent becomes a folder.
    always: for an init container only: it keeps running beside the others (a sidecar).
    """

    name: str = "main"
    command: Sequence[str] = field(default_factory=probe)
    limits: Mapping[str, int | str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)
    privileged: bool = False
    always: bool = False

    def _volume(self, path: str) -> str:
        return f"{self.name}-{sorted(self.mounts).index(path)}"

    def volumes(self) -> list[dict[str, Any]]:
        """What the pod's spec has to list for this container's mounts."""
        return [{"name": self._volume(path), "hostPath": {"path": host, "type": ""}} for path, host in self.mounts.items()]

    def manifest(self) -> dict[str, Any]:
        """The container as it stands in the pod's spec."""
        manifest: dict[str, Any] = {
            "name": self.name,
            "image": PROBE_IMAGE,
            # There is no registry: the node's containerd was given the image.
            "imagePullPolicy": "Never",
            "command": list(self.command),
            "env": [{"name": name, "value": value} for name, value in self.env.items()],
            "resources": {"limits": {name: str(amount) for name, amount in self.limits.items()}},
            "volumeMounts": [{"name": self._volume(path), "mountPath": path} for path in self.mounts],
        }
        if self.privileged:
            manifest["securityContext"] = {"privileged": True}
        if self.always:
            manifest["restartPolicy"] = "Always"
        return manifest


@dataclass(frozen=True)
class Pod:
    """A pod to run. name: unique among the node's pods; a DNS label.

    restart: Always, OnFailure or Never. grace: seconds between SIGTERM and SIGKILL when it is deleted.
    """

    name: str
    containers: Sequence[Container]
    init: Sequence[Container] = ()
    restart: str = "Always"
    grace: int = 2

    @classmethod
    def single(cls, name: str, **of_container: Any) -> Pod:
        """A pod with one container, called "main". of_container: the fields of Container."""
        return cls(name, [Container(**of_container)])

    def manifest(self, uid: str) -> str:
        """The YAML text of the pod. uid: its identity; the kubelet never looks twice at a pod that it has rejected."""
        everyone = [*self.init, *self.containers]
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": self.name, "namespace": "default", "uid": uid},
                "spec": {
                    # No network plugin is set up.
                    "hostNetwork": True,
                    "restartPolicy": self.restart,
                    "terminationGracePeriodSeconds": self.grace,
                    "initContainers": [container.manifest() for container in self.init],
                    "containers": [container.manifest() for container in self.containers],
                    "volumes": [volume for container in everyone for volume in container.volumes()],
                },
            },
            sort_keys=False,
        )


@dataclass(frozen=True)
class ContainerStatus:
    """One container's status. allocated: health ("Healthy", "Unhealthy") by device id, by resource name."""

    name: str
    id: str
    running: bool
    ready: bool
    restarts: int
    state: Mapping[str, Any]
    allocated: Mapping[str, Mapping[str, str]]

    @classmethod
    def parse(cls, status: Mapping[str, Any]) -> ContainerStatus:
        """Reads an entry of containerStatuses."""
        allocated = {
            entry["name"]: {resource["resourceID"]: resource.get("health", "") for resource in entry.get("resources", [])}
            for entry in status.get("allocatedResourcesStatus", [])
        }
        return cls(
            name=status["name"],
            id=status.get("containerID", "").removeprefix("containerd://"),
            running="running" in status.get("state", {}),
            ready=status.get("ready", False),
            restarts=status.get("restartCount", 0),
            state=status.get("state", {}),
            allocated=allocated,
        )


@dataclass(frozen=True)
class PodStatus:
    """A pod's status. phase: Pending, Running, Succeeded or Failed; reason and message say why a pod was rejected, else ""."""

    name: str
    uid: str
    phase: str
    reason: str
    message: str
    containers: Mapping[str, ContainerStatus]
    init: Mapping[str, ContainerStatus]

    @classmethod
    def parse(cls, pod: Mapping[str, Any]) -> PodStatus:
        """Reads a Pod object."""
        status = pod.get("status", {})
        containers = [ContainerStatus.parse(entry) for entry in status.get("containerStatuses") or []]
        init = [ContainerStatus.parse(entry) for entry in status.get("initContainerStatuses") or []]
        return cls(
            name=pod["metadata"]["name"],
            uid=pod["metadata"]["uid"],
            phase=status.get("phase", ""),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            containers={container.name: container for container in containers},
            init={container.name: container for container in init},
        )

    @property
    def all_running(self) -> bool:
        """Whether the pod has started and each of its containers runs."""
        return self.phase == "Running" and bool(self.containers) and all(container.running for container in self.containers.values())
