# SPDX-License-Identifier: Apache-2.0
"""The options of the pfs plugin: which file systems, how many slots of each, and what shall keep a container to its slots."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from deviceplugin.plugins.pfs import tags

_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}

MAX_SLOTS = 1000
"""Of one file system on one node: a slot's number in a tag has four characters at most, and a private mount is a client of its own."""

Amount = str | Annotated[int, msgspec.Meta(ge=1)]
"""Bytes, or bytes per second: a number, or one with k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (of 1024) behind it."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Tier = Literal["T0", "T1", "T2", "T3", "T4"]


def amount(text: Amount) -> int:
    """What an amount means. Raises ValueError."""
    found = _AMOUNT.fullmatch(str(text))
    value = int(float(found[1]) * _FACTORS[found[2] or ""]) if found else 0
    if value < 1:
        raise ValueError(f"{text!r} is not an amount of bytes: write a number, with k, M, G, T, Ki, Mi, Gi or Ti behind it if need be, as in 500M")
    return value


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Servers(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What the arithmetic needs to know of a Lustre file system's servers, since a token bucket counts RPCs, on each CPT of each OSS."""

    oss: Count
    """Object storage servers that a file of the containers is striped over."""
    cpts: Count
    """CPU partitions of each: ``lctl get_param -n cpu_partition_table | wc -l`` there."""
    rpc_size: Amount = "4Mi"
    """Bytes of a full RPC: ``max_pages_per_rpc`` of the clients, times the size of a page."""


