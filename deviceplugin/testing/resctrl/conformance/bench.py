# SPDX-License-Identifier: Apache-2.0
"""What the rules are tried on: a tree, what it says of itself, and a way to make processes."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deviceplugin.testing.resctrl.controls import first_run
from deviceplugin.testing.resctrl.tree import Tree, Values, groups, last_status, read_text, schemata, set_values

PREFIX = "conformance."
"""What the names of the groups begin with that the rules make. Those of others are left alone."""


class Inapplicable(Exception):
    """A rule says nothing about this machine. The text says why."""


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What ``info`` says of a schema whose values are masks."""

    name: str
    every: int
    min_ways: int
    shareable: int
    sparse: bool

    @property
    def ways(self) -> int:
        return self.every.bit_length()

    @property
    def least(self) -> int:
        """A legal mask of the fewest ways that a group can have, at the low end."""
        return (1 << max(1, self.min_ways)) - 1


@dataclass(frozen=True, slots=True)
class Bench:
    """A resctrl that nothing else changes meanwhile.

    ``spawn`` starts a process that stays, the child of the one given or of whoever tests, and returns the number that the tree knows it by.
    """

    tree: Tree
    spawn: Callable[[int | None], int]

    def info(self, name: str) -> str:
        return read_text(self.tree, f"info/{name}").rstrip("\n")

    def number(self, name: str) -> int:
        return int(self.info(name))

    @property
    def caches(self) -> list[CacheFacts]:
        return [self._cache(name) for name in schemata(self.tree) if name.startswith("L")]

    def _cache(self, name: str) -> CacheFacts:
        there = self.tree.list(f"info/{name}")
        sparse = "sparse_masks" in there and self.info(f"{name}/sparse_masks") == "1"
        every, shareable = (int(self.info(f"{name}/{file}"), 16) for file in ("cbm_mask", "shareable_bits"))
        return CacheFacts(name, every, self.number(f"{name}/min_cbm_bits"), shareable, sparse)

    @property
    def cache(self) -> CacheFacts:
        """The last-level one. Raises Inapplicable."""
        for cache in sorted(self.caches, key=lambda cache: cache.name, reverse=True):
            return cache
        raise Inapplicable("no cache can be allocated here")

    @property
    def bandwidth(self) -> str:
        """``MB``. Raises Inapplicable."""
        if "MB" not in schemata(self.tree):
            raise Inapplicable("memory bandwidth cannot be allocated here")
        return "MB"

    @property
    def monitors(self) -> bool:
        return "mon_groups" in self.tree.list("")

    def need_monitors(self) -> None:
        if not self.monitors:
            raise Inapplicable("nothing can be monitored here")

    @property
    def domain(self) -> int:
        """The first domain, of the last-level cache if that can be allocated."""
        names = [cache.name for cache in self.caches] or list(schemata(self.tree))
        return min(self.values("", max(names)))

    def values(self, group: str, name: str) -> Values:
        return schemata(self.tree, group)[name]

    def text(self, path: str) -> str:
        return read_text(self.tree, path)

    def make(self, name: str = "a") -> str:
        """Makes a group of the rules' and returns its name."""
        self.tree.mkdir(PREFIX + name)
        return PREFIX + name

    def pids(self, group: str) -> set[int]:
        """The tasks of a group."""
        return set(map(int, self.text(f"{group}/tasks".lstrip("/")).split()))

    @contextmanager
    def tidy(self) -> Iterator[None]:
        """Removes what the rules made, before and after, and gives the root group back what it had."""
        self._remove()
        before = schemata(self.tree)
        try:
            yield
        finally:
            self._remove()
            for name, values in before.items():
                if schemata(self.tree)[name] != values:
                    set_values(self.tree, "", name, values)

    def _remove(self) -> None:
        for name in groups(self.tree):
            if name.startswith(PREFIX):
                self.tree.rmdir(name)
        if self.monitors:
            for name in self.tree.list("mon_groups"):
                if name.startswith(PREFIX):
                    self.tree.rmdir(f"mon_groups/{name}")

    def leave_room(self) -> dict[str, int]:
        """Takes ways from the root group that the hardware does not use, and returns them by cache: at least twice as many as a group needs.

        Raises Inapplicable if other groups hold them.
        """
        taken = {cache.name: self._take(cache) for cache in self.caches}
        if not taken:
            raise Inapplicable("no cache can be allocated here")
        return taken

    def _take(self, cache: CacheFacts) -> int:
        free = max(_runs(cache.every & ~cache.shareable), key=int.bit_count)
        least = max(1, cache.min_ways)
        if not cache.shareable:  # the root group must keep some
            free &= free >> least
        if free.bit_count() < 2 * least:
            raise Inapplicable(f"of {cache.ways} ways only {free.bit_count()} can be taken from the root group")
        for group in groups(self.tree):
            if any(mask & free for mask in self.values(group, cache.name).values()):
                raise Inapplicable(f"group {group} has the ways that the rule needs")
        kept = max(_runs(cache.every & ~free), key=int.bit_count)
        set_values(self.tree, "", cache.name, dict.fromkeys(self.values("", cache.name), kept))
        return free


def _runs(mask: int) -> Iterator[int]:
    while mask:
        run = first_run(mask)
        yield run
        mask &= ~run


Rule = Callable[[Bench], None]


def require(kept: bool, text: str) -> None:
    """:raises AssertionError: with the text, unless the rule is ``kept``."""
    if not kept:
        raise AssertionError(text)


def same(found: object, expected: object, what: str) -> None:
    require(found == expected, f"{what} is {found!r}, not {expected!r}")


def refused(bench: Bench, number: int, status: str | None, action: Callable[[], object], *, what: str) -> None:
    """The action fails with this errno, and the last command's status matches the regular expression, if one is given."""
    try:
        action()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        same(name, errno.errorcode[number], f"the error of {what}")
    else:
        raise AssertionError(f"{what} was not refused; it must be with {errno.errorcode[number]}")
    if status is not None:
        said = last_status(bench.tree)
        require(re.fullmatch(status, said) is not None, f"after {what} the status is {said!r}, not {status!r}")


def write_refused(bench: Bench, path: str, text: str, status: str | None, number: int = errno.EINVAL) -> None:
    """A write is refused, and changes no value of that group."""
    group = path.rpartition("/")[0]
    before = schemata(bench.tree, group)
    refused(bench, number, status, lambda: bench.tree.write(path, text.encode()), what=f"{text!r} to {path}")
    same(schemata(bench.tree, group), before, f"the schemata after {text!r} was refused")
