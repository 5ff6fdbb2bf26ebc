# SPDX-License-Identifier: Apache-2.0
"""Which GPUs an entry of the configuration means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, TypeVar

import msgspec

from deviceplugin._native.nvml import Gpu

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")

DISPLAY = "*DGX Display*"
"""The GPU that only drives the screen of a DGX Station: no program can compute on it."""

T = TypeVar("T")

Index = Annotated[int, msgspec.Meta(ge=0)]


class Selector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """GPUs by what they are: every key that is given must match, and of several values of a key one is enough."""

    uuid: str | list[str] = msgspec.field(default_factory=list)
    """``GPU-...``; ``*``, ``?`` and ``[...]`` stand for characters."""
    pci: str | list[str] = msgspec.field(default_factory=list)
    """The PCI address as any tool writes it: ``3b:00.0``, ``0000:3b:00.0`` or ``00000000:3B:00.0``."""
    index: Index | list[Index] = msgspec.field(default_factory=list)
    """NVML's number, which may change when GPUs come or go."""
    model: str | list[str] = msgspec.field(default_factory=list)
    """The name of the model, in either case, with ``*``, ``?`` and ``[...]``."""

    def __post_init__(self) -> None:
        if not (self.uuid or self.pci or self.index != [] or self.model):
            raise ValueError("say which GPUs are meant with at least one of uuid, pci, index and model; model: '*' is all of them")
        for text in many(self.pci):
            if not _PCI.fullmatch(text.lower()):
                raise ValueError(f"pci {text!r} is no PCI address: write domain:bus:device.function, as in 0000:3b:00.0")

    def wants(self) -> Iterator[tuple[str, str | int]]:
        """Each key and value, as spelled in one way."""
        yield from (("uuid", one.lower()) for one in many(self.uuid))
        yield from (("pci", address(one)) for one in many(self.pci))
        yield from (("index", one) for one in many(self.index))
        yield from (("model", one.lower()) for one in many(self.model))

    def literals(self) -> Iterator[tuple[str, str | int]]:
        """What can only mean one GPU, for selectors that have but one key."""
        keys = {key for key, _ in self.wants()}
        if len(keys) == 1 and keys != {"model"}:
            yield from ((key, value) for key, value in self.wants() if not (isinstance(value, str) and re.search(r"[*?\[]", value)))

    def matches(self, gpu: Gpu) -> bool:
        has: dict[str, str | int] = {"uuid": gpu.uuid.lower(), "pci": gpu.bus_id.lower(), "index": gpu.index, "model": gpu.name.lower()}
        met: dict[str, bool] = {}
        for key, value in self.wants():
            mine = has[key]
            met[key] = met.get(key, False) or (fnmatchcase(mine, value) if isinstance(mine, str) and isinstance(value, str) else mine == value)
        return all(met.values())


def refusal(gpu: Gpu, include: Sequence[Selector], exclude: Sequence[Selector]) -> str:
    """Why the configuration leaves a GPU out; empty if it does not."""
    for number, selector in enumerate(exclude):
        if selector.matches(gpu):
            return f"is left out by exclude[{number}]"
    if any(selector.matches(gpu) for selector in include):
        return ""
    if include:
        return "is not among those that include names"
    return "only drives a screen; name it in include to have it all the same" if fnmatchcase(gpu.name.lower(), DISPLAY.lower()) else ""


def address(text: str) -> str:
    """A PCI address as sysfs writes it."""
    found = _PCI.fullmatch(text.lower())
    assert found is not None, "checked when the selector was made"
    return f"{int(found[1] or '0', 16):04x}:{found[2]}:{found[3]}.{found[4]}"


def many(value: T | list[T]) -> list[T]:
    """One value or several, as several."""
    return value if isinstance(value, list) else [value]
