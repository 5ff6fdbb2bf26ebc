# SPDX-License-Identifier: Apache-2.0
"""Starting containers: what the kubelet would hand to the container runtime (manager.go: GetDeviceRunContainerOptions; pod_devices.go)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing.admission import Allocator
from deviceplugin.testing.devices import DeviceManager
from deviceplugin.testing.pods import Container, Pod
from deviceplugin.testing.rpc import RpcFailed


class CreateContainerConfigError(Exception):
    """The container cannot start now; the kubelet tries again later. The text is the pod's status."""


@dataclass(frozen=True, slots=True)
class CriDevice:
    container_path: str
    host_path: str
    permissions: str


@dataclass(frozen=True, slots=True)
class CriMount:
    """Always with private propagation and no SELinux relabelling."""

    container_path: str
    host_path: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """What the runtime would be told. ``envs`` are in the kubelet's order, plugins' first and the pod's after them, so the pod's own win."""

    envs: tuple[tuple[str, str], ...]
    devices: tuple[CriDevice, ...]
    mounts: tuple[CriMount, ...]
    annotations: Mapping[str, str]
    cdi_devices: tuple[str, ...]

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the process: of two variables of one name, the last."""
        return dict(self.envs)


class Starter:
    """Container starts for one kubelet process. Runs on the callers' threads, as the kubelet's pod workers do, outside the sync loop."""

    def __init__(self, manager: DeviceManager, allocator: Allocator) -> None:
        self._manager = manager
        self._settings = manager.settings
        self._events = manager.events
        self._allocator = allocator

    def start(self, pod: Pod, container: Container, restarts: int) -> ContainerConfig:
        """Every creation of a container, the first and each restart. No device's health is looked at.

        :raises CreateContainerConfigError: in the kubelet's words.
        """
        try:
            self._prepare(pod, container)
        except (RuntimeError, RpcFailed) as error:
            raise CreateContainerConfigError(str(error)) from None
        return self._merge(pod, container, restarts)

    def _prepare(self, pod: Pod, container: Container) -> None:
        manager = self._manager
        missing = False
        for resource in self._settings.order.shuffled(container.limits):
            if not manager.is_plugin_resource(resource) or container.limits[resource] == 0:
                continue
            self._pre_start(pod.uid, container.name, resource)
            if pod.uid in {active.uid for active in manager.active_pods()} and manager.held_by(pod.uid, container.name, resource) is None:
                missing = True  # the pod was admitted before the plugin listed anything
        if missing:
            self._allocator.allocate(pod, container)

    def _pre_start(self, uid: str, container: str, resource: str) -> None:
        manager = self._manager
        with manager.mutex:
            endpoint = manager.endpoint(resource)
            held = manager.held_by(uid, container, resource)
        if endpoint is None:
            raise RuntimeError(f"endpoint not found in cache for a registered resource: {resource}")
        if endpoint.options is None or not endpoint.options.pre_start_required:
            return  # no options is also what a kubelet restart leaves until the plugin is back: the call is then silently left out
        if held is None:
            raise RuntimeError(f"no devices found allocated in local cache for pod {uid}, container {container}, resource {resource}")
        request = pb.PreStartContainerRequest(devices_ids=self._settings.order.shuffled(held))
        self._events.record("call", resource, method="PreStartContainer", request=request)
        try:
            endpoint.connected().call(
                "/v1beta1.DevicePlugin/PreStartContainer", request, pb.PreStartContainerResponse, timeout=self._settings.prestart_timeout
            )
        except (RuntimeError, RpcFailed) as error:
            manager.check_alive()
            self._events.record("call failed", resource, method="PreStartContainer", error=str(error))
            raise RuntimeError(f"device plugin PreStartContainer rpc failed with err: {error}") from None
        self._events.record("answer", resource, method="PreStartContainer")

    def _merge(self, pod: Pod, container: Container, restarts: int) -> ContainerConfig:
        """Puts the answers of the container's resources together: in random order, the first of two that clash."""
        with self._manager.mutex:
            held = dict(self._manager.held.get(pod.uid, {}).get(container.name, {}))
        envs: dict[str, str] = {}
        devices: dict[str, CriDevice] = {}
        mounts: dict[str, CriMount] = {}
        annotations: dict[str, str] = {}
        cdi: dict[str, None] = {}
        for resource in self._settings.order.shuffled(held):
            response = held[resource].response
            for name, value in response.envs.items():
                self._clash("env", resource, name, envs.setdefault(name, value), value)
            for device in response.devices:
                kept = devices.setdefault(device.container_path, CriDevice(device.container_path, device.host_path, device.permissions))
                self._clash("device", resource, device.container_path, kept.host_path, device.host_path)
            for mount in response.mounts:
                kept_mount = mounts.setdefault(mount.container_path, CriMount(mount.container_path, mount.host_path, mount.read_only))
                self._clash("mount", resource, mount.container_path, kept_mount.host_path, mount.host_path)
            for name, value in response.annotations.items():
                self._clash("annotation", resource, name, annotations.setdefault(name, value), value)
            for cdi_device in response.cdi_devices:
                cdi[cdi_device.name] = None
        return ContainerConfig(
            envs=(*envs.items(), *container.envs.items()),
            devices=tuple(devices.values()),
            mounts=tuple(mounts.values()),
            # The kubelet's own keys win (kuberuntime/labels.go); these two stand for them all.
            annotations={
                **annotations,
                "io.kubernetes.container.restartCount": str(restarts),
                "io.kubernetes.container.terminationMessagePolicy": "File",
            },
            cdi_devices=tuple(cdi),
        )

    def _clash(self, what: str, resource: str, key: str, kept: str, other: str) -> None:
        if kept != other:  # the kubelet logs an error and goes on
            self._events.record("conflict", resource, what=what, key=key, kept=kept, dropped=other)
