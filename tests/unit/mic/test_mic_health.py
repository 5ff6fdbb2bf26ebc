# SPDX-License-Identifier: Apache-2.0
"""Every word of every driver, and the way back from each."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import Health
from deviceplugin.health import Damping, HealthBook
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Inventory
from deviceplugin.plugins.mic.state import WORDS, Driver, Phase, State, judge, parse
from deviceplugin.tally import Tally
from tests.unit.mic.conftest import Make

MANUAL = (Path(__file__).parents[3] / "docs/mic.md").read_text(encoding="utf-8")
EVERY = [(driver, word) for driver, words in WORDS.items() for word in words]


@pytest.mark.parametrize(("driver", "word"), EVERY)
def test_only_online_is_healthy_and_each_word_is_left_again(make: Make, driver: Driver, word: str) -> None:
    rig = make(driver.value)
    card = rig.mics.add()
    other = rig.mics.add()
    rig.mics.set(card, word)
    (sick,) = [device for device in rig.devices() if device.attributes["pci_address"] == card.address]
    expected = (Health.HEALTHY, "") if word == "online" else (Health.UNHEALTHY, f"state: {word}")
    assert (sick.health, sick.cause) == expected
    rig.mics.set(card, "online")
    assert {device.health for device in rig.devices()} == {Health.HEALTHY}
    assert other.word == "online"


@pytest.mark.parametrize(("driver", "word"), EVERY)
@pytest.mark.parametrize("around", ["{}", "{}\n", " {} \n"])
def test_newlines_do_not_matter(driver: Driver, word: str, around: str) -> None:
    assert parse(driver, around.format(word)) is WORDS[driver][word]


def test_the_words_of_one_driver_are_not_anothers() -> None:
    assert parse(Driver.MPSS3, "reset_failed") is parse(Driver.KERNEL, "reset failed") is parse(Driver.MPSS4, "lost") is Phase.STRANGE
    assert parse(Driver.MPSS3, "shutdown") is Phase.MOVING
    assert parse(Driver.MPSS4, "shutdown") is Phase.STOPPED


def test_what_is_ready_is_well_where_it_will_be_booted(make: Make) -> None:
    for flavour, options in (("kernel", {}), ("mpss4", {}), ("mpss3", {"boot": {"image": "/boot/bzImage"}})):
        rig = make(flavour, prepare="boot", **options)
        rig.mics.add(word="ready")
        assert list(rig.health().values()) == ["healthy"]
        rig.mics.set(rig.mics.cards[0], "resetting")
        assert list(rig.health().values()) == ["unhealthy:state: resetting"]
    rig = make("mpss3", prepare="boot")
    rig.mics.add(word="ready")
    assert list(rig.health().values()) == ["unhealthy:state: ready"], "nobody has said what to boot"


@pytest.mark.parametrize(
    ("attribute", "text", "expected"),
    [
        ("scif_status", "online\n", ""),
        ("scif_status", "sleeping\n", ""),
        ("scif_status", "stopped\n", "scif: stopped"),
        ("scif_status", "not present\n", "scif: not present"),
        ("shutdown_status", "nop\n", ""),
        ("shutdown_status", "crashed\n", "shutdown: crashed"),
        ("shutdown_status", "poweroff\n", "shutdown: poweroff"),
        ("shutdown_status", "\x07\n", "shutdown: ?"),
    ],
)
def test_online_is_not_all(make: Make, attribute: str, text: str, expected: str) -> None:
    rig = make("mpss3" if attribute == "scif_status" else "kernel")
    card = rig.mics.add()
    rig.mics.say(card, attribute, text)
    assert [device.cause for device in rig.devices()] == [expected]


def test_a_crash_between_two_looks_is_seen_and_passes(make: Make) -> None:
    rig = make("mpss3")
    card = rig.mics.add()
    now = 0.0
    hooks = Hooks(rig.plugin, "mic", Tally())
    inventory = Inventory("mic", book=HealthBook(rig.plugin.recovery, Damping()), clock=lambda: now)

    def advertised() -> str:
        inventory.update(hooks.call("discover"), hooks)
        (row,) = inventory.snapshots["intel.com/mic"].rows
        return row.health.value + row.cause

    assert advertised() == "healthy"
    rig.mics.crash(card)
    assert advertised() == "unhealthycrash"
    assert advertised() == "unhealthycrash"
    now = 31.0
    assert advertised() == "healthy"
    hooks.close()


@given(st.sampled_from(Driver), st.text(max_size=40), st.text(max_size=80), st.text(max_size=80), st.text(max_size=80), st.booleans())
def test_no_word_makes_more_than_a_short_line(driver: Driver, word: str, message: str, shutdown: str, scif: str, boots: bool) -> None:
    state = State(word.strip(), parse(driver, word), message, shutdown, scif)
    found = judge(state, boots=boots)
    assert found.cause.isprintable()
    assert len(found.cause) < 120
    if found.health is Health.HEALTHY:
        assert word.strip() in ("online", "ready", "offline")


def test_the_manual_lists_every_word() -> None:
    section = MANUAL.split("\n## Health\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")]
    said = {(driver, words.strip("`")): phase for words, *cells in rows for driver, phase in zip(Driver, cells, strict=True)}
    meaning = {Phase.ONLINE: "healthy", Phase.READY: "ready", Phase.MOVING: "passing", Phase.STOPPED: "stopped", Phase.FAILED: "failed"}
    everything = {word for words in WORDS.values() for word in words}
    expected = {(driver, word): meaning.get(WORDS[driver].get(word, Phase.STRANGE), "") for driver in Driver for word in everything}
    assert said == expected