class PrivateMount(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """T3: what a slot's own mount is made of."""

    source: str
    """What ``mount`` takes as the source: ``10.0.0.1@tcp:/scratch``, ``beegfs_nodev``, ``server:/export``."""
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """For each slot. Lustre: ``max_rpcs_in_flight`` of each OST; BeeGFS: ``connMaxInternodeNum``, connections to each server."""
    dirty: Amount | None = None
    """Lustre, for each slot: bytes of dirty cache for each OST, ``max_dirty_mb``; as it comes if not given."""
    options: str = ""
    """Further options, as for ``mount -o``; ``{slots}`` in them is the number of slots that the container holds."""
    fstype: str = ""
    """Of a file system of type ``other``: what ``mount -t`` takes."""
    config: str = "/etc/beegfs/beegfs-client.conf"
    """BeeGFS: the client's configuration, of which each private mount gets a copy with its own limit."""
    client_port: Annotated[int, msgspec.Meta(ge=1, le=64_000)] | None = None
    """BeeGFS before 8.0: the UDP port of slot 0's client, ``connClientPortUDP``; the other slots have the ports after it."""

    def __post_init__(self) -> None:
        if not self.source or self.source.startswith("-"):
            raise ValueError(f"privateMount.source {self.source!r} must be what mount takes as the source, as in 10.0.0.1@tcp:/scratch")
        if self.dirty is not None and amount(self.dirty) < 1 << 20:
            raise ValueError(f"privateMount.dirty {self.dirty!r} must be 1Mi or more: Lustre counts it in MiB")
        if "{" in self.options.replace("{slots}", ""):
            raise ValueError(f"privateMount.options {self.options!r}: the only thing that may stand between braces is {{slots}}")
        _path("privateMount.config", self.config)


class HealthLimits(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """When a file system counts as ill, and as well again."""

    statfs_seconds: Annotated[float, msgspec.Meta(gt=0, le=20)] = 5.0
    """How long the file system may take to answer."""
    failures: Count = 3
    """Looks in a row that must fail."""
    successes: Count = 2
    """Looks in a row that must succeed."""


class FileSystem(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One parallel file system and its slots on this node."""

    name: str
    """Part of the slots' ids and, unless ``resource`` says otherwise, of the resource: ``<domain>/pfs-<name>``."""
    type: Literal["lustre", "gpfs", "beegfs", "other"]
    tier: Tier
    """What keeps a container to its slots: T0 nothing, T1 a JobID, T2 a directory of its own, T3 a mount of its own, T4 a cap on the whole node."""
    mount_point: str = ""
    source: str = ""
    """In place of ``mountPoint``: what the mount table has as the source."""
    resource: str = ""
    slots: Annotated[int, msgspec.Meta(ge=0, le=MAX_SLOTS)] | None = None
    slots_file: str = ""
    """In place of ``slots``: a file that holds the number, for a controller to edit."""
    bandwidth: Amount | None = None
    """In place of ``slots``: bytes per second that this node may have in all."""
    bandwidth_per_slot: Amount | None = None
    """Bytes per second that one slot stands for."""
    container_path: str = ""
    """Where a container sees the file system; with T2 and T3 by default /pfs/<name>, else it gets no mount from here."""
    read_only: bool = False
    slot_directory: str = ""
    """T2: each slot's own directory (fileset, project), below the mount point; ``{slot}`` in it is the slot's number, ``{node}`` the node's name."""
    tag_prefix: str = "kdp"
    """T1: what the JobIDs of this file system's slots begin with."""
    servers: Servers | None = None
    private_mount: PrivateMount | None = None
    health: HealthLimits = HealthLimits()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 32 lower-case letters, digits and '-', and begin with a letter")
        try:
            self._check_place()
            self._check_count()
            self._check_tier()
        except ValueError as error:
            raise ValueError(f"file system {self.name}: {error}") from error

    def _check_place(self) -> None:
        places = [key for key, given in (("mountPoint", self.mount_point), ("source", self.source)) if given]
        if len(places) != 1 and self.tier != "T3":
            raise ValueError(f"say where it is with one of mountPoint and source, not {' and '.join(places) or 'neither'}")
        if places and self.tier == "T3":
            raise ValueError(f"{places[0]} is not for T3, where containers get mounts of their own: say privateMount.source")
        for key, path in (("mountPoint", self.mount_point), ("slotsFile", self.slots_file), ("containerPath", self.container_path)):
            if path:
                _path(key, path)
        if self.container_path == "/":
            raise ValueError("containerPath '/' would hide the container's own files")

    def _check_count(self) -> None:
        ways = [key for key, given in (("slots", self.slots is not None), ("slotsFile", self.slots_file), ("bandwidth", self.bandwidth)) if given]
        if len(ways) != 1:
            raise ValueError(f"say how many slots there are with one of slots, slotsFile and bandwidth, not {' and '.join(ways) or 'none'}")
        for text in (self.bandwidth, self.bandwidth_per_slot):
            if text is not None:
                amount(text)
        if self.bandwidth is not None:
            if self.bandwidth_per_slot is None:
                raise ValueError("bandwidth needs bandwidthPerSlot: the slots are the one divided by the other")
            if not 1 <= amount(self.bandwidth) // amount(self.bandwidth_per_slot) <= MAX_SLOTS:
                raise ValueError(f"bandwidth {self.bandwidth} holds {self.bandwidth_per_slot} less than once or more than {MAX_SLOTS} times")

    def _check_tier(self) -> None:
        if self.tier == "T1":
            if self.type != "lustre":
                raise ValueError(f"T1 is Lustre's JobID; for type {self.type} take T2, T3 or T4")
            if self.servers is None or self.bandwidth_per_slot is None:
                raise ValueError("T1 needs bandwidthPerSlot and servers (oss, cpts, rpcSize), to say what rules the servers must have")
            amount(self.servers.rpc_size)
            tags.check_prefix(self.tag_prefix)
        if (self.tier == "T2") != bool(self.slot_directory):
            raise ValueError("slotDirectory and T2 go together" + (": name each slot's directory, as in {node}/{slot}" if self.tier == "T2" else ""))
        if self.slot_directory:
            parts = self.slot_directory.split("/")
            if "{slot}" not in self.slot_directory or ".." in parts or "" in parts or "{" in self.directory_of(0, ""):
                raise ValueError(f"slotDirectory {self.slot_directory!r} must be a relative path with {{slot}} in it, as in {{node}}/{{slot}}")
        if (self.tier == "T3") != (self.private_mount is not None):
            raise ValueError("privateMount and T3 go together")
        if self.private_mount is not None:
            if self.type == "gpfs":
                raise ValueError("T3 cannot be had with gpfs, which mounts a file system once on a node: take T2 with filesets")
            if (self.type == "other") != bool(self.private_mount.fstype):
                raise ValueError("privateMount.fstype and type: other go together")

    def directory_of(self, slot: int, node: str) -> str:
        """T2: the directory of a slot on a node, below the mount point."""
        return self.slot_directory.replace("{slot}", f"{slot:02}").replace("{node}", node)

    @property
    def per_slot(self) -> int:
        """Bytes per second that one slot stands for, 0 if that is not said."""
        return amount(self.bandwidth_per_slot) if self.bandwidth_per_slot is not None else 0

    @property
    def inside(self) -> str:
        """Where a container sees it, empty if it gets no mount from here."""
        return self.container_path or (f"/pfs/{self.name}" if self.tier in ("T2", "T3") else "")

    @property
    def fixed_slots(self) -> int | None:
        """How many slots there are, None where a file says."""
        if self.bandwidth is not None:
            return amount(self.bandwidth) // self.per_slot
        return self.slots


class PfsConfig(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The plugin's options."""

    domain: str = "pfs.local"
    """What comes before the slash in the names of the resources."""
    filesystems: list[FileSystem] = []
    jobid_variable: str = "KDP_PFS_JOBID"
    """T1: the variable that Lustre's ``jobid_var`` names on this node."""
    directory: str = "/var/lib/deviceplugin/pfs"
    """Of the plugin's own: private mounts, and which slots there are. On a disk of the host, at the same path."""
    node_process: str = "/proc/1"
    """A process in whose mount namespace the node's mounts are, as a directory below /proc."""

    def __post_init__(self) -> None:
        if not _DOMAIN.fullmatch(self.domain) or len(self.domain) > 244 or "kubernetes.io" in self.domain:
            raise ValueError(f"domain {self.domain!r} must be a DNS name of your own: lower-case letters, digits, '-' and '.', as in vendor.example")
        if not _VARIABLE.fullmatch(self.jobid_variable) or len(self.jobid_variable) > tags.MAX_VARIABLE:
            raise ValueError(f"jobidVariable {self.jobid_variable!r} must be a variable's name of at most {tags.MAX_VARIABLE} characters")
        _path("directory", self.directory)
        if not re.fullmatch(r"/proc/(\d+|self)", self.node_process):
            raise ValueError(f"nodeProcess {self.node_process!r} must be a process in /proc, as in /proc/1")
        for key, values in (
            ("name", [one.name for one in self.filesystems]),
            ("resource", [self.resource(one) for one in self.filesystems]),
            ("tagPrefix", [one.tag_prefix for one in self.filesystems if one.tier == "T1"]),
            ("container path", [one.inside for one in self.filesystems if one.inside]),
        ):
            for value in {value for value in values if values.count(value) > 1}:
                raise ValueError(f"two file systems have the {key} {value!r}: each needs its own")

    def resource(self, filesystem: FileSystem) -> str:
        """The resource that a file system's slots count towards."""
        return filesystem.resource or f"{self.domain}/pfs-{filesystem.name}"


def _path(key: str, path: str) -> None:
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path or (path != "/" and path.endswith("/")):
        raise ValueError(f"{key} {path!r} must be an absolute path without '..' and without '/' at its end")
