# SPDX-License-Identifier: Apache-2.0
"""What must be set up elsewhere for slots to mean anything: the exact commands, and the arithmetic behind them."""

from __future__ import annotations

from collections.abc import Iterator

from deviceplugin.plugins.pfs import rates, tags
from deviceplugin.plugins.pfs.config import FileSystem, PfsConfig, amount

ROUND_TRIP = 0.001
"""Seconds, for the example that a private mount's limit comes with."""

_FEW = 4


def of(config: PfsConfig, filesystem: FileSystem, slots: int, node: str) -> Iterator[str]:
    """Lines for whoever administers the file system. ``slots`` is how many there are on this node."""
    yield f"{filesystem.name}: {slots} slots of {config.resource(filesystem)}, tier {filesystem.tier}" + (
        f", each stands for {rates.decimal(filesystem.per_slot)}/s" if filesystem.per_slot else ""
    )
    yield from (f"  {line}" for line in _TIERS[filesystem.tier](config, filesystem, max(1, slots), node))


def _counted(_config: PfsConfig, _filesystem: FileSystem, _slots: int, _node: str) -> Iterator[str]:
    yield "nothing limits what a container uses: the slots are counted by the scheduler and that is all"


def _tagged(config: PfsConfig, filesystem: FileSystem, slots: int, node: str) -> Iterator[str]:
    assert filesystem.servers is not None
    servers, prefix = filesystem.servers, filesystem.tag_prefix
    rpc = amount(servers.rpc_size)
    yield f"on each client node:  lctl set_param jobid_var={config.jobid_variable}"
    yield f"a container on this node is {tags.tag(prefix, 1, node, 0)}, with two slots {tags.tag(prefix, 2, node, 0)}, and so on"
    yield "on each OSS, once for the whole cluster, with as many rules as the largest node has slots:"
    yield '  lctl set_param ost.OSS.ost_io.nrs_policies="tbf jobid"'
    every = [rates.tbf(k, filesystem.per_slot, rpc_size=rpc, oss=servers.oss, cpts=servers.cpts) for k in range(1, slots + 1)]
    for one in every:
        pattern = tags.rule_pattern(prefix, one.slots)
        yield f'  lctl set_param ost.OSS.ost_io.nrs_tbf_rule="start {prefix}_{one.slots} jobid={{{pattern}}} rate={one.rate}"'
    yield f"rate = slots x {filesystem.per_slot} B/s / ({rpc} B per RPC x {servers.oss} OSS x {servers.cpts} CPTs), whole RPCs:"
    for one in every[:_FEW]:
        yield f"  {one.slots}: {one.wanted} / {one.ceiling // one.rate} = {one.wanted / (one.ceiling // one.rate):.2f}, " + (
            f"so {one.rate}: at most {rates.decimal(one.ceiling)}/s"
        )
    if len(every) > _FEW:
        yield f"  and so on up to {every[-1].slots}: at most {rates.decimal(every[-1].ceiling)}/s"
    if not every[0].exact:
        yield f"a slot is less than the smallest rate, 1, which lets {rates.decimal(every[0].ceiling)}/s through: make the slots larger"
    yield "that is for full RPCs to all OSS: a bucket counts RPCs, on each CPT of each OSS, so smaller ones and fewer servers get less"
    yield "what runs without a tag is not limited by these rules"


def _identity(_config: PfsConfig, filesystem: FileSystem, slots: int, node: str) -> Iterator[str]:
    directories = [filesystem.directory_of(slot, node) for slot in range(min(slots, _FEW))]
    more = f" to {filesystem.directory_of(slots - 1, node)}" if slots > _FEW else ""
    yield f"each slot has a directory, which must be there: {', '.join(directories)}{more}, below {filesystem.mount_point or filesystem.source}"
    if "{node}" not in filesystem.slot_directory:
        yield "without {node} in slotDirectory, the same slots of all nodes share one directory, and its limit"
    if filesystem.type == "gpfs":
        megabytes = filesystem.per_slot // 10**6
        for slot, directory in enumerate(directories):
            name = f"kdp{slot:02}"
            yield f"mmqos class create FS --class {name} --fileset FILESET-OF-{directory}"
            yield f"mmqos throttle create FS --pool POOL --class {name} -N NODES --maxmbs {megabytes or 'MB/S'}"
    elif filesystem.type == "lustre":
        yield f"lfs project -srp ID {directories[0]}, with an ID for each, and on each OSS (2.16 and later):"
        yield '  lctl set_param ost.OSS.ost_io.nrs_policies="tbf"'
        yield '  lctl set_param ost.OSS.ost_io.nrs_tbf_rule="start kdp_ID projid={ID} rate=RATE"'
    else:
        yield "the servers must limit each of them; how depends on the file system"


def _private(config: PfsConfig, filesystem: FileSystem, _slots: int, _node: str) -> Iterator[str]:
    assert filesystem.private_mount is not None
    own = filesystem.private_mount
    yield f"a container gets a mount of its own of {own.source}, made below {config.directory}/{filesystem.name}; nothing is to be set on the servers"
    if filesystem.type == "lustre":
        most = rates.concurrency(own.in_flight, amount(filesystem.servers.rpc_size) if filesystem.servers else 4 << 20, ROUND_TRIP)
        yield f"limit for each slot and OST: max_rpcs_in_flight={own.in_flight}" + (
            f", max_dirty_mb={amount(own.dirty) >> 20}" if own.dirty is not None else ""
        )
        yield (
            "that caps what is under way, not the rate: in_flight x RPC / round trip for each OST, "
            f"so {rates.decimal(most)}/s where an RPC takes {ROUND_TRIP * 1000:g} ms"
        )
    elif filesystem.type == "beegfs":
        yield f"limit for each slot and server: connMaxInternodeNum = {own.in_flight}; that caps connections, not the rate"
    else:
        yield (f"limit: the options {own.options!r}" if own.options else "no limit: without options a mount of its own limits nothing")


def _node_cap(_config: PfsConfig, filesystem: FileSystem, slots: int, node: str) -> Iterator[str]:
    whole = slots * filesystem.per_slot
    yield f"cap the node at {rates.decimal(whole)}/s, the sum of its slots; nothing limits one container" if whole else "nothing limits one container"
    if filesystem.type == "lustre" and filesystem.servers is not None and whole:
        servers = filesystem.servers
        rate = rates.tbf(slots, filesystem.per_slot, rpc_size=amount(servers.rpc_size), oss=servers.oss, cpts=servers.cpts)
        yield "on each OSS, with the node's NID, which lctl list_nids says there:"
        yield '  lctl set_param ost.OSS.ost_io.nrs_policies="tbf nid"'
        yield f'  lctl set_param ost.OSS.ost_io.nrs_tbf_rule="start kdp_node nid={{NID}} rate={rate.rate}"'
    elif filesystem.type == "gpfs" and whole:
        yield f"mmqos throttle create FS --pool POOL --class CLASS -N {node} --maxmbs {whole // 10**6}"


_TIERS = {"T0": _counted, "T1": _tagged, "T2": _identity, "T3": _private, "T4": _node_cap}
