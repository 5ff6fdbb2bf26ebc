# SPDX-License-Identifier: Apache-2.0
"""Whether what this process sees as resctrl is what the container runtime sees."""

from __future__ import annotations

import re

from deviceplugin import Host, sysfs

_OCTAL = re.compile(r"\\([0-7]{3})")


def hidden_from_host(host: Host, mount_point: str) -> str:
    """Why the runtime cannot see the resctrl that we see: it is mounted in our mount namespace alone. Empty if it can, or that cannot be told.

    runc before 1.4 starts a container without a word, and outside its group, where it sees no resctrl.
    """
    ours, theirs = (_mounted(host, f"/proc/{process}/mountinfo") for process in ("self", "1"))
    if ours and theirs is not None and not theirs:
        return f"resctrl is mounted in this container but not on the host: on the host, mount -t resctrl resctrl {mount_point}"
    return ""


def _mounted(host: Host, path: str) -> list[str] | None:
    """Where resctrl is mounted; None if that cannot be read."""
    try:
        with open(host.path(path), encoding="utf-8", errors="replace") as file:
            lines = file.read(sysfs.MAX_BYTES << 10).splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] == "resctrl" and len(fields := before.split(" ")) > 4:
            found.append(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]))
    return found
