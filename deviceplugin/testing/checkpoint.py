# SPDX-License-Identifier: Apache-2.0
"""``kubelet_internal_checkpoint``: what the kubelet remembers over restarts and reboots.

The JSON has the kubelet's shape. The checksum is ours: the kubelet's is over a dump of Go values (pkg/kubelet/checkpointmanager/checksum), so neither
reads the other's file.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb

NAME = "kubelet_internal_checkpoint"

WITHOUT_TOPOLOGY = -1
"""The key under which devices of no NUMA node stand."""


class CheckpointCorrupt(Exception):
    """The file's checksum is not that of its data."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The devices of one resource that one container holds, by NUMA node, and the answer that Allocate gave for them."""

    by_node: Mapping[int, tuple[str, ...]]
    response: pb.ContainerAllocateResponse

    def ids(self) -> set[str]:
        return {device for devices in self.by_node.values() for device in devices}


Held = dict[str, dict[str, dict[str, Assignment]]]
"""By pod uid, container name and resource."""


class Checkpoint:
    """The file. ``writes`` counts how often it was written: once per list and once per container, in a kubelet that is not spammed."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, NAME)
        self.writes = 0

    def write(self, held: Held, registered: Mapping[str, list[str]]) -> None:
        """:raises OSError: it cannot be written (the directory is gone, say)."""
        entries = [
            {
                "PodUID": uid,
                "ContainerName": container,
                "ResourceName": resource,
                "DeviceIDs": {str(node): list(ids) for node, ids in assignment.by_node.items()},
                "AllocResp": base64.b64encode(assignment.response.SerializeToString()).decode(),
            }
            for uid, containers in held.items()
            for container, resources in containers.items()
            for resource, assignment in resources.items()
        ]
        data = {"PodDeviceEntries": entries or None, "RegisteredDevices": dict(registered)}
        temporary = os.path.join(os.path.dirname(self.path), f".{NAME}.{self.writes}")
        # The kubelet also fsyncs, which a fake one that loses no power need not.
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"Data": data, "Checksum": _checksum(data)}, file)
        os.rename(temporary, self.path)
        self.writes += 1

    def read(self) -> tuple[Held, set[str]] | None:
        """What pods hold and which resources were registered; None without a file.

        :raises CheckpointCorrupt: the file is not as it was written.
        """
        try:
            with open(self.path, encoding="utf-8") as file:
                document = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointCorrupt(str(error)) from None
        data = document.get("Data") if isinstance(document, dict) else None
        if not isinstance(data, dict) or document.get("Checksum") != _checksum(data):
            raise CheckpointCorrupt("checkpoint is corrupted")
        held: Held = {}
        for entry in data["PodDeviceEntries"] or ():
            assignment = Assignment(
                {int(node): tuple(ids) for node, ids in entry["DeviceIDs"].items()},
                pb.ContainerAllocateResponse.FromString(base64.b64decode(entry["AllocResp"])),
            )
            held.setdefault(entry["PodUID"], {}).setdefault(entry["ContainerName"], {})[entry["ResourceName"]] = assignment
        return held, set(data["RegisteredDevices"])


def _checksum(data: Mapping[str, Any]) -> int:
    value = 0x811C9DC5  # FNV-1a, 32 bits
    for byte in json.dumps(data, sort_keys=True).encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value
