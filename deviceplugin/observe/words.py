# SPDX-License-Identifier: Apache-2.0
"""Figures and names as people read them."""

from __future__ import annotations

_STEPS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def duration(seconds: float) -> str:
    """``12 ms``, ``3 s``, ``5 min``, ``2 h``, ``4 d``: the largest unit that fits, without a fraction."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1000:.1f} ms"
    for size, unit in _STEPS:
        if seconds >= size * 1.5 or (unit == "s"):
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError("the last step takes everything")


def count(number: int, noun: str) -> str:
    """``1 device``, ``2 devices``."""
    return f"{number} {noun if number == 1 else noun + 's'}"


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n", 13: "\\r", 9: "\\t"}


def utf8(text: str) -> str:
    """``text`` as it can be encoded: a name read from hardware may hold bytes that are no text."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """``text`` without control characters: a name read from hardware must neither forge a record nor drive a terminal."""
    return utf8(text.translate(_CONTROLS))
