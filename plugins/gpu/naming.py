# SPDX-License-Identifier: Apache-2.0
"""Which resource a GPU or a MIG device counts towards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from deviceplugin._native.nvml import Gpu, Mig
from deviceplugin.plugins.gpu.config import DOMAIN, Naming
from deviceplugin.plugins.gpu.filters import many

WHOLE = f"{DOMAIN}/gpu"
_PROFILE = re.compile(r"(\d+c\.)?\d+g\.\d+gb([-+.][a-z0-9.+-]+)?")


class Refused(Exception):
    """The device can have no name; the text says why, as the end of a sentence about it."""


def claimed(gpu: Gpu, mig: Mig | None, rules: Sequence[Naming]) -> str:
    """The name that the configuration gives, empty if it gives none. Raises Refused when two rules give two."""
    found: dict[str, int] = {}
    for number, rule in enumerate(rules):
        if bool(rule.match.mig) == (mig is not None) and rule.match.matches(gpu) and (mig is None or _profile_matches(mig, rule)):
            found.setdefault(rule.resource, number)
    if len(found) > 1:
        both = " and ".join(f"resources[{number}] ({name})" for name, number in found.items())
        raise Refused(f"is claimed by {both}: a GPU counts towards one resource only, so narrow the match of one of them")
    return next(iter(found), "")


def mig_resource(mig: Mig) -> str:
    """The name by profile, ``nvidia.com/mig-1g.10gb.me``: NVIDIA's own, where it has one. Raises Refused for a profile that cannot be one."""
    profile = mig.profile.lower()
    if not _PROFILE.fullmatch(profile):
        raise Refused(f"has no known profile: NVML names it {mig.profile!r}")
    return f"{DOMAIN}/mig-{profile.replace('+', '.')}"


def uneven(gpus: Iterable[Gpu]) -> str:
    """Why GPUs cannot be served as ``single``, empty if they can: one resource must mean one thing."""
    gpus = list(gpus)
    partitioned = [gpu for gpu in gpus if gpu.mig_mode]
    if not partitioned:
        return ""
    if len(partitioned) < len(gpus):
        whole = next(gpu for gpu in gpus if not gpu.mig_mode)
        return f"{len(partitioned)} of {len(gpus)} GPUs are in MIG mode, and {whole.uuid} is not"
    empty = [gpu.uuid for gpu in gpus if not gpu.migs]
    if empty:
        return f"{empty[0]} has no MIG devices"
    profiles = sorted({mig.profile for gpu in gpus for mig in gpu.migs})
    return f"there are MIG devices of {len(profiles)} profiles: {', '.join(profiles)}" if len(profiles) > 1 else ""


def _profile_matches(mig: Mig, rule: Naming) -> bool:
    return any(fnmatchcase(mig.profile.lower(), pattern.lower()) for pattern in many(rule.match.mig))
