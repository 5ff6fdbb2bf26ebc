# SPDX-License-Identifier: Apache-2.0
"""What is advertised of a card, and what a container gets that holds it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from deviceplugin import Device, DeviceNode, Edits, Enforcement, Mount
from deviceplugin.plugins.mic import vfio
from deviceplugin.plugins.mic.cards import Card
from deviceplugin.plugins.mic.config import MicConfig
from deviceplugin.plugins.mic.selfboot import Processor
from deviceplugin.plugins.mic.state import Driver, Finding

T = TypeVar("T")

SCIF = MappingProxyType({Driver.MPSS3: "/dev/mic/scif", Driver.KERNEL: "/dev/scif", Driver.MPSS4: "/dev/scif"})
"""The file through which programs reach all cards. /dev/mic/ctrl and /dev/mic/mic0 control and measure cards, and are given to nobody."""


def served(card: Card, finding: Finding, config: MicConfig, *, alone: bool) -> Device:
    """A card behind its driver. ``alone``: the host has no other."""
    facts = {"driver": card.driver.value, "family": card.family, "stepping": card.stepping, "sku": card.sku, "pci_address": card.address}
    return Device(
        card.id,
        resource=config.resource,
        health=finding.health,
        cause=finding.cause,
        numa_nodes=[] if card.numa is None else [card.numa],
        nodes=[SCIF[card.driver]],
        mounts=[Mount(library.path, library.container_path) for library in config.libraries],
        attributes=_attributes({**facts, "number": card.number, "cores": card.cores}),
        # The one file leads to all cards. Where there is but one, whoever has no file has no card.
        enforcement=Enforcement.HARD if alone else Enforcement.ADVISORY,
        incarnation="" if card.boots is None else str(card.boots),
    )


def passed(one: vfio.Passed, config: MicConfig) -> Device:
    """A card to be passed through."""
    return Device(
        one.id,
        resource=config.vfio_resource,
        health=one.finding.health,
        cause=one.finding.cause,
        numa_nodes=[] if one.numa is None else [one.numa],
        nodes=[DeviceNode(one.node), DeviceNode(vfio.CONTROL)],
        attributes=_attributes({"family": one.family, "pci_address": one.address, "iommu_group": one.group, "cards": len(one.cards)}),
        enforcement=Enforcement.HARD,
    )


def host(processor: Processor, resource: str) -> Device:
    """A host that is a Xeon Phi: it is counted, and nothing more."""
    facts = {"model": processor.model, "memory_mode": processor.memory_mode, "cluster_mode": processor.cluster_mode}
    return Device(
        "xeon-phi-host",
        resource=resource,
        envs={"XEON_PHI_MCDRAM_NODES": ",".join(map(str, processor.nodes))} if processor.nodes else {},
        attributes=_attributes(facts),
        capacity={"mcdram": processor.mcdram},
        enforcement=Enforcement.NONE,
    )


def number(device: Device) -> int | None:
    """The driver's number of a card; None for what has none."""
    found = device.attributes.get("number")
    return found if isinstance(found, int) else None


def is_passed(device: Device) -> bool:
    """Whether the device is a card to be passed through."""
    return "iommu_group" in device.attributes


def handle(device: Device) -> str:
    """What a container is told of a device that changes from boot to boot; empty if nothing is."""
    if (card := number(device)) is not None:
        return f"mic{card}"
    return f"{vfio.NODES}/{device.attributes['iommu_group']}" if is_passed(device) else ""


def edits(devices: Sequence[Device], config: MicConfig) -> Edits:
    """What a container needs for these devices, all of one resource."""
    return Edits(
        nodes=_once(node for one in devices for node in one.nodes),
        mounts=_once(mount for one in devices for mount in one.mounts),
        envs=_variables(devices, config),
    )


def _variables(devices: Sequence[Device], config: MicConfig) -> dict[str, str]:
    if cards := sorted(card for one in devices if (card := number(one)) is not None):
        found = {
            "OFFLOAD_DEVICES": ",".join(map(str, cards)),
            "XEON_PHI_SCIF_NODES": ",".join(str(card + 1) for card in cards),  # node 0 is the host
        }
        return found | ({"MIC_ENV_PREFIX": config.env_prefix} if config.env_prefix else {})
    if addresses := [str(one.attributes["pci_address"]) for one in devices if is_passed(one)]:
        # How KubeVirt learns of the devices of other plugins.
        return {"PCI_RESOURCE_" + re.sub("[^A-Z0-9]", "_", config.vfio_resource.upper()): ",".join(addresses)}
    return {key: value for one in devices for key, value in one.envs.items()}


def _attributes(facts: Mapping[str, str | int | None]) -> dict[str, bool | int | str]:
    return {name: value for name, value in facts.items() if value is not None and value != ""}


def _once(things: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(things))
