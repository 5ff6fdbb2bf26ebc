# SPDX-License-Identifier: Apache-2.0
"""What a slot's bandwidth means to the servers: pure arithmetic."""

from __future__ import annotations

from msgspec import Struct

MAX_RATE = 999_999
"""Of a TBF rule, in RPCs a second."""


class Rate(Struct, frozen=True):
    """The rate of a TBF rule for containers with so many slots.

    The servers keep a bucket for each JobID on each CPT of each OSS (LU-17158), so a container that reaches all of them with full RPCs gets
    ``rate x rpc_size x oss x cpts`` bytes a second: ``ceiling``. A bucket counts RPCs: with smaller ones it gets less, in proportion.
    ``wanted`` is what the slots stand for.
    """

    slots: int
    rate: int
    wanted: int
    ceiling: int

    @property
    def exact(self) -> bool:
        """Whether the ceiling is no higher than what the slots stand for: no rule has a rate below 1."""
        return self.ceiling <= self.wanted


def tbf(slots: int, per_slot: int, *, rpc_size: int, oss: int, cpts: int) -> Rate:
    """The largest whole rate whose ceiling does not pass what ``slots`` slots of ``per_slot`` bytes a second stand for; at least 1."""
    wanted = slots * per_slot
    share = rpc_size * oss * cpts
    rate = max(1, min(MAX_RATE, wanted // share))
    return Rate(slots, rate, wanted, rate * share)


def concurrency(in_flight: int, rpc_size: int, round_trip: float) -> float:
    """Bytes a second that one server can give at most to a mount with ``in_flight`` RPCs under way, each of which takes ``round_trip`` seconds.

    Little's law: a cap on concurrency, not on the rate.
    """
    return in_flight * rpc_size / round_trip


def decimal(amount: float) -> str:
    """Bytes, or bytes a second, for people: ``469.8 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.4g} {unit}"
        amount /= 1000
    return f"{amount:.4g} TB"
