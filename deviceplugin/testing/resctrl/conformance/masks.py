# SPDX-License-Identifier: Apache-2.0
"""Rules of masks, bandwidth and the schemata files (fs/resctrl/ctrlmondata.c)."""

from __future__ import annotations

import errno
import re
from functools import partial

from deviceplugin.testing.resctrl.conformance.bench import Bench, Inapplicable, refused, require, same, write_refused
from deviceplugin.testing.resctrl.controls import NO_LIMIT
from deviceplugin.testing.resctrl.tree import last_status, line, schemata, set_values


def schemata_are_aligned(bench: Bench) -> None:
    """A line for each resource, its name flush right, its domains in order."""
    lines = bench.text("schemata").splitlines()
    same(len({each.index(":") for each in lines}), 1, "the number of columns in which the names of schemata end")
    for each in lines:
        name, _, rest = each.strip().partition(":")
        value = r"\d+= *\d+" if name in ("MB", "SMBA") else r"\d+=[0-9a-f]+"
        require(re.fullmatch(rf"{value}(;{value})*", rest) is not None, f"the schemata line {each!r} is none")
        domains = list(bench.values("", name))
        same(domains, sorted(domains), f"the order of {name}'s domains")


def sizes_follow_masks(bench: Bench) -> None:
    """``size`` has a line for each of schemata's: bytes in proportion to the ways, and bandwidth as it is."""
    group = bench.make()
    cache = bench.cache
    set_values(bench.tree, group, cache.name, {bench.domain: cache.least})
    sizes = {name.strip(): rest for name, _, rest in (each.partition(":") for each in bench.text(f"{group}/size").splitlines())}
    same(set(sizes), set(schemata(bench.tree)), "the names in size")
    shown = dict(pair.split("=") for pair in sizes[cache.name].split(";"))
    way = int(shown[str(bench.domain)]) // cache.least.bit_count()
    require(way > 0, f"a way of {cache.name} has {way} bytes")
    for domain, mask in bench.values(group, cache.name).items():
        same(int(shown[str(domain)]), way * mask.bit_count(), f"the size of mask {mask:x} in domain {domain}")


def masks_are_in_range(bench: Bench) -> None:
    group, cache, domain = bench.make(), bench.cache, bench.domain
    for mask in (cache.every + 1, 1 << 40):
        write_refused(bench, f"{group}/schemata", line(cache.name, {domain: mask}), "Mask out of range")
    if cache.min_ways:
        write_refused(bench, f"{group}/schemata", line(cache.name, {domain: 0}), "Mask out of range")
    else:
        set_values(bench.tree, group, cache.name, {domain: 0})
        same(bench.values(group, cache.name)[domain], 0, "the mask, where none is needed")


def masks_are_one_run(bench: Bench) -> None:
    """Unless ``sparse_masks`` says that they need not be."""
    group, cache, domain = bench.make(), bench.cache, bench.domain
    gap = cache.least | cache.least << cache.least.bit_length() + 1
    if gap > cache.every:
        raise Inapplicable("there are too few ways for a mask with a gap")
    if cache.sparse:
        set_values(bench.tree, group, cache.name, {domain: gap})
        same(bench.values(group, cache.name)[domain], gap, "the mask with a gap")
    else:
        write_refused(bench, f"{group}/schemata", line(cache.name, {domain: gap}), f"The mask {gap:x} has non-consecutive 1-bits")


def masks_have_enough_ways(bench: Bench) -> None:
    group, cache, domain = bench.make(), bench.cache, bench.domain
    if cache.min_ways < 2:
        raise Inapplicable(f"a mask needs no more than {cache.min_ways} ways here")
    few = cache.least >> 1
    write_refused(bench, f"{group}/schemata", line(cache.name, {domain: few}), f"Need at least {cache.min_ways} bits in the mask")


def masks_are_hexadecimal(bench: Bench) -> None:
    """With or without 0x, in small or capital letters, with blanks around, and nothing else."""
    group, cache, domain = bench.make(), bench.cache, bench.domain
    for wrong in ("g", "", "-1", "7 7", "0x"):
        write_refused(bench, f"{group}/schemata", f"{cache.name}:{domain}={wrong}\n", f"Non-hex character in the mask {re.escape(wrong)}")
    mask = cache.every & ~1 if (cache.every & ~1).bit_count() >= cache.min_ways else cache.every
    for right in (f"{mask:x}", f"0x{mask:x}", f"{mask:X}", f" {mask:x} ", f"+{mask:x}", f"000{mask:x}"):
        set_values(bench.tree, group, cache.name, {domain: cache.every})
        bench.tree.write(f"{group}/schemata", f"{cache.name}:{domain}={right}\n".encode())
        same(bench.values(group, cache.name)[domain], mask, f"the mask written as {right!r}")


def lines_end(bench: Bench) -> None:
    """Without a newline at the end a write is refused before it counts as a command: the status stays that of the one before."""
    group, cache, domain = bench.make(), bench.cache, bench.domain
    write_refused(bench, f"{group}/schemata", f"{cache.name}:{domain}=g\n", "Non-hex .*")
    before = last_status(bench.tree)
    write_refused(bench, f"{group}/schemata", f"{cache.name}:{domain}={cache.least:x}", re.escape(before))
    write_refused(bench, f"{group}/mode", "shareable", re.escape(before))


