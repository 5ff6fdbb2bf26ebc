# SPDX-License-Identifier: Apache-2.0
"""JobIDs: the names by which Lustre's servers tell the containers of T1 apart."""

from __future__ import annotations

import hashlib
import re

MAX_VARIABLE = 20
"""Characters of a variable's name that ``jobid_var`` may hold (JOBSTATS_JOBID_VAR_MAX_LEN)."""

MAX_JOBID = 31
"""Characters of a JobID: LUSTRE_JOBID_SIZE is 32 with the NUL at its end, and a longer value is dropped with a warning."""

MAX_PREFIX = 5
MAX_NODE = 16

_PREFIX = re.compile(r"[a-z]([a-z0-9]*[a-z])?")
_NODE = re.compile(r"[a-z0-9-]{1,16}")


def check_prefix(prefix: str) -> None:
    """Raises ValueError unless ``prefix`` can stand before a number in a tag."""
    if not _PREFIX.fullmatch(prefix) or len(prefix) > MAX_PREFIX:
        raise ValueError(f"tagPrefix {prefix!r} must be 1 to {MAX_PREFIX} lower-case letters and digits, with a letter at either end")


def node_label(name: str) -> str:
    """What stands for the node in its tags. A name that does not fit is cut, with a hash behind it: two nodes of one label would share buckets."""
    if _NODE.fullmatch(name):
        return name
    plain = re.sub("[^a-z0-9-]", "-", name.lower())
    return f"{plain[: MAX_NODE - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def tag(prefix: str, slots: int, node: str, slot: int) -> str:
    """The JobID of a container that holds ``slots`` slots, of which ``slot`` is the lowest: unique in the cluster while the container lives.

    The servers' rule goes by what is before the first dot, and their token bucket belongs to the whole of it (nrs_tbf.c: the key is the JobID).
    """
    return f"{prefix}{slots}.{node_label(node)}.{slot}"


def rule_pattern(prefix: str, slots: int) -> str:
    """What the servers' rule for containers with so many slots matches."""
    return f"{prefix}{slots}.*"
