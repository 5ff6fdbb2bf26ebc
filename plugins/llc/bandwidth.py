# SPDX-License-Identifier: Apache-2.0
"""Memory bandwidth that comes with cache slots."""

from __future__ import annotations

from collections.abc import Mapping

from deviceplugin.plugins.llc.naming import Slots


def bandwidth_of(slots: Slots, per_slot: int, limits: tuple[int, int], root: Mapping[int, int]) -> dict[int, int]:
    """By memory controller, which has its cache's number: so much for each slot there, and all that the root group has where there are none.

    ``limits`` are the least value and the step, to which the kernel rounds up (bw_validate, fs/resctrl/ctrlmondata.c): rounded here, so that what is
    read back is what was written.
    """
    least, step = limits
    found = {}
    for cache, most in root.items():
        wanted = per_slot * slots.get(cache, 0).bit_count()
        found[cache] = min(most, max(least, -(-wanted // step) * step)) if wanted else most
    return found
