# SPDX-License-Identifier: Apache-2.0
"""The kernel's resctrl file system: what the CPU can do, and groups with their masks and tasks.

An error carries what the kernel wrote into ``info/last_cmd_status``. All that is written is read back: hardware may change a mask, and someone else
may write at the same time.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from deviceplugin.plugins.llc.files import MAX_BYTES, Files

ROOT = ""
"""The name of the root group: what is in no other is in it."""

_NOT_GROUPS = frozenset(("info", "mon_groups", "mon_data"))
_MOST_WRITTEN = 4096  # atomic_write_len of kernfs files that are not binary: one page
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
_LINE = re.compile(r"\s*([A-Z0-9]+):(.*)")
_EXCLUSIVE = frozenset("EP")


class ResctrlError(Exception):
    """Something in resctrl could not be read, written or understood; the text says which and why. ``errno`` is 0 for what is not understood."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.errno = number


class Absent(ResctrlError):
    """There is no resctrl, or no control of the last-level cache in it."""


class Info(Struct, frozen=True):
    """What the CPU can do. ``names`` are those of the cache in schemata: one, or two where code and data are told apart (``cdp``)."""

    names: tuple[str, ...]
    cbm: int
    min_bits: int
    shareable: int
    """Ways that hardware other than the cores writes to."""
    sparse: bool
    """Whether a mask may have holes."""
    groups: int
    """How many groups there can be, the root among them."""
    exclusive: Mapping[int, int]
    """By cache: ways that a group holds exclusively, or that are locked."""
    bandwidth: tuple[int, int] | None
    """The least memory bandwidth and its step, where it can be controlled."""


Schemata = Mapping[str, Mapping[int, int]]
"""By resource (``L3``, ``MB``) and cache: a mask, or a bandwidth."""


class Survey(Struct, frozen=True):
    """All that there is, read at one time."""

    info: Info
    root: Schemata
    groups: Mapping[str, Schemata]
    """By name, all but the root."""
    broken: Mapping[str, str]
    """By name: why a group's schemata cannot be read."""
    read_only: bool


