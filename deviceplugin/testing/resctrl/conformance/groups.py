# SPDX-License-Identifier: Apache-2.0
"""Rules of making and removing groups, what they begin with, and how many there can be (fs/resctrl/rdtgroup.c)."""

from __future__ import annotations

import errno
from functools import partial

from deviceplugin.testing.resctrl.conformance.bench import Bench, Inapplicable, refused, require, same, write_refused
from deviceplugin.testing.resctrl.controls import first_run
from deviceplugin.testing.resctrl.tree import groups, last_status, line, schemata, set_values

_GROUP = {"cpus", "cpus_list", "tasks", "schemata", "mode", "size"}
_MONITORED = {"mon_data", "mon_groups"}


def files_are_there(bench: Bench) -> None:
    """In the root group, in every other, and in ``info``."""
    group = bench.make()
    expected = _GROUP | (_MONITORED if bench.monitors else set())
    require(expected | {"info"} <= set(bench.tree.list("")), f"of {sorted(expected)} the root group has {sorted(bench.tree.list(''))}")
    require(expected <= set(bench.tree.list(group)), f"of {sorted(expected)} a group has {sorted(bench.tree.list(group))}")
    for name in schemata(bench.tree):
        require(bench.number(f"{name}/num_closids") > 1, f"{name} has {bench.info(f'{name}/num_closids')} classes of service")
    for cache in bench.caches:
        same(cache.every, (1 << cache.ways) - 1, f"{cache.name}/cbm_mask, which must be one run from bit 0,")
        require(cache.shareable <= cache.every, f"{cache.name}/shareable_bits {cache.shareable:x} are not in {cache.every:x}")
        usage = dict(part.split("=") for part in bench.info(f"{cache.name}/bit_usage").split(";"))
        same(list(map(int, usage)), list(bench.values("", cache.name)), f"the domains in {cache.name}/bit_usage")
        for domain, ways in usage.items():
            same(len(ways), cache.ways, f"the number of ways in {cache.name}/bit_usage of domain {domain}")
            hardware = {way for way, use in enumerate(reversed(ways)) if use in "XH"}
            same(hardware, {way for way in range(cache.ways) if cache.shareable >> way & 1}, f"the ways that hardware uses in {ways}")


def groups_are_as_many_as_classes(bench: Bench) -> None:
    """The resource with the fewest decides; one class is the root group's. What cannot be made leaves nothing behind."""
    limit = min(bench.number(f"{name}/num_closids") for name in schemata(bench.tree)) - 1 - len(groups(bench.tree))
    if bench.monitors and bench.number("L3_MON/num_rmids") <= limit:
        raise Inapplicable("RMIDs run out before classes of service do")
    for number in range(limit):
        bench.make(str(number))
    refused(bench, errno.ENOSPC, "Out of CLOSIDs", lambda: bench.make("more"), what=f"group {limit + 1}")
    require("conformance.more" not in bench.tree.list(""), "a group is there that could not be made")
    bench.tree.rmdir("conformance.0")
    bench.make("more")


def names_are_taken_once(bench: Bench) -> None:
    group = bench.make()
    for name in (group, "info", "schemata"):
        refused(bench, errno.EEXIST, None, partial(bench.tree.mkdir, name), what=f"mkdir {name}")
    refused(bench, errno.EINVAL, None, lambda: bench.make("a\nb"), what="a name with a newline")


def groups_are_made_at_the_top(bench: Bench) -> None:
    """Nowhere else, but for those that monitor."""
    group = bench.make()
    refused(bench, errno.EPERM, None, partial(bench.tree.mkdir, f"{group}/x"), what="mkdir in a group")
    refused(bench, errno.ENODEV if bench.monitors else errno.EPERM, None, partial(bench.tree.mkdir, "info/x"), what="mkdir in info")
    refused(bench, errno.ENOENT, None, partial(bench.tree.mkdir, "conformance.none/x"), what="mkdir in a group that is not there")


def only_groups_are_removed(bench: Bench) -> None:
    group = bench.make()
    refused(bench, errno.EPERM, None, partial(bench.tree.rmdir, "info"), what="rmdir info")
    refused(bench, errno.ENOTDIR, None, partial(bench.tree.rmdir, f"{group}/schemata"), what="rmdir of a file")
    if bench.monitors:
        for path in ("mon_groups", f"{group}/mon_groups", f"{group}/mon_data"):
            refused(bench, errno.EPERM, None, partial(bench.tree.rmdir, path), what=f"rmdir {path}")
    bench.tree.rmdir(group)
    refused(bench, errno.ENOENT, None, partial(bench.tree.rmdir, group), what="rmdir of a group that is gone")
    refused(bench, errno.ENOENT, None, partial(bench.tree.read, f"{group}/schemata"), what="reading a file of it")


