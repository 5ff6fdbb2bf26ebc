# SPDX-License-Identifier: Apache-2.0
"""The simulator keeps the rules on every kind of machine, called directly and through a mount; and a tree that breaks one is found out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deviceplugin.testing import fuse
from deviceplugin.testing.resctrl import SCENARIOS, Caller, MountedTree, Scenario, SimResctrl, Tree, set_values, snapshot
from deviceplugin.testing.resctrl.conformance import RULES, Bench, Inapplicable, Rule, groups, masks

HOST = Caller()
MACHINES = {**SCENARIOS, "old": replace(SCENARIOS["spr20"], kernel=(5, 4)), "lts": replace(SCENARIOS["skylake"], kernel=(6, 1))}


def bench_of(sim: SimResctrl, tree: Tree | None = None) -> Bench:
    return Bench(sim if tree is None else tree, lambda parent: sim.spawn(parent or 1))


def try_out(rule: Rule, bench: Bench) -> None:
    with bench.tidy():
        try:
            rule(bench)
        except Inapplicable as reason:
            pytest.skip(str(reason))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("scenario", MACHINES.values(), ids=MACHINES)
def test_the_simulator_keeps_the_rule(scenario: Scenario, rule: Rule) -> None:
    try_out(rule, bench_of(SimResctrl(scenario)))


@pytest.fixture(scope="module", params=["skylake", "haswell", "cdp", "snc", "lts"])
def served(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A simulator behind a mount."""
    if lack := fuse.missing():
        pytest.skip(lack)
    sim = SimResctrl(MACHINES[request.param])
    with fuse.serve(sim) as directory:
        yield bench_of(sim, MountedTree(directory))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds_behind_a_mount(rule: Rule, served: Bench) -> None:
    try_out(rule, served)


class Lenient(SimResctrl):
    """Takes what resctrl refuses."""

    def write(self, path: str, data: bytes, caller: Caller = HOST) -> None:
        try:
            super().write(path, data, caller)
        except OSError:
            return


@pytest.mark.parametrize("rule", [masks.masks_are_in_range, masks.lines_end, groups.other_modes_are_refused], ids=lambda rule: rule.__name__)
def test_a_tree_that_breaks_the_rule_is_found_out(rule: Rule) -> None:
    bench = bench_of(Lenient(SCENARIOS["skylake"]))
    with bench.tidy(), pytest.raises(AssertionError, match="was not refused"):
        rule(bench)
    assert bench.tree.list("mon_groups") == []


def test_what_the_rules_change_is_put_back() -> None:
    sim = SimResctrl(SCENARIOS["skylake"])
    set_values(sim, "", "L3", {0: 0x7F0})
    sim.mkdir("another")
    before = snapshot(sim)
    for rule in RULES:
        with bench_of(sim).tidy(), contextlib.suppress(Inapplicable):
            rule(bench_of(sim))
    assert {path: text for path, text in snapshot(sim).items() if not path.endswith(("tasks", "last_cmd_status"))} == {
        path: text for path, text in before.items() if not path.endswith(("tasks", "last_cmd_status"))
    }
