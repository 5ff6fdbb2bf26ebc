# SPDX-License-Identifier: Apache-2.0
"""Which resource names the kubelet takes (pkg/apis/core/v1/helper: IsExtendedResourceName)."""

from __future__ import annotations

import re

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_PREFIX = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NAME = re.compile("([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")


def is_extended_resource(name: str) -> bool:
    """Whether ``name`` is ``vendor.example/device`` to the kubelet, which checks it as the quota key ``requests.<name>``."""
    if "/" not in name or "kubernetes.io/" in name or name.startswith("requests."):
        return False
    parts = ("requests." + name).split("/")
    if len(parts) != 2:
        return False
    prefix, local = parts
    return len(prefix) <= 253 and bool(_PREFIX.fullmatch(prefix)) and 1 <= len(local) <= 63 and bool(_NAME.fullmatch(local))


def go_quoted(text: str) -> str:
    """``text`` as Go's ``%q`` prints it."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char in "\n\t\r\a\b\f\v":
            out.append({"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}[char])
        elif char.isprintable():
            out.append(char)
        else:
            out.append(f"\\x{ord(char):02x}" if ord(char) < 0x80 else f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
    return f'"{"".join(out)}"'
