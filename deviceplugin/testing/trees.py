# SPDX-License-Identifier: Apache-2.0
r"""A machine's files as data: a mapping, or a YAML file that holds one, from the host's paths to what is there.

::

    /sys/class/accel/accel0: {link: ../../devices/pci0000:00/0000:3b:00.0/accel/accel0}
    /sys/devices/pci0000:00/0000:3b:00.0/vendor: "0x10ee\n"
    /sys/devices/pci0000:00/0000:3b:00.0/power: {directory: true}
    /dev/accel/accel0: {device: "c 261:0"}
    /dev/log: {fifo: true}
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_DEVICE = re.compile(r"([cb]) (\d{1,4}):(\d{1,7})")


class TreeError(Exception):
    """The data is no tree. The text has a line for each mistake: its place and what to write instead."""


@dataclass(frozen=True, slots=True)
class Text:
    """A file and all that it holds."""

    text: str


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link. It may lead nowhere."""

    target: str


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """``kind`` is ``c`` or ``b``."""

    kind: str
    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class Fifo:
    pass


@dataclass(frozen=True, slots=True)
class Directory:
    """One that may stay empty: those above other entries need not be named."""


Entry = Text | Link | DeviceFile | Fifo | Directory


def load(tree: Mapping[str, object] | str | os.PathLike[str]) -> dict[str, Entry]:
    """The entries of a tree, or of the YAML file of that name, all checked. Raises TreeError."""
    from deviceplugin import config, source  # where YAML is read strictly; they are slow to load

    if isinstance(tree, Mapping):
        return parse(tree)
    where = os.fspath(tree)
    try:
        data = source.parse(source.read_bytes(where), where)
    except config.ConfigError as error:
        raise TreeError(str(error)) from error
    if not isinstance(data, Mapping):
        raise TreeError(f"{where}: must be a mapping from paths to what is there")
    try:
        return parse(data)
    except TreeError as error:
        raise TreeError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from None


def parse(tree: Mapping[str, object]) -> dict[str, Entry]:
    """The entries of a tree in the order in which they are written down. Raises TreeError, which names every mistake."""
    entries: dict[str, Entry] = {}
    mistakes = []
    for path, value in tree.items():
        if mistake := _path_error(path):
            mistakes.append(f"{path!r}: {mistake}")
            continue
        entry = _entry(value)
        if isinstance(entry, str):
            mistakes.append(f"{path}: {entry}")
        else:
            entries[path] = entry
    mistakes += _misplaced(entries)
    if mistakes:
        raise TreeError("\n".join(mistakes))
    return entries


def _path_error(path: object) -> str | None:
    if not isinstance(path, str):
        return "a path must be text"
    if not path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in path[1:].split("/")):
        return "write the whole path from / on, without empty parts, '.' and '..'"
    return None


def _entry(value: object) -> Entry | str:
    """What a value stands for, or what is wrong with it."""
    match value:
        case str():
            return Text(value)
        case {"link": str(target), **more} if not more:
            return Link(target) if target and "\0" not in target else "link must name what it leads to"
        case {"device": str(number), **more} if not more:
            found = _DEVICE.fullmatch(number)
            return DeviceFile(found[1], int(found[2]), int(found[3])) if found else f"device must be as 'c 188:0' or 'b 8:0', not {number!r}"
        case {"fifo": True, **more} if not more:
            return Fifo()
        case {"directory": True, **more} if not more:
            return Directory()
        case Mapping():
            return f"must be text or one of {{link: TARGET}}, {{device: 'c MAJOR:MINOR'}}, {{fifo: true}}, {{directory: true}}, not {dict(value)!r}"
        case _:
            return f"{value!r} is {type(value).__name__}, not text: put it in quotes"


def _misplaced(entries: Mapping[str, Entry]) -> list[str]:
    """Entries below others that are no directories. Below a link it would depend on the order where they end up."""
    mistakes = []
    for path in entries:
        above = os.path.dirname(path)
        while above != "/":
            entry = entries.get(above)
            if entry is not None and not isinstance(entry, Directory):
                what = "a link: write it below what that leads to" if isinstance(entry, Link) else "no directory"
                mistakes.append(f"{path}: is below {above}, which is {what}")
            above = os.path.dirname(above)
    return mistakes
