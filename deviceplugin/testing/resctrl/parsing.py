# SPDX-License-Identifier: Apache-2.0
"""How the kernel reads numbers and sets of CPUs (lib/kstrtox.c, lib/bitmap-str.c), and how it prints such sets."""

from __future__ import annotations

import errno
import re
import string
from collections.abc import Iterable, Sequence

_UNSIGNED = {16: re.compile(r"[0-9a-fA-F]+"), 10: re.compile(r"[0-9]+"), 8: re.compile(r"[0-7]+")}
_RANGE = re.compile(r"(\d+|N)(?:-(\d+|N)(?::(\d+)/(\d+))?)?")
_SPACE = " \t\n\v\f\r"
"""What isspace() of the C locale takes, for strim()."""


class Unreadable(Exception):
    """Not what it should be. ``number`` is the errno that the kernel's function returns."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.number = number


def strim(text: str) -> str:
    return text.strip(_SPACE)


def unsigned(text: str, base: int, bits: int = 64) -> int:
    """kstrtoul() and its kin: one ``+`` before and one newline after are allowed, and ``0x`` before base 16. Raises Unreadable."""
    text = text.removeprefix("+")
    if base == 0:  # _parse_integer_fixup_radix()
        hexadecimal = len(text) > 2 and text[:2] in ("0x", "0X") and text[2] in string.hexdigits
        base = 16 if hexadecimal else 8 if text.startswith("0") else 10
    if base == 16 and text[:2] in ("0x", "0X"):
        text = text[2:]
    found = _UNSIGNED[base].match(text)
    if found is None:
        raise Unreadable(errno.EINVAL)
    value = int(found[0], base)
    if value >> 64:
        raise Unreadable(errno.ERANGE)
    if text[found.end() :] not in ("", "\n"):
        raise Unreadable(errno.EINVAL)
    if value >> bits:
        raise Unreadable(errno.ERANGE)
    return value


def signed(text: str) -> int:
    """kstrtoint() with base 0. Raises Unreadable."""
    if text.startswith("-"):
        value = -unsigned(text[1:], 0, 63)
    else:
        value = unsigned(text, 0, 63)
    if not -(1 << 31) <= value < 1 << 31:
        raise Unreadable(errno.ERANGE)
    return value


def cpu_list(text: str, cpus: int) -> set[int]:
    """cpulist_parse(): ``0-3,8``, of so many CPUs; ``N`` is the last one, and ``0-7:1/4`` the first of each four. Raises Unreadable."""
    found: set[int] = set()
    for part in re.split(r"[,\s]+", text.partition("\n")[0]):
        if not part:
            continue
        if part.lower() == "all":
            found.update(range(cpus))
            continue
        match = _RANGE.fullmatch(part)
        if match is None:
            raise Unreadable(errno.EINVAL)
        first, last = (cpus - 1 if number == "N" else int(number) for number in (match[1], match[2] or match[1]))
        used, group = int(match[3] or 1), int(match[4] or 1)
        if first > last or used > group or group == 0:
            raise Unreadable(errno.EINVAL)
        if last >= cpus:
            raise Unreadable(errno.ERANGE)
        found.update(cpu for cpu in range(first, last + 1) if (cpu - first) % group < used)
    return found


def cpu_mask(text: str, cpus: int) -> set[int]:
    """cpumask_parse(): hexadecimal, in words of 32 bits with commas between, of so many CPUs. Raises Unreadable."""
    value = 0
    words = [word for word in re.split(r"[,\s]+", text.partition("\n")[0]) if word]
    for word in words:
        if not set(word) <= set(string.hexdigits):
            raise Unreadable(errno.EINVAL)
        if len(word) > 8:
            raise Unreadable(errno.EOVERFLOW)
        value = value << 32 | int(word, 16)
    if value >> cpus or len(words) > (cpus + 31) // 32:
        raise Unreadable(errno.EOVERFLOW)
    return {cpu for cpu in range(cpus) if value >> cpu & 1}


def show_cpu_list(cpus: Iterable[int]) -> str:
    """``0-3,8``, as ``%*pbl`` prints it."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def show_cpu_mask(cpus: Iterable[int], total: int) -> str:
    """``000f,ffffffff``, as ``%*pb`` prints it for so many CPUs."""
    value = sum(1 << cpu for cpu in cpus)
    widths: Sequence[int] = [min(32, total - low) for low in range(0, total, 32)]
    return ",".join(f"{value >> 32 * word & (1 << 32) - 1:0{(width + 3) // 4}x}" for word, width in reversed(list(enumerate(widths))))
