# SPDX-License-Identifier: Apache-2.0
"""Whether a matched file is well, as its checks say."""

from __future__ import annotations

import errno
import os

from deviceplugin import Health, Host, sysfs
from deviceplugin.plugins.generic.config import Check
from deviceplugin.plugins.generic.matching import Match

Verdict = tuple[Health, str]

_WELL: Verdict = (Health.HEALTHY, "")


def judge(host: Host, match: Match) -> Verdict:
    """The worst that the checks of a match say. What cannot be verified is unknown, and unknown is not healthy."""
    verdicts = [_WELL, *(_check(host, check, match) for check in match.entry.health)]
    return worst(verdicts)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The first of the worst."""
    order = (Health.UNHEALTHY, Health.UNKNOWN, Health.HEALTHY)
    return min(verdicts, key=lambda verdict: order.index(verdict[0]))


def _check(host: Host, check: Check, match: Match) -> Verdict:
    if check.exists:
        return _WELL if os.path.exists(host.path(check.exists)) else (Health.UNHEALTHY, f"exists: there is no {check.exists}")
    if check.openable:
        return worst([_open(host, node.path) for node in match.nodes])
    return _value(host, check, match)


def _open(host: Host, path: str) -> Verdict:
    try:
        os.close(os.open(host.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError as error:
        if error.errno == errno.EBUSY:  # a container has it
            return _WELL
        cause = f"openable: {path}: {error.strerror}"
        # That we may not open it says nothing of the hardware: the device cgroup of an unprivileged container answers EPERM.
        return (Health.UNKNOWN if error.errno in (errno.EPERM, errno.EACCES) else Health.UNHEALTHY), cause
    return _WELL


def _value(host: Host, check: Check, match: Match) -> Verdict:
    try:
        value = sysfs.attribute(host, match.directory, check.attribute) if match.directory else None
    except sysfs.SysfsError as error:
        return Health.UNKNOWN, f"attribute: {error}"
    if value is None:
        return Health.UNKNOWN, f"attribute: {match.path} has no {check.attribute}"
    cause = f"attribute: {check.attribute} of {match.path} is {value!r}"
    if check.min is None and check.max is None:
        wanted = [str(one) for one in (check.any_of if check.any_of is not None else [check.equals])]
        return _WELL if value in wanted else (Health.UNHEALTHY, f"{cause}, not {' or '.join(map(repr, wanted))}")
    try:
        number = float(int(value, 0)) if value[:2].lower() == "0x" else float(value)
    except ValueError:
        return Health.UNKNOWN, f"{cause}, not a number"
    low = check.min is None or number >= check.min
    high = check.max is None or number <= check.max
    if low and high:
        return _WELL
    return Health.UNHEALTHY, f"{cause}, {'above ' + format(check.max, 'g') if low else 'below ' + format(check.min, 'g')}"
