# SPDX-License-Identifier: Apache-2.0
"""A host that is itself a Xeon Phi: which, and in what modes its memory and its mesh are, as far as Linux can tell.

The firmware sets the modes at boot and tells Linux of their consequences only: NUMA nodes, their processors, memory and distances.
"""

from __future__ import annotations

import re

from msgspec import Struct

from deviceplugin import Host, sysfs

UNKNOWN = "unknown"

_MODELS = {"87": "knights-landing", "133": "knights-mill"}
_NODES = "/sys/devices/system/node"
_GIB = 1 << 30
_MCDRAM = 16 * _GIB
"""What all of them have that were sold."""
_FAR = 31
"""The firmware's distance from the processors to MCDRAM, at the least; to the other memory it is 10 or 21."""
_MODES = {16: "flat", 12: "hybrid-25", 8: "hybrid-50"}
"""By the GiB of MCDRAM that are memory; the rest is cache."""
_SLACK = 0.06
"""Of a node's memory the kernel may have taken so much for itself before it counted."""
_TAMPERED = re.compile(r"(^|\s)(numa=(off|fake\S*)|numa_emulation\S*|mem=\S+|memmap=\S+|maxcpus=\d+|nr_cpus=\d+)")


class Processor(Struct, frozen=True):
    """A Xeon Phi that runs this host.

    ``memory_mode`` is ``flat``, ``cache``, ``hybrid-25`` or ``hybrid-50``, ``cluster_mode`` is ``uma``, ``snc-2`` or ``snc-4``, or both are
    ``unknown``, and ``why`` says why. ``uma`` is one of all-to-all, hemisphere and quadrant, which look alike. ``mcdram`` is the bytes of MCDRAM that
    are NUMA nodes, ``nodes`` the numbers of those.
    """

    model: str
    memory_mode: str = UNKNOWN
    cluster_mode: str = UNKNOWN
    mcdram: int = 0
    nodes: tuple[int, ...] = ()
    why: str = ""


class _Node(Struct, frozen=True):
    number: int
    has_processors: bool
    memory: int
    distances: tuple[int, ...]


def model(host: Host) -> str | None:
    """``knights-landing`` or ``knights-mill`` if this host runs on one, empty if it does not, None if that cannot be read."""
    try:
        text = sysfs.read(host, "/proc/cpuinfo")
    except sysfs.SysfsError:
        return None
    if text is None:
        return None
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.split("\n\n")[0].splitlines())}
    if said.get("vendor_id") != "GenuineIntel" or said.get("cpu family") != "6":
        return ""
    return _MODELS.get(said.get("model", ""), "")


def look(host: Host, name: str) -> Processor:
    """The modes of a processor of that model. What cannot be told is ``unknown``, never guessed."""
    try:
        nodes = _nodes(host)
        cmdline = sysfs.read(host, "/proc/cmdline") or ""
    except (sysfs.SysfsError, ValueError) as error:
        return Processor(name, why=str(error))
    if tampered := _TAMPERED.search(cmdline):
        return Processor(name, why=f"the kernel was started with {tampered[0].strip()}, so its NUMA nodes are not the firmware's")
    return infer(name, nodes)


def infer(name: str, nodes: list[_Node]) -> Processor:
    """What follows from the NUMA nodes."""
    with_processors = [node for node in nodes if node.has_processors]
    without = [node for node in nodes if not node.has_processors and node.memory]
    mine = [nodes.index(node) for node in with_processors]
    # A node whose processors are all offline has none either, but is near.
    mcdram = [node for node in without if mine and len(node.distances) == len(nodes) and min(node.distances[n] for n in mine) >= _FAR]
    if len(mcdram) != len(without):
        return Processor(name, why="a NUMA node without processors is too near to be MCDRAM: are processors offline?")
    size = sum(node.memory for node in mcdram)
    numbers = tuple(node.number for node in mcdram)
    cluster = {1: "uma", 2: "snc-2", 4: "snc-4"}.get(len(with_processors), UNKNOWN)
    if cluster == UNKNOWN or len(mcdram) not in (0, len(with_processors)):
        why = f"{len(with_processors)} NUMA nodes have processors and {len(mcdram)} are MCDRAM, as in no mode of the firmware's"
        return Processor(name, mcdram=size, nodes=numbers, why=why)
    if not mcdram:
        return Processor(name, "cache", cluster)
    mode = next((mode for gib, mode in _MODES.items() if (1 - _SLACK) * gib * _GIB <= size <= gib * _GIB), UNKNOWN)
    why = "" if mode != UNKNOWN else f"{size / _GIB:.1f} GiB of MCDRAM are memory, as in no mode of the firmware's: is some offline?"
    return Processor(name, mode, cluster, size, numbers, why)


def _nodes(host: Host) -> list[_Node]:
    numbers = [int(name[4:]) for name in sysfs.entries(host, _NODES) if re.fullmatch(r"node\d{1,4}", name)]
    if not numbers:
        raise ValueError(f"there are no NUMA nodes in {_NODES}")
    files = ("cpulist", "meminfo", "distance")
    texts = sysfs.read_many(host, [f"{_NODES}/node{n}/{file}" for n in numbers for file in files])
    found = []
    for n, number in enumerate(numbers):
        cpulist, meminfo, distance = texts[n * 3 : n * 3 + 3]
        for file, text in zip(files, (cpulist, meminfo, distance), strict=True):
            if not isinstance(text, str):
                raise ValueError(str(text) if text else f"{_NODES}/node{number}/{file} is not there")
        assert isinstance(cpulist, str)
        assert isinstance(meminfo, str)
        assert isinstance(distance, str)
        total = re.search(rf"Node {number} MemTotal:\s+(\d{{1,15}}) kB", meminfo)
        if total is None:
            raise ValueError(f"{_NODES}/node{number}/meminfo does not tell MemTotal")
        if not re.fullmatch(r"\d{1,3}( \d{1,3})*", distance):
            raise ValueError(f"{_NODES}/node{number}/distance has no distances: {distance[:32]!r}")
        found.append(_Node(number, bool(cpulist), int(total[1]) << 10, tuple(map(int, distance.split()))))
    return found
