# SPDX-License-Identifier: Apache-2.0
"""Which of the free devices a container should get.

A *slot* is one listed id, and slots that share a physical thing are on one *unit*: the replicas of a shared card, say. A slot that is neither free
nor required is taken as somebody else's, so the answer follows from the list and the question alone. The policies:

``any``
    The lowest ids.
``spread``
    As many units as possible, and of those the ones with the fewest slots in use. A container gets a second slot of one unit only when it has one of
    each. Where that leaves a choice, the fewest NUMA nodes.
``pack``
    Opens the fewest units that were wholly free, then uses the fewest units, then the fewest NUMA nodes, then leaves the fewest free slots over on
    those nodes and on the last unit, so that large free sets stay whole.

A unit with several NUMA nodes is local to each of them. Units without a known node count as on one more node, used last. The search for NUMA nodes is
exact while there are at most 65,536 sets to look at (up to 16 nodes always); beyond, it finds a set from which no node can be left out. Ties go to
the lowest nodes and ids. Ids are ordered as people count: ``gpu-2`` before ``gpu-10``. The order of the question never matters.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final

from deviceplugin._native.allocation import ANY, PACK, SPREAD, Slots

POLICIES: Final = {"any": ANY, "spread": SPREAD, "pack": PACK}
"""The names of the policies, as the configuration spells them."""

_PLACES = 63
"""A mask has 64 bits and one of them stands for no known node. Machines with NUMA nodes beyond that are beyond the kubelet too."""

_DIGITS = re.compile("([0-9]+)")

Row = tuple[str, str, tuple[int, ...]]
"""A slot's id, its unit, and the NUMA nodes that are local to it."""


def natural(id_: str) -> tuple[tuple[object, ...], str]:
    """A sort key that puts ``gpu-2`` before ``gpu-10``. Numbers stay text: they may have more digits than ``int`` takes."""
    parts: list[object] = list(_DIGITS.split(id_))
    parts[1::2] = [(len(number), number) for number in (digits.lstrip("0") for digits in _DIGITS.findall(id_))]
    return tuple(parts), id_


class Table:
    """The slots of one list of devices, made once for each list. Immutable; any number of threads may ask at once.

    Raises ValueError when two rows have one id.
    """

    __slots__ = ("_ids", "_slots")

    def __init__(self, rows: Sequence[Row]) -> None:
        ordered = sorted(rows, key=lambda row: natural(row[0]))
        self._ids = frozenset(row[0] for row in ordered)
        if len(self._ids) != len(ordered):
            twice = next(a[0] for a, b in itertools.pairwise(ordered) if a[0] == b[0])
            raise ValueError(f"the device id {twice!r} is listed twice")
        nodes = sorted({node for _, _, numa in ordered for node in numa if node >= 0})[:_PLACES]
        bits = {node: 1 << i for i, node in enumerate(nodes)}
        unplaced = 1 << len(nodes)
        units: dict[str, int] = {}
        masks: list[int] = []
        for _, unit, numa in ordered:
            number = units.setdefault(unit, len(units))
            if number == len(masks):
                masks.append(0)
            for node in numa:
                masks[number] |= bits.get(node, 0)
        self._slots = Slots(
            [row[0] for row in ordered],
            [units[row[1]] for row in ordered],
            [mask or unplaced for mask in masks],
            unplaced,
        )

    def choose(self, policy: str, available: Sequence[str], required: Sequence[str], size: int) -> list[str]:
        """The ids to take: all ``required`` ones first, whatever they are, and then of the ``available`` as many as make ``size`` in all.

        So there are ``size`` different ids, or more when more are required, or fewer when fewer are available. An available id that the table does
        not know is taken only when the known ones do not suffice. The kubelet drops an id that it did not offer, and an error would fail the pod, so
        no question is refused; an unknown policy, which no question carries, is a KeyError.
        """
        strangers = sorted(set(required) - self._ids, key=natural)
        answer = strangers + self._slots.choose(POLICIES[policy], available, required, size - len(strangers))
        if len(answer) < size:
            answer += sorted(set(available) - self._ids - set(strangers), key=natural)[: size - len(answer)]
        return answer
