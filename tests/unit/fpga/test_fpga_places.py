# SPDX-License-Identifier: Apache-2.0
"""A port that becomes something else is never in two resources, nor free in one while a container holds it in another."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deviceplugin import Device, Health
from deviceplugin.plugins.fpga import CannotStart
from deviceplugin.plugins.fpga.hardware import Card, Driver, Port
from deviceplugin.plugins.fpga.memory import Place
from deviceplugin.plugins.fpga.naming import Offer
from deviceplugin.plugins.fpga.places import Releases, place_of, plan
from deviceplugin.testing.fpga import DEAD, INTERFACE, NLB0, NLB3, Fpgas
from tests.unit.fpga.bench import AF_NLB0, AF_NLB3, REGION, Bench

P0 = "0000-3b-00.0-p0"
SETTLE = 15.0


def moving(device: Device) -> bool:
    return device.health is Health.UNHEALTHY and device.cause.startswith("moving: ")


def test_mode_change_needs_no_restart_of_anything_and_waits_for_nobody_where_nobody_holds_it(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    assert plugin.one().resource == AF_NLB0
    plugin.restart(mode="region")
    first = plugin.one()
    assert (first.resource, moving(first)) == (AF_NLB0, True)
    plugin.judge()
    plugin.passes(SETTLE)
    assert plugin.one().resource == AF_NLB0  # one view is not enough: a pod may just be starting
    plugin.judge()
    assert (plugin.one().resource, plugin.one().health) == (REGION, Health.HEALTHY)


def test_mode_change_while_a_container_holds_the_port(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    held = plugin.one()
    plugin.judge(held)
    plugin.restart(mode="regiondevel")
    for _ in range(5):
        (listed,) = plugin.look().values()
        assert (listed.id, listed.resource, moving(listed)) == (P0, AF_NLB0, True)
        assert [verdict.enforced for verdict in plugin.judge(listed)] == [True]
        plugin.passes(SETTLE)
    assert plugin.skipped()[f"0000-3b-00.0 as {REGION}"].startswith(f"waits until no container holds {P0} ")
    for _ in range(2):
        plugin.judge()
        plugin.passes(SETTLE)
    assert {one.id: one.resource for one in plugin.look().values()} == {"0000-3b-00.0": REGION}


def test_container_that_starts_again_while_its_port_is_to_move(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    card = fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    plugin = bench()
    held = plugin.look()[P0]
    plugin.plugin.allocate([held])
    plugin.restart(mode="regiondevel")
    listed = plugin.look()[P0]
    assert moving(listed)
    plugin.plugin.prepare([listed])  # another mode takes nothing from it
    card.ports[0].afu = NLB3
    with pytest.raises(CannotStart, match=f"should have the function {NLB0}, and has {NLB3}"):
        plugin.plugin.prepare([listed])


def test_card_that_is_to_move_keeps_its_engine_for_who_holds_it(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    plugin = bench(mode="regiondevel")
    held = plugin.one()
    plugin.plugin.allocate([held])
    plugin.restart(mode="af")
    listed = plugin.one()
    assert (listed.id, listed.nodes, moving(listed)) == (held.id, held.nodes, True)
    plugin.plugin.prepare([listed])
    assert [verdict.enforced for verdict in plugin.judge(listed)] == [True]


def test_it_is_remembered_over_a_crash_between_the_two(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    plugin.look()
    plugin.look()
    plugin.restart(mode="region")
    assert moving(plugin.one())
    plugin.restart(mode="region")
    assert moving(plugin.one())
    plugin.restart(mode="af")
    assert (plugin.one().resource, plugin.one().health) == (AF_NLB0, Health.HEALTHY)  # it stays where it was all the time


def test_port_that_somebody_reprograms_moves_to_its_new_resource_when_free(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    held = plugin.one()
    card.ports[0].afu = NLB3
    assert (plugin.one().resource, moving(plugin.one())) == (AF_NLB0, True)
    (verdict,) = plugin.judge(held)
    assert verdict.enforced is not False or NLB3 in verdict.detail
    for _ in range(2):
        plugin.judge()
        plugin.passes(SETTLE)
    assert (plugin.one().resource, plugin.one().health) == (AF_NLB3, Health.HEALTHY)


def test_card_that_goes_while_it_moves(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    plugin.look()
    plugin.restart(mode="region")
    card.unplug()
    assert plugin.look() == {}
    plugin.judge()
    plugin.passes(SETTLE)
    plugin.judge()
    card.plug()
    assert moving(plugin.one())  # that nobody was seen to hold it while it was not listed proves nothing


@pytest.mark.parametrize("text", ["", "{", "[]", '{"places": {"x": 1}}', "\0" * 100])
def test_state_that_cannot_be_used_is_kept_aside_and_said_once(
    bench: Callable[..., Bench], fpgas: Fpgas, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    fpgas.dfl("0000:3b:00.0")
    path = "/var/lib/deviceplugin/fpga/state.json"
    fpgas.host.write(path, text)
    plugin = bench()
    for _ in range(3):
        assert plugin.one().health is Health.HEALTHY
    assert len([record for record in caplog.records if "cannot be used" in record.getMessage()]) == 1
    assert fpgas.host.read(f"{path}.unusable") == text
    assert AF_NLB0 in fpgas.host.read(path)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"known": {{"{P0}": ["x", "y"]}}}}',
        f'{{"known": {{"{P0}": ["{DEAD}", "{DEAD}"]}}, "baselines": {{"{P0}/errors": -1}}}}',
        f'{{"places": {{"{P0}": {{"resource": "fpga.intel.com/af-!!", "ports": ["{P0}"]}}}}}}',
        f'{{"places": {{"x": {{"resource": "", "ports": ["{P0}", "nobody"]}}}}, "given": {{"{P0}": []}}}}',
    ],
)
def test_state_that_somebody_has_edited_costs_no_more_than_time(bench: Callable[..., Bench], fpgas: Fpgas, text: str) -> None:
    fpgas.dfl("0000:3b:00.0")
    fpgas.host.write("/var/lib/deviceplugin/fpga/state.json", text)
    plugin = bench()
    plugin.source.wrong = {"dfl-port.0/afu_id": errno.EBUSY}
    plugin.look()
    plugin.source.wrong = {}
    for _ in range(2):
        plugin.judge(*plugin.look().values())
        plugin.judge()
        plugin.passes(SETTLE)
        plugin.judge()
        device = plugin.one()
        plugin.plugin.allocate([device])
    assert (device.resource, device.health) == (AF_NLB0, Health.HEALTHY)


def test_state_that_cannot_be_written_is_said_once_and_costs_no_device(
    bench: Callable[..., Bench], fpgas: Fpgas, caplog: pytest.LogCaptureFixture
) -> None:
    fpgas.dfl("0000:3b:00.0")
    fpgas.host.write("/var/lib/deviceplugin/fpga", "a file where the directory should be")
    plugin = bench()
    for _ in range(3):
        assert plugin.one().health is Health.HEALTHY
    assert len([record for record in caplog.records if "cannot be written" in record.getMessage()]) == 1


def port(number: int) -> Port:
    return Port(
        card=Card(id="c", driver=Driver.DFL, interface=INTERFACE), address="c", number=number, name=f"dfl-port.{number}", nodes=(f"/dev/{number}",)
    )


class Moves(RuleBasedStateMachine):
    """Cards of four ports, offered as ports or as a whole under changing names, against a kubelet that gives out what is listed healthy."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.places: dict[str, Place] = {}
        self.releases = Releases(SETTLE)
        self.leaving: list[str] = []
        self.resources = ["a", "a", "a", "a"]
        self.whole = ""
        self.listed: dict[tuple[str, str], frozenset[str]] = {}
        """What a container may be given: resource and id, and the ports behind it."""
        self.held: dict[tuple[str, str], frozenset[str]] = {}
        self.look()

    @rule(number=st.integers(0, 3), resource=st.sampled_from("abc"))
    def rename(self, number: int, resource: str) -> None:
        self.resources[number] = resource

    @rule(whole=st.sampled_from(["", "w"]))
    def change_mode(self, whole: str) -> None:
        self.whole = whole

    @rule()
    def look(self) -> None:
        ports = tuple(port(number) for number in range(4))
        offers = [Offer("c", self.whole, ports)] if self.whole else [Offer(p.id, self.resources[p.number], (p,)) for p in ports]
        done = plan(offers, self.places, self.releases.released())
        self.places, self.leaving = dict(done.places), [offer.id for offer in done.leaving]
        self.listed = {(offer.resource, offer.id): frozenset(place_of(offer).ports) for offer in done.listed}
        every = [one for offer in done.listed for one in place_of(offer).ports] + [one for offer in done.leaving for one in place_of(offer).ports]
        assert len(every) == len(set(every)), "a port is listed twice"
        waiting = [one for offer in offers if offer.id in done.waiting for one in place_of(offer).ports]
        assert {*every, *waiting} == {p.id for p in ports}, "a port is lost"

    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        if free := sorted(set(self.listed) - set(self.held)):
            one = data.draw(st.sampled_from(free))
            self.held[one] = self.listed[one]

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self.held:
            del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @rule()
    def view(self) -> None:
        self.releases.seen(self.leaving, {device for _, device in self.held}, self.now)

    @rule(seconds=st.sampled_from([1.0, SETTLE]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        self.releases = Releases(SETTLE)
        self.leaving = []
        self.look()

    @invariant()
    def no_port_is_held_twice(self) -> None:
        held = [one for ports in getattr(self, "held", {}).values() for one in ports]
        assert len(held) == len(set(held))

    @invariant()
    def nothing_held_is_free(self) -> None:
        if not hasattr(self, "held"):
            return
        held = {one for key, ports in self.held.items() for one in ports}
        free = {one for key, ports in self.listed.items() if key not in self.held for one in ports}
        assert not held & free


TestMoves = Moves.TestCase
TestMoves.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
