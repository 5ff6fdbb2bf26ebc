# SPDX-License-Identifier: Apache-2.0
"""Device health in a pod's status (manager.go: UpdateAllocatedResourcesStatus)."""

from __future__ import annotations

from deviceplugin.testing.devices import HEALTHY, DeviceManager
from deviceplugin.testing.pods import Pod

Status = dict[str, dict[str, dict[str, str]]]
"""``Healthy`` or ``Unhealthy`` by container, resource and device id."""


def pod_status(manager: DeviceManager, pod: Pod) -> Status:
    """``allocatedResourcesStatus`` of the pod's app containers; init containers have none.

    A device that is no longer listed is Healthy here, and a plugin that goes away changes nothing: only a list that says Unhealthy does.
    """
    with manager.mutex:
        held = manager.held.get(pod.uid, {})
        return {
            container.name: {
                resource: {device: _health(manager, resource, device) for device in sorted(assignment.ids())}
                for resource, assignment in held.get(container.name, {}).items()
            }
            for container in pod.containers
        }


def _health(manager: DeviceManager, resource: str, device: str) -> str:
    listed = manager.listed.get(resource, {}).get(device)
    return HEALTHY if listed is None or listed.health == HEALTHY else "Unhealthy"
