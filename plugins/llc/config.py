# SPDX-License-Identifier: Apache-2.0
"""The options of the LLC plugin."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from deviceplugin import checks

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_RESOURCE = re.compile(rf"{_LABEL}(\.{_LABEL})*/[A-Za-z]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")

Count = Annotated[int, msgspec.Meta(ge=1, le=32)]


class Collect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """When a group that no container seems to need any more is removed."""

    after: Annotated[float, msgspec.Meta(ge=10, le=86400)] = 120.0
    """Seconds since it was last asked for. A container may take so long from its admission to its start."""
    sightings: Annotated[int, msgspec.Meta(ge=2, le=100)] = 2
    """How many times in a row it must be seen unneeded."""


class LlcConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What a slot is, and what may be done to keep it."""

    resource: str = "devices.local/llc"
    """The extended resource that pods ask for."""
    mode: Literal["reserve", "limit"] = "limit"
    """``reserve`` takes the slots' ways from everything else on the node, by the root group's mask; with ``limit`` a slot is an upper bound only."""
    ways_per_slot: Count = 1
    shared_ways: Annotated[int, msgspec.Meta(ge=0, le=31)] | None = None
    """Ways of each cache that are no slots, besides the hardware's own. By default as many as the hardware shares, and at least 2."""
    memory_bandwidth: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Memory bandwidth that comes with each slot, in the unit of the MB lines in schemata; a container gets no more than the root group has."""
    relocate: bool = True
    """Whether groups of running containers may be moved to other ways to make room."""
    repair: bool = True
    """Whether processes of a container that run outside its group may be moved into it."""
    collect: Collect = Collect()
    mount_point: str = "/sys/fs/resctrl"
    """Where the host has resctrl."""

    def __post_init__(self) -> None:
        if not _RESOURCE.fullmatch(self.resource) or checks.resource_name_error(self.resource):
            raise ValueError(f"resource {self.resource!r} must be a domain, a slash and a name that begins with a letter, as in vendor.example/llc")
        if not self.mount_point.startswith("/") or "/../" in f"{self.mount_point}/":
            raise ValueError(f"mountPoint {self.mount_point!r} must be an absolute path of the host")