def removing_is_no_command(bench: Bench) -> None:
    """The status of the one before stays; the next command that goes well sets it to ok."""
    group = bench.make()
    name = next(iter(schemata(bench.tree)))
    write_refused(bench, f"{group}/schemata", "NOSUCH:0=1\n", "Unknown .*")
    before = last_status(bench.tree)
    bench.tree.rmdir(group)
    same(last_status(bench.tree), before, "the status after rmdir")
    group = bench.make()
    same(last_status(bench.tree), "ok", "the status after mkdir")
    set_values(bench.tree, group, name, bench.values(group, name))
    same(last_status(bench.tree), "ok", "the status after a good write")


def a_group_begins_with_what_is_free_or_shared(bench: Bench) -> None:
    """Of the ways that nobody has, the hardware uses or sharing groups have, the lowest run; and all bandwidth."""
    free = bench.leave_room()
    usable = {cache.name: cache.every for cache in bench.caches}
    first = bench.make("a")
    same(_masks(bench, first), {name: {first_run(mask)} for name, mask in usable.items()}, "the masks of a new group")
    alone = {name: _lower_half(mask) for name, mask in free.items()}
    _set(bench, first, alone)
    bench.tree.write(f"{first}/mode", b"exclusive\n")
    new = bench.make("b")
    same(_masks(bench, new), {name: {first_run(mask & ~alone[name])} for name, mask in usable.items()}, "the masks of one beside an exclusive group")
    if "MB" in schemata(bench.tree):
        same(set(bench.values(new, "MB").values()), set(bench.values(first, "MB").values()), "the bandwidth of new groups")


def _masks(bench: Bench, group: str) -> dict[str, set[int]]:
    """Those that a group has in any domain."""
    return {cache.name: set(bench.values(group, cache.name).values()) for cache in bench.caches}


def _set(bench: Bench, group: str, masks: dict[str, int]) -> None:
    """In every domain."""
    for name, mask in masks.items():
        set_values(bench.tree, group, name, dict.fromkeys(bench.values(group, name), mask))


def _lower_half(mask: int) -> int:
    ways = sorted(_bits(mask))
    return sum(1 << way for way in ways[: len(ways) // 2])


def _bits(mask: int) -> set[int]:
    return {way for way in range(mask.bit_length()) if mask >> way & 1}


def exclusive_needs_ways_of_its_own(bench: Bench) -> None:
    """No way may be the hardware's or in another group, on any cache; and then nobody else gets any of them."""
    free = bench.leave_room()
    cache, domain = bench.cache, bench.domain
    group = bench.make("a")
    same(bench.text(f"{group}/mode"), "shareable\n", "the mode of a new group")
    write_refused(bench, f"{group}/mode", "exclusive\n", "Schemata overlaps")
    half = {name: _lower_half(mask) for name, mask in free.items()}
    _set(bench, group, half)
    bench.tree.write(f"{group}/mode", b"exclusive\n")
    same(bench.text(f"{group}/mode"), "exclusive\n", "the mode")
    other = bench.make("b")
    mine, rest = half[cache.name], free[cache.name] & ~half[cache.name]
    write_refused(bench, f"{other}/schemata", line(cache.name, {domain: mine}), "Overlaps with exclusive group")
    _set(bench, other, {cache.name: rest})
    write_refused(bench, f"{group}/schemata", line(cache.name, {domain: mine | rest}), "Overlaps with other group")
    usage = dict(part.split("=") for part in bench.info(f"{cache.name}/bit_usage").split(";"))[str(domain)]
    same({way for way, use in enumerate(reversed(usage)) if use == "E"}, _bits(mine), f"the exclusive ways in {usage}")
    bench.tree.write(f"{group}/mode", b"shareable\n")
    set_values(bench.tree, other, cache.name, {domain: mine})


def other_modes_are_refused(bench: Bench) -> None:
    group = bench.make()
    for mode in ("pseudo-locked", "Shareable", "", "shareable "):
        write_refused(bench, f"{group}/mode", f"{mode}\n", "Unknown or unsupported mode")
    write_refused(bench, "mode", "pseudo-locksetup\n", "Cannot pseudo-lock default group")
    bench.tree.write(f"{group}/mode", b"shareable\n")
    same(last_status(bench.tree), "ok", "the status after the mode that it has was written")


RULES = (
    files_are_there,
    groups_are_as_many_as_classes,
    names_are_taken_once,
    groups_are_made_at_the_top,
    only_groups_are_removed,
    removing_is_no_command,
    a_group_begins_with_what_is_free_or_shared,
    exclusive_needs_ways_of_its_own,
    other_modes_are_refused,
)
