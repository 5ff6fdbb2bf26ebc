# SPDX-License-Identifier: Apache-2.0
"""Which GPUs a container should get, by how well they are linked.

Each pair of GPUs has a score: higher is better, and only sums of them matter. The score should hold the distance over PCIe (10 across CPUs up to 60
on one board) and 100 for each NVLink between the two, or between each of the two and the switch that joins them: with the distance in the score,
GPUs that NVLink makes equal are still told apart by socket. The policy ``topology`` takes, of all sets of the size asked for that hold the required
GPUs, the one that

1. has the highest sum of scores inside;
2. of those, cuts the least: the sum of scores between the set and the GPUs that remain available is the lowest;
3. of those, is on the fewest NUMA nodes, where GPUs of no known node count as on one more;
4. of those, has the lowest indices.

The score inside comes first because that is what this container gets, for as long as it runs. NVIDIA's allocator sums over a whole partition of the
available GPUs into sets of this size instead: it may hand out a worse set in favour of later requests, which may never come or be of another size.

What is good for later requests decides between equals, and always for a single GPU, which has no score inside. All scores among the available GPUs
are inside the set, cut, or among those that remain. The total is given and the first part is equal, so the set that cuts the least is the one that
leaves the highest sum among those that remain, whatever sizes are asked for next. So a single GPU comes from a pair that is already broken, then from
the pair with the fewest links, and a pair comes from the quad or socket that has already lost one.

The answer is exact for up to 16 GPUs to choose from, and beyond that wherever the bounds suffice, as they mostly do for real machines. Otherwise the
search ends after a number of steps, never a time, so that the answer follows from the question alone: it is then the best set that was seen, and no
worse than what greedy choice from each GPU with exchanges afterwards finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from deviceplugin._native.linkset import Links

POLICIES: Final = ("topology",)
"""What :meth:`Topology.choose` can go by. Policies that share a GPU out among containers are the framework's."""


@dataclass(frozen=True, slots=True)
class Topology:
    """How the GPUs of one snapshot are linked: up to 64, known by their indices. Any number of threads may choose at once.

    ``links`` has the score of each pair, from 0 to 32767 and the same both ways; the diagonal is ignored. ``numa`` has the NUMA node of each GPU, or
    None when it is not known. Raises ValueError when these do not fit together, and says where.
    """

    links: Sequence[Sequence[int]]
    numa: Sequence[int | None]
    _search: Links = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        links, numa = tuple(tuple(row) for row in self.links), tuple(self.numa)
        numbers = {node: number for number, node in enumerate(dict.fromkeys(numa))}
        object.__setattr__(self, "links", links)
        object.__setattr__(self, "numa", numa)
        object.__setattr__(self, "_search", Links(links, [numbers[node] for node in numa]))

    def choose(self, policy: str, available: Iterable[int], required: Iterable[int], size: int) -> list[int]:
        """The ``required`` GPUs, then as the policy picks them as many of the ``available`` as make ``size`` in all; both in ascending order.

        The required must be available too. A question that has no answer (a size that is too large or too small, a required GPU that is not
        available) never fails: it is answered with the required GPUs, then the lowest available ones, ``size`` in all or as many as there are. An
        index counts once, and one that is no GPU's is passed over. ValueError for a policy that is not one of ``POLICIES``.
        """
        if policy not in POLICIES:
            raise ValueError(f"there is no policy {policy!r} to choose GPUs by; there is {', '.join(POLICIES)}")
        free, ours = self._mask(available), self._mask(required)
        if ours & ~free or not ours.bit_count() <= size <= free.bit_count():
            return _indices(ours) + _indices(free & ~ours)[: max(0, size - ours.bit_count())]
        chosen, _ = self._search.choose(free, ours, size)
        return _indices(ours) + _indices(chosen & ~ours)

    def _mask(self, indices: Iterable[int]) -> int:
        count, mask = len(self.numa), 0
        for index in indices:
            if 0 <= index < count:
                mask |= 1 << index
        return mask


def _indices(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]