class Resctrl:
    """Groups, one call after the other; nothing is remembered. Every method raises ResctrlError."""

    def __init__(self, files: Files, at: str = "/sys/fs/resctrl") -> None:
        self._files = files
        self._at = at

    def info(self) -> Info:
        """What the CPU can do. Raises Absent where there is no resctrl or it has no control of the last-level cache."""
        try:
            resources = self._files.list("info")
        except OSError as error:
            if error.errno in _GONE:
                raise Absent(f"{self._at} is no resctrl file system: mount it on the host with: mount -t resctrl resctrl {self._at}") from error
            raise self._error("info", "be listed", error) from error
        names = ("L3",) if "L3" in resources else ("L3CODE", "L3DATA")
        if not set(names) <= set(resources):
            there = ", ".join(sorted(name for name in resources if name.isupper())) or "nothing"
            raise Absent(f"{self._at}/info has no L3, but {there}: this CPU or kernel cannot divide its last-level cache")
        cbm = self._number(f"info/{names[0]}/cbm_mask", 16)
        if not cbm or cbm & cbm + 1 or cbm.bit_length() > 32:
            raise ResctrlError(f"{self._at}/info/{names[0]}/cbm_mask holds {cbm:#x}, which is not a run of at most 32 bits from bit 0")
        exclusive: dict[int, int] = {}
        shareable = 0
        for name in names:
            shareable |= self._number(f"info/{name}/shareable_bits", 16, default=0)
            for cache, mask in self._exclusive(name, cbm.bit_length()).items():
                exclusive[cache] = exclusive.get(cache, 0) | mask
        limits = [self._number(f"info/{one}/num_closids", 10, default=0) for one in resources]
        bandwidth = None
        if "MB" in resources:
            bandwidth = (self._number("info/MB/min_bandwidth", 10), max(1, self._number("info/MB/bandwidth_gran", 10)))
        return Info(
            names=names,
            cbm=cbm,
            min_bits=min(self._number(f"info/{names[0]}/min_cbm_bits", 10), 32),
            shareable=shareable,
            sparse=self._number(f"info/{names[0]}/sparse_masks", 10, default=0) == 1,
            groups=min((one for one in limits if one), default=0),  # what only monitors has no number
            exclusive=exclusive,
            bandwidth=bandwidth,
        )

    def survey(self) -> Survey:
        """Reads it all. Raises Absent where there is nothing to control."""
        info = self.info()
        root = self._whole(ROOT, info.names)
        if root is None:
            raise Absent(f"{self._at}/schemata is not there: resctrl is being unmounted")
        try:
            names = sorted(name for name in self._files.list("") if name not in _NOT_GROUPS)
            read_only = self._files.read_only()
        except OSError as error:
            raise self._error("", "be listed", error) from error
        groups: dict[str, Schemata] = {}
        broken: dict[str, str] = {}
        for name in names:
            try:
                if (schemata := self._whole(name, info.names)) is not None:
                    groups[name] = schemata
            except ResctrlError as error:  # one group that cannot be read hides no other
                broken[name] = str(error)
        return Survey(info, root, groups, broken, read_only)

    def _whole(self, group: str, names: tuple[str, ...]) -> Schemata | None:
        schemata = self.schemata(group)
        if schemata is not None and not set(names) <= set(schemata):
            raise ResctrlError(f"{self._at}/{_in(group, 'schemata')} has no line {' or '.join(names)}")
        return schemata

    def schemata(self, group: str) -> dict[str, dict[int, int]] | None:
        """What a group may use; None if there is no such group."""
        path = _in(group, "schemata")
        text = self._read(path)
        if text is None:
            return None
        found: dict[str, dict[int, int]] = {}
        for line in text.splitlines():
            match = _LINE.fullmatch(line)
            if match is None:
                raise ResctrlError(f"{self._at}/{path} holds {line[:80]!r}, which is not NAME:cache=value")
            base = 16 if match[1].startswith("L") else 10
            try:
                # Old kernels pad values with blanks; int() takes them.
                pairs = [pair.split("=") for pair in match[2].split(";") if pair.strip()]
                found[match[1]] = {int(cache): int(value, base) for cache, value in pairs}
            except ValueError:
                if match[1][0] == "L" or match[1] == "MB":
                    raise ResctrlError(f"{self._at}/{path} holds {line[:80]!r}, which is not NAME:cache=value") from None
        return found

    def put(self, group: str, wanted: Schemata) -> bool:
        """Writes what is not so already, and reads it back; False if all was. Values for caches that are not there are left out."""
        before = self.schemata(group)
        if before is None:
            raise self._error(_in(group, "schemata"), "be read", OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
        lines = list(_differences(before, wanted))
        if not lines:
            return False
        for text in _portions(lines):
            self._write(_in(group, "schemata"), text)
        after = self.schemata(group)
        if after is None or (left := list(_differences(after, wanted))):
            raise ResctrlError(
                f"{self._at}/{_in(group, 'schemata')} took {'; '.join(lines)} and does not hold {'; '.join(left) if after else 'it'}: "
                "the hardware or someone else changed it"
            )
        return True

    def make(self, group: str) -> bool:
        """Makes a group; False if it is there."""
        try:
            self._files.mkdir(group)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._error(group, "be made", error) from error
        return True

    def remove(self, group: str) -> bool:
        """Removes a group; what runs in it is in the root group from then on. False if there is none."""
        try:
            self._files.rmdir(group)
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise self._error(group, "be removed", error) from error
        return True

    def tasks(self, group: str) -> list[int] | None:
        """Some of the threads in a group, as this process's PID namespace numbers them; None if there is no such group."""
        text = self._read(_in(group, "tasks"), long=True)
        if text is None:
            return None
        lines = text.split("\n")[: -1 if len(text) > MAX_BYTES else None]  # the last one may be cut
        if not all(line.isdecimal() for line in lines if line):
            raise ResctrlError(f"{self._at}/{_in(group, 'tasks')} holds {text[:40]!r}, which is not a list of thread ids")
        return [int(line) for line in lines if line]

    def join(self, group: str, thread: int) -> bool:
        """Moves a thread into a group; False if it has ended."""
        if thread <= 0:
            raise ResctrlError(f"thread {thread} is none: 0 would be this process itself")
        try:
            self._files.write(_in(group, "tasks"), b"%d\n" % thread)
        except OSError as error:
            if error.errno == errno.ESRCH:
                return False
            raise self._error(_in(group, "tasks"), f"take thread {thread}", error) from error
        return True

    def _exclusive(self, name: str, width: int) -> dict[int, int]:
        path = f"info/{name}/bit_usage"
        text = (self._read(path) or "").strip()
        found = {}
        for part in text.split(";") if text else ():
            cache, equals, letters = part.partition("=")
            if not (cache.isdecimal() and equals and len(letters) == width):
                raise ResctrlError(f"{self._at}/{path} holds {text[:80]!r}, which is not cache=letters with {width} letters each")
            mask = sum(1 << bit for bit, letter in enumerate(reversed(letters)) if letter in _EXCLUSIVE)
            if mask:
                found[int(cache)] = mask
        return found

    def _number(self, path: str, base: int, default: int | None = None) -> int:
        text = self._read(path)
        if text is None and default is not None:
            return default
        digits = (text or "").strip()
        if not re.fullmatch("[0-9a-fA-F]{1,16}" if base == 16 else "[0-9]{1,9}", digits):
            raise ResctrlError(
                f"{self._at}/{path} {'is not there' if text is None else f'holds {digits[:40]!r}'}: it must be a number of base {base}"
            )
        return int(digits, base)

    def _read(self, path: str, long: bool = False) -> str | None:
        try:
            text = self._files.read(path).decode("utf-8", "replace")
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise self._error(path, "be read", error) from error
        if len(text) > MAX_BYTES and not long:
            raise ResctrlError(f"{self._at}/{path} is longer than {MAX_BYTES} bytes: it begins with {text[:40]!r}", errno.EFBIG)
        return text

    def _write(self, path: str, text: str) -> None:
        try:
            self._files.write(path, text.encode())
        except OSError as error:
            raise self._error(path, f"take {text.strip()!r}", error) from error

    def _error(self, path: str, what: str, error: OSError) -> ResctrlError:
        try:
            status = self._files.read("info/last_cmd_status")[:200].decode("utf-8", "replace").strip()
        except OSError:
            status = ""
        said = f" ({status})" if status not in ("", "ok") else ""
        return ResctrlError(f"{self._at}/{path} cannot {what}: {error.strerror or error}{said}", error.errno or 0)


def _in(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _differences(there: Schemata, wanted: Schemata) -> Iterator[str]:
    """The lines that must be written."""
    for name, values in wanted.items():
        has = there.get(name, {})
        pairs = [f"{cache}={_spell(name, value)}" for cache, value in sorted(values.items()) if cache in has and has[cache] != value]
        if pairs:
            yield f"{name}:{';'.join(pairs)}"


def _portions(lines: Iterable[str]) -> Iterator[str]:
    """Lines together, as long as the kernel takes them in one write, which is done as a whole or not at all."""
    text = ""
    for line in lines:
        if text and len(text) + len(line) >= _MOST_WRITTEN:
            yield text
            text = ""
        text += f"{line}\n"
    yield text


def _spell(name: str, value: int) -> str:
    return f"{value:x}" if name.startswith("L") else str(value)


def masks(schemata: Schemata, names: Iterable[str]) -> dict[int, int]:
    """The masks of a group by cache, as long as code and data have the same; 0 where they differ."""
    first, *others = (schemata.get(name, {}) for name in names)
    return {cache: mask if all(other.get(cache) == mask for other in others) else 0 for cache, mask in first.items()}