def lines_are_well_formed(bench: Bench) -> None:
    group, cache, domain = bench.make(), bench.cache, bench.domain
    good = f"{domain}={cache.every:x}"
    for text, status in (
        ("\n", "Missing ':'"),
        (f"{cache.name}\n", "Missing ':'"),
        (f"{cache.name}:{good}\n\n", "Missing ':'"),
        (f"{cache.name}:\n", f"Missing '{cache.name}' value"),
        (f"{cache.name}:{domain}\n", "Missing '=' or non-numeric domain"),
        (f"{cache.name}:x={cache.every:x}\n", "Missing '=' or non-numeric domain"),
        (f"{cache.name}: {good}\n", "Missing '=' or non-numeric domain"),
        (f"{cache.name}:;{good}\n", "Missing '=' or non-numeric domain"),
        (f"NOSUCH:{good}\n", "Unknown or unsupported resource name 'NOSUCH'"),
        (f"{cache.name}:{good};{good}\n", f"Duplicate domain {domain}"),
        (f"{cache.name}:{good}\n{cache.name}:{good}\n", f"Duplicate domain {domain}"),
        (f"{cache.name}:4095={cache.every:x}\n", "ok"),  # EINVAL, and no word of a domain that is not there
    ):
        write_refused(bench, f"{group}/schemata", text, status)
    for text in (f"{cache.name}:{good};\n", f"  {cache.name} :{good}\n", bench.text(f"{group}/schemata")):
        bench.tree.write(f"{group}/schemata", text.encode())
        same(last_status(bench.tree), "ok", f"the status after {text!r}")


def a_write_changes_what_it_names(bench: Bench) -> None:
    """Other domains, other resources and other groups keep what they have."""
    group, other, cache, domain = bench.make("a"), bench.make("b"), bench.cache, bench.domain
    before, root, beside = schemata(bench.tree, group), schemata(bench.tree), schemata(bench.tree, other)
    set_values(bench.tree, group, cache.name, {domain: cache.least})
    before[cache.name][domain] = cache.least
    same(schemata(bench.tree, group), before, "the group that was written to")
    same(schemata(bench.tree), root, "the root group")
    same(schemata(bench.tree, other), beside, "another group")


def a_write_is_all_or_nothing(bench: Bench) -> None:
    """A mistake anywhere in it, and nothing of it holds."""
    group, cache = bench.make(), bench.cache
    domains = sorted(bench.values(group, cache.name))
    write_refused(bench, f"{group}/schemata", f"{cache.name}:{domains[0]}={cache.least:x};{domains[-1]}=g\n", "(Non-hex|Duplicate) .*")
    write_refused(bench, f"{group}/schemata", f"{cache.name}:{domains[0]}={cache.least:x}\nNOSUCH:0=1\n", "Unknown .*")


def bandwidth_is_in_range(bench: Bench) -> None:
    """From the least to what the root group began with, rounded up to the granularity."""
    group, name = bench.make(), bench.bandwidth
    domain = min(bench.values(group, name))
    most, least, step = bench.values(group, name)[domain], bench.number("MB/min_bandwidth"), bench.number("MB/bandwidth_gran")
    if most == NO_LIMIT:
        raise Inapplicable("mounted with mba_MBps, where any number is taken")
    for wrong in {most + 1, *([least - 1] if least else [])}:
        write_refused(bench, f"{group}/schemata", f"MB:{domain}={wrong}\n", rf"MB value {wrong} out of range \[{least},{most}\]")
    write_refused(bench, f"{group}/schemata", f"MB:{domain}=f\n", "(Invalid MB value|Non-decimal digit in MB value) f")
    for value in (least, least + 1, most):
        set_values(bench.tree, group, name, {domain: value})
        same(bench.values(group, name)[domain], -(-value // step) * step, f"the bandwidth after {value} was written")


def code_and_data_are_apart(bench: Bench) -> None:
    """With ``cdp``: two schemata of one cache, ``L3`` alone is none, and each takes half of the classes of service."""
    names = [cache.name for cache in bench.caches]
    if names not in (["L3DATA", "L3CODE"], ["L3CODE", "L3DATA"]):
        raise Inapplicable("not mounted with cdp")
    group, domain = bench.make(), bench.domain
    write_refused(bench, f"{group}/schemata", f"L3:{domain}=1\n", "Unknown or unsupported resource name 'L3'")
    before = bench.values(group, "L3DATA")
    set_values(bench.tree, group, "L3CODE", {domain: bench.cache.least})
    same(bench.values(group, "L3DATA"), before, "L3DATA after L3CODE was written")
    same(bench.info("L3CODE/num_closids"), bench.info("L3DATA/num_closids"), "the number of classes")


def read_only_files_cannot_be_written(bench: Bench) -> None:
    """Not even by root; and no file takes more than a page."""
    group = bench.make()
    name = next(iter(schemata(bench.tree)))
    for path in (f"{group}/size", f"info/{name}/num_closids", "info/last_cmd_status"):
        refused(bench, errno.EACCES, None, partial(bench.tree.write, path, b"1\n"), what=f"a write to {path}")
    write_refused(bench, f"{group}/schemata", "x" * 4096 + "\n", None, errno.E2BIG)


RULES = (
    schemata_are_aligned,
    sizes_follow_masks,
    masks_are_in_range,
    masks_are_one_run,
    masks_have_enough_ways,
    masks_are_hexadecimal,
    lines_end,
    lines_are_well_formed,
    a_write_changes_what_it_names,
    a_write_is_all_or_nothing,
    bandwidth_is_in_range,
    code_and_data_are_apart,
    read_only_files_cannot_be_written,
)
