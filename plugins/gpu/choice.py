# SPDX-License-Identifier: Apache-2.0
"""Which shared GPUs or MIG devices a container should get, by how many of each GPU's are free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from deviceplugin import Device


def shares(policy: str, available: Sequence[Device], required: Sequence[Device], size: int) -> list[Device]:
    """The ``required`` devices and as many of the others as make ``size``, ``size`` or as many as there are.

    ``packed`` takes from the GPU with the fewest left, ``distributed`` from the one with the most, and ``spread`` from one that the container has
    the least of. What is equal is decided by the order of the ids.
    """
    free = Counter(device.id for device in available)
    chosen = list(required)
    free.subtract(device.id for device in required)
    devices = {device.id: device for device in sorted(available, key=lambda device: (device.unit, device.id), reverse=True)}
    left = Counter(dict.fromkeys({device.unit for device in devices.values()}, 0))
    for device_id, count in free.items():
        left[devices[device_id].unit] += max(0, count)
    mine = Counter(device.unit for device in required)
    ids: dict[str, list[str]] = {}
    for device_id, device in devices.items():  # the last is the first to be taken
        ids.setdefault(device.unit, []).extend([device_id] * max(0, free[device_id]))
    while len(chosen) < size and any(left.values()):
        open_units = sorted(unit for unit, count in left.items() if count > 0)
        if policy == "packed":
            unit = min(open_units, key=lambda u: left[u])
        elif policy == "distributed":
            unit = min(open_units, key=lambda u: -left[u])
        else:
            unit = min(open_units, key=lambda u: (mine[u], -left[u]))
        left[unit] -= 1
        mine[unit] += 1
        chosen.append(devices[ids[unit].pop()])
    return chosen
