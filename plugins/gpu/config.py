# SPDX-License-Identifier: Apache-2.0
"""The options of the GPU plugin: which GPUs, under which names, and what becomes of one that fails. See docs/gpu.md."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from deviceplugin import Recovery, Rule
from deviceplugin.plugins.gpu import xid
from deviceplugin.plugins.gpu.filters import Selector
from deviceplugin.plugins.gpu.injection import InjectionOptions

DOMAIN = "nvidia.com"
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")

Action = Literal["ignore", "reset", "never"] | Annotated[float, msgspec.Meta(ge=0, le=86400 * 30)]
MigStrategy = Literal["none", "single", "mixed"]
AllocationPolicy = Literal["topology", "packed", "distributed", "spread"]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Match(Selector, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Whole GPUs; with ``mig``, the MIG devices on them that have such a profile."""

    mig: str | list[str] = msgspec.field(default_factory=list)
    """The profile as NVIDIA's tools write it (``1g.10gb``, ``1g.10gb+me``), with ``*``, ``?`` and ``[...]``."""


class Naming(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The resource that some GPUs count towards."""

    match: Match
    name: str
    """With its domain, or without for ``nvidia.com/``."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} must be a resource name, as in gpu.shared or example.com/gpu: a DNS name before the slash, and after it at most "
                "63 letters, digits, '-', '_' and '.'"
            )

    @property
    def resource(self) -> str:
        return self.name if "/" in self.name else f"{DOMAIN}/{self.name}"


class Faults(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What each fault does to a GPU: ``ignore``; ``reset``, unhealthy until a reset; ``never``, unhealthy for good; or the seconds that must pass
    without it.
    """

    xids: dict[str | int, Action] = {}
    """By XID, and ``default`` for those that no table has. Codes that are not named keep the plugin's defaults."""
    ecc: Action = "reset"
    """An uncorrected memory error on a GPU that cannot contain it (before Ampere)."""
    ecc_contained: Action = xid.CONTAINED
    """An uncorrected memory error on a GPU that remaps rows (Ampere and later); what is worse than contained, an XID tells."""
    remap_pending: Action = "reset"
    """Rows of memory will be remapped at the next reset."""
    remap_failure: Action = "never"
    """No spare row was left."""
    retired_pending: Action = "reset"
    """Pages of memory will be retired at the next reset (before Ampere)."""
    reset_required: Action = "reset"
    """NVML itself says that the GPU must be reset."""
    lost: Action = "reset"
    """The GPU has fallen off the bus."""

    def __post_init__(self) -> None:
        codes: set[str] = set()
        for key in self.xids:
            if key != "default" and not (str(key).isdecimal() and 1 <= int(key) <= xid.MAX_CODE):
                raise ValueError(f"xids: {key!r} is no XID: write a number from 1 to {xid.MAX_CODE}, or default")
            code = str(key if key == "default" else int(key))
            if code in codes:
                raise ValueError(f"xids: {code} is there twice")
            codes.add(code)

    def action(self, cause: str) -> Action:
        """What the fault of that name (``xid:79``, ``remap-pending``) does."""
        kind, _, code = cause.partition(":")
        if kind != "xid":
            found: Action = getattr(self, cause.replace("-", "_").replace(":", "_"))
            return found
        said = {str(key if key == "default" else int(key)): action for key, action in self.xids.items()}
        if code in said:
            return said[code]
        known = xid.TABLE.get(int(code)) if code.isdecimal() else None
        return known[1] if known else said.get("default", xid.DEFAULT)

    def causes(self) -> Iterator[str]:
        """Every fault that has a rule of its own; ``xid`` stands for codes that no table has."""
        yield from LEVELS
        yield from EDGES
        yield from (f"xid:{code}" for code in sorted({*xid.TABLE, *(int(key) for key in self.xids if key != "default")}))
        yield "xid"

    def rules(self) -> dict[str, Rule]:
        """The rules by cause, as the framework wants them."""
        return {cause: rule_of(action) for cause in self.causes() if (action := self.action(cause)) != "ignore"}


LEVELS = ("lost", "reset-required", "remap-failure", "remap-pending", "retired-pending")
"""Faults that NVML goes on telling for as long as they last."""

EDGES = ("ecc", "ecc:contained")
"""Faults that are told once. So are XIDs."""


class GpuConfig(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The plugin's options."""

    mig_strategy: MigStrategy = "none"
    """``none``: whole GPUs only. ``single``: MIG devices of one kind as ``nvidia.com/gpu``. ``mixed``: each kind under a name of its own."""
    include: list[Selector] = []
    """The only GPUs to advertise, where there are any entries."""
    exclude: list[Selector] = []
    """GPUs that are not advertised, whatever ``include`` says."""
    resources: list[Naming] = []
    """Other names for some GPUs, which may then be shared (or not) on their own."""
    allocation_policy: AllocationPolicy = "topology"
    """``topology``: whole GPUs by how well they are linked, and shared ones as the framework's policy says. The others are for shared GPUs and MIG
    devices: fill up a GPU first, take the least used GPU, or never the same GPU twice while there is another."""
    faults: Faults = Faults()
    monitor_timeout: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 60.0
    """Seconds that a GPU may go without its events being watched before it is unknown."""
    labels: bool = False
    """Whether to tell Node Feature Discovery of the GPUs, as GPU Feature Discovery does: a file in its features.d, which must be mounted."""
    library: str = ""
    """The path of libnvidia-ml.so.1, where it is not to be searched for."""
    injection: InjectionOptions = InjectionOptions()
    """How GPUs get into containers."""

    def __post_init__(self) -> None:
        if self.library and not self.library.startswith("/"):
            raise ValueError(f"library {self.library!r} must be an absolute path")
        for (a, one), (b, other) in itertools.combinations(enumerate(self.resources), 2):
            if one.resource == other.resource or bool(one.match.mig) != bool(other.match.mig):
                continue
            if one.match == other.match or (not one.match.mig and set(one.match.literals()) & set(other.match.literals())):
                both = f"resources[{a}] ({one.resource}) and resources[{b}] ({other.resource})"
                raise ValueError(f"{both} claim the same GPU: a GPU counts towards one resource only")
        for gone in self.exclude:
            if gone in self.include:
                raise ValueError("the same entry is in include and in exclude: remove one")


def rule_of(action: Action) -> Rule:
    """When a fault with that action is over."""
    if isinstance(action, str):
        return Rule(Recovery(action))
    return Rule(Recovery.QUIET, action)
