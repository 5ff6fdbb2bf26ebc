# SPDX-License-Identifier: Apache-2.0
"""What makes a port unwell, and that it gets well again: values change while the plugin runs."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from deviceplugin.testing.fpga import DEAD, INTERFACE, NLB0, NLB3, Fpgas, SimulatedCard
from tests.unit.fpga.bench import Bench

P0, P1, OTHER = "0000-3b-00.0-p0", "0000-3b-00.0-p1", "0000-5e-00.0-p0"
GOOD = ("healthy", "")


@pytest.fixture
def card(fpgas: Fpgas) -> SimulatedCard:
    fpgas.dfl("0000:5e:00.0")
    return fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])


def compat(card: SimulatedCard, value: str) -> None:
    for place in range(2):
        card.write(f"dfl-fme-region.{card.first_region + place}/fpga_region/region{card.first_region + 1 + place}/compat_id", value)


def afu(card: SimulatedCard, value: str) -> None:
    card.ports[0].afu = value


CARD_FAULTS: dict[str, tuple[Callable[[SimulatedCard], None], Callable[[SimulatedCard], None]]] = {
    "catfatal": (lambda c: c.write("errors/catfatal_errors", "0x4"), lambda c: c.write("errors/catfatal_errors", "0x0")),
    "temperature": (lambda c: c.write("hwmon/hwmon3/temp1_crit_alarm", "1"), lambda c: c.write("hwmon/hwmon3/temp1_crit_alarm", "0")),
    "manager": (lambda c: c.manager("write complete error"), lambda c: c.manager("operating")),
    "fme-errors": (lambda c: c.write("errors/fme_errors", "0x2"), lambda c: c.write("errors/fme_errors", "0x0")),
    "dead": (lambda c: compat(c, DEAD), lambda c: compat(c, INTERFACE)),
}
PORT_FAULTS: dict[str, tuple[Callable[[SimulatedCard], None], Callable[[SimulatedCard], None]]] = {
    "power": (lambda c: c.ports[0].write("power_state", "0x6"), lambda c: c.ports[0].write("power_state", "0x0")),
    "errors": (lambda c: c.ports[0].write("errors/errors", "0x10"), lambda c: c.ports[0].write("errors/errors", "0x0")),
    "dead": (lambda c: afu(c, DEAD), lambda c: afu(c, NLB0)),
    "node": (
        lambda c: c.host.remove(c.ports[0].node),
        lambda c: c.host.populate({c.ports[0].node: {"device": f"c 238:{c.ports[0].index}"}}),
    ),
}


@pytest.mark.parametrize("cause", CARD_FAULTS)
def test_fault_of_a_card_is_one_of_all_its_ports_and_ends(bench: Callable[..., Bench], card: SimulatedCard, cause: str) -> None:
    plugin = bench()
    assert set(plugin.health().values()) == {GOOD}
    breaks, mends = CARD_FAULTS[cause]
    breaks(card)
    assert plugin.health() == {P0: ("unhealthy", cause), P1: ("unhealthy", cause), OTHER: GOOD}
    mends(card)
    assert set(plugin.health().values()) == {GOOD}


@pytest.mark.parametrize("cause", PORT_FAULTS)
def test_fault_of_a_port_is_its_own_and_ends(bench: Callable[..., Bench], card: SimulatedCard, cause: str) -> None:
    plugin = bench()
    assert set(plugin.health().values()) == {GOOD}
    breaks, mends = PORT_FAULTS[cause]
    breaks(card)
    assert plugin.health() == {P0: ("unhealthy", cause), P1: GOOD, OTHER: GOOD}
    mends(card)
    assert set(plugin.health().values()) == {GOOD}


def test_errors_that_were_there_before_are_no_news(bench: Callable[..., Bench], card: SimulatedCard) -> None:
    card.ports[0].write("errors/errors", "0x3")
    plugin = bench()
    assert plugin.health()[P0] == GOOD
    card.ports[0].write("errors/errors", "0x13")
    assert plugin.look()[P0].cause == "errors: the port has new errors, 0x10"
    card.ports[0].write("errors/errors", "0x0")
    assert plugin.health()[P0] == GOOD
    card.ports[0].write("errors/errors", "0x1")  # cleared, and here again
    assert plugin.health()[P0] == ("unhealthy", "errors")


def test_a_restart_of_the_daemon_forgives_nothing(bench: Callable[..., Bench], card: SimulatedCard) -> None:
    plugin = bench()
    plugin.look()
    plugin.look()
    card.ports[0].write("errors/errors", "0x10")
    plugin.restart()
    assert plugin.health()[P0] == ("unhealthy", "errors")


def test_a_reboot_does(bench: Callable[..., Bench], card: SimulatedCard, fpgas: Fpgas) -> None:
    plugin = bench()
    plugin.look()
    card.ports[0].write("errors/errors", "0x10")
    assert plugin.health()[P0] == ("unhealthy", "errors")
    fpgas.reboot()
    card.ports[0].write("errors/errors", "0x10")  # what is there when the plugin comes is what the boot left
    plugin.restart()
    assert plugin.health()[P0] == GOOD


def test_fatal_pci_errors_are_counted_from_where_they_were(bench: Callable[..., Bench], card: SimulatedCard) -> None:
    card.aer(4)
    plugin = bench()
    assert plugin.health()[P0] == GOOD
    card.aer(6)
    assert plugin.look()[P0].cause == "aer: 2 fatal PCI Express errors"
    assert plugin.health()[P0] == GOOD  # the framework keeps it for as long as the rule for aer says
    card.aer(0)  # the device was put in anew
    assert plugin.health()[P0] == GOOD
    card.aer(1)
    assert plugin.health()[P0] == ("unhealthy", "aer")
    assert plugin.plugin.recovery["aer"].seconds > 0


def test_a_port_in_reset_is_busy_and_stays_what_it_was(bench: Callable[..., Bench], card: SimulatedCard) -> None:
    plugin = bench(busyTimeout=60)
    before = plugin.look()[P0]
    plugin.source.wrong = {"dfl-port.1/afu_id": errno.EBUSY}  # the second card was found first: its ports are 1 and 2
    assert (plugin.health()[P0], plugin.look()[P0].resource) == (GOOD, before.resource)
    plugin.passes(61)
    assert plugin.health()[P0] == ("unknown", "busy")
    plugin.source.wrong = {}
    assert plugin.health()[P0] == GOOD
    plugin.source.wrong = {"dfl-port.1/afu_id": errno.EBUSY}
    assert plugin.health()[P0] == GOOD  # the time begins anew


def test_a_port_that_was_never_read_is_told_and_not_offered(bench: Callable[..., Bench], card: SimulatedCard) -> None:
    plugin = bench()
    plugin.source.wrong = {"dfl-port.1/afu_id": errno.EBUSY}
    assert set(plugin.look()) == {P1, OTHER}
    assert "never read" in plugin.skipped()[P0]
    plugin.source.wrong = {}
    assert plugin.health()[P0] == GOOD


def test_dead_card_that_was_never_seen_alive_has_no_name(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", [DEAD], interface=DEAD)
    plugin = bench()
    assert plugin.look() == {}
    assert "firmware has crashed" in plugin.skipped()[P0]
