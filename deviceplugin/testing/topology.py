# SPDX-License-Identifier: Apache-2.0
"""NUMA alignment, as far as devices alone decide it: hints, their merge, and the split by affinity.

Follows devicemanager/topology_hints.go and cm/topologymanager/policy*.go with the device manager as the only provider and the scope ``container``.
Masks are integers; nodes outside 0..63 are in no mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deviceplugin.testing.devices import Listed
from deviceplugin.testing.settings import Order, Policy


@dataclass(frozen=True, slots=True)
class Hint:
    """A set of NUMA nodes that would do, or with ``mask`` None no opinion; ``preferred`` when no smaller set could ever do."""

    mask: int | None
    preferred: bool


def mask_of(nodes: Iterable[int]) -> int:
    mask = 0
    for node in nodes:
        if 0 <= node < 64:
            mask |= 1 << node
    return mask


def is_aligned(devices: Mapping[str, Listed]) -> bool:
    """One device with NUMA nodes makes the whole resource aligned."""
    return any(device.nodes for device in devices.values())


def hints(devices: Mapping[str, Listed], numa: Sequence[int], available: set[str], reusable: set[str], request: int) -> list[Hint]:
    """Every set of NUMA nodes on which the request fits. Only nodes that have devices count, and of those only nodes the machine has."""
    wanted = {node for device in devices.values() for node in device.nodes} & set(numa)
    nodes = sorted(wanted) or list(numa)
    smallest = len(nodes)
    found: list[int] = []
    for mask in (mask_of(chosen) for size in range(1, len(nodes) + 1) for chosen in itertools.combinations(nodes, size)):
        if sum(bool(mask & mask_of(device.nodes)) for device in devices.values()) >= request:
            smallest = min(smallest, mask.bit_count())
        with_topology = [mask_of(devices[device].nodes) for device in reusable if device in devices and devices[device].topology]
        if not all(mask & nodes_of for nodes_of in with_topology):
            continue
        if len(with_topology) + sum(bool(mask & mask_of(devices[device].nodes)) for device in available) >= request:
            found.append(mask)
    return [Hint(mask, mask.bit_count() == smallest) for mask in found]


def merge(policy: Policy, numa: Sequence[int], by_resource: Sequence[list[Hint] | None]) -> tuple[int | None, bool]:
    """The best set of nodes for a container, and whether the policy admits it. None among the hints is a resource without topology."""
    if policy == "none":
        return None, True
    everywhere = mask_of(numa)
    choices = [[Hint(None, True)] if given is None else given or [Hint(None, False)] for given in by_resource] or [[Hint(None, True)]]
    if policy == "single-numa-node":
        choices = [[h for h in given if h.preferred and (h.mask is None or h.mask.bit_count() == 1)] for given in choices]
    ideal = max((min(((h.mask.bit_count(), h.mask) for h in given if h.mask is not None), default=(0, 0))[0] for given in choices), default=0)
    best: Hint | None = None
    for permutation in itertools.product(*choices):
        best = _better(best, _intersection(everywhere, permutation), ideal)
    best = best or Hint(everywhere, False)
    mask = None if policy == "single-numa-node" and best.mask == everywhere else best.mask
    return mask, best.preferred or policy == "best-effort"


def _intersection(everywhere: int, permutation: Sequence[Hint]) -> Hint:
    masks = [hint.mask for hint in permutation if hint.mask is not None]
    merged = everywhere
    for mask in masks:
        merged &= mask
    return Hint(merged, all(hint.preferred for hint in permutation) and len(set(masks)) <= 1)


def _better(current: Hint | None, candidate: Hint, ideal: int) -> Hint | None:
    """HintMerger.compare. ``ideal`` is how many nodes the neediest resource needs at least: what is not preferred should come near it."""
    new = candidate.mask or 0
    if not new:
        return current
    if current is None or candidate.preferred > current.preferred:
        return candidate
    if current.preferred > candidate.preferred:
        return current
    old = current.mask or 0
    narrower = candidate if (new.bit_count(), new) <= (old.bit_count(), old) and new != old else current
    if current.preferred or old.bit_count() > ideal:
        return narrower
    if old.bit_count() == ideal:
        return narrower if new.bit_count() == ideal else current
    if new.bit_count() > ideal:
        return current
    if new.bit_count() != old.bit_count():
        return candidate if new.bit_count() > old.bit_count() else current
    return narrower


def split(devices: Mapping[str, Listed], available: set[str], affinity: int | None, order: Order) -> tuple[set[str], set[str], set[str]]:
    """``available`` as those on nodes of the affinity, those on other nodes, and those on none."""
    if affinity is None or not is_aligned(devices):
        return set(), set(), set(available)
    aligned: set[str] = set()
    unaligned: set[str] = set()
    nowhere: set[str] = set()
    for device in order.shuffled(available):
        nodes = [node for node in devices[device].nodes if node != -1]
        if mask_of(nodes) & affinity:
            aligned.add(device)
        elif nodes:
            unaligned.add(device)
        else:
            nowhere.add(device)
    return aligned, unaligned, nowhere
