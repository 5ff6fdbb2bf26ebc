# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.health import LOOK_AGAIN, Damping, HealthBook, Sighting, UnitHealth
from deviceplugin.model import Health, Recovery, Rule

WELL = Sighting(Health.HEALTHY)
UNSURE = Sighting(Health.UNKNOWN, "no answer")
RULES = {
    "quiet": Rule(Recovery.QUIET, 60.0),
    "soon": Rule(Recovery.QUIET, 5.0),
    "reset": Rule(Recovery.RESET),
    "never": Rule(Recovery.NEVER),
}


def bad(cause: str, incarnation: str = "") -> Sighting:
    return Sighting(Health.UNHEALTHY, cause, incarnation)


def book(**damping: float) -> HealthBook:
    return HealthBook(RULES, Damping(flaps=int(damping.get("flaps", 100)), window=damping.get("window", 300), hold=damping.get("hold", 60)), "boot-1")


def play(one: HealthBook, *steps: tuple[float, Sighting]) -> list[str]:
    """What is advertised after each sighting."""
    found = [one.see("u", seen, now) for now, seen in steps]
    return [state.health.value + (f":{state.cause}" if state.cause else "") for state in found]


def test_without_a_rule_the_probe_is_believed() -> None:
    assert play(book(), (0, WELL), (1, bad("x")), (2, WELL), (3, UNSURE), (4, WELL)) == [
        "healthy",
        "unhealthy:x",
        "healthy",
        "unknown:no answer",
        "healthy",
    ]


def test_a_quiet_time_begins_with_the_first_good_word_and_anew_after_each_bad_one() -> None:
    steps = [(0.0, bad("quiet")), (10.0, WELL), (69.9, WELL), (69.95, bad("quiet")), (80.0, WELL), (139.9, WELL), (140.0, WELL)]
    assert play(book(), *steps) == [*["unhealthy:quiet"] * 6, "healthy"]


def test_not_knowing_ends_the_quiet_and_pardons_nothing() -> None:
    steps = [(0.0, bad("quiet")), (10.0, WELL), (60.0, UNSURE), (61.0, WELL), (120.0, WELL), (121.0, WELL)]
    assert play(book(), *steps) == [*["unhealthy:quiet"] * 5, "healthy"]


def test_only_a_reset_clears_what_a_reset_clears() -> None:
    steps = [(0.0, bad("reset", "1")), (1e6, Sighting(Health.HEALTHY, "", "1")), (1e6, WELL), (1e6 + 1, Sighting(Health.HEALTHY, "", "2"))]
    assert play(book(), *steps) == [*["unhealthy:reset"] * 3, "healthy"]


def test_a_fault_that_is_still_seen_after_a_reset_needs_another() -> None:
    steps = [(0.0, bad("reset", "1")), (1.0, bad("reset", "2")), (2.0, Sighting(Health.HEALTHY, "", "2")), (3.0, Sighting(Health.HEALTHY, "", "3"))]
    assert play(book(), *steps) == [*["unhealthy:reset"] * 3, "healthy"]


def test_what_is_never_forgiven_needs_an_operator() -> None:
    one = book()
    assert play(one, (0, bad("never", "1")), (1e9, Sighting(Health.HEALTHY, "", "2"))) == ["unhealthy:never"] * 2
    assert one.forgive("u") == "never"
    assert play(one, (1e9, WELL)) == ["healthy"]


def test_a_pardon_covers_what_was_and_not_what_is_seen_still() -> None:
    one = book()
    play(one, (0, bad("never")))
    assert one.forgive("u") == "never"
    assert one.dump()["units"] == {}
    assert play(one, (1, bad("never")), (2, WELL)) == ["unhealthy:never"] * 2


def test_only_a_fault_can_be_forgiven() -> None:
    one = book()
    assert one.forgive("u") is None
    play(one, (0, WELL))
    assert (one.forgive("u"), one.forgive("another")) == (None, None)


def test_the_fault_of_a_unit_that_is_gone_can_be_forgiven() -> None:
    one, again = book(), book()
    play(one, (0, bad("never")))
    again.load(one.dump())
    assert again.forgive("u") == "never"
    assert (again.get("u"), again.dump()["units"]) == (None, {})


@pytest.mark.parametrize(
    ("graver", "lesser"), [("never", "reset"), ("never", "quiet"), ("reset", "quiet"), ("reset", "soon"), ("quiet", "soon"), ("soon", "x")]
)
def test_a_lesser_fault_never_pardons_a_graver_one(graver: str, lesser: str) -> None:
    alone, masked = book(), book()
    ends = (WELL, 1.0), (WELL, 4.5), (WELL, 8.0)
    play(alone, (0, bad(graver, "1")), (1, bad(graver, "1")))
    assert play(masked, (0, bad(graver, "1")), (1, bad(lesser, "1"))) == [f"unhealthy:{graver}"] * 2
    for seen, after in ends:
        assert masked.see("u", seen, 1 + after).health is alone.see("u", seen, 1 + after).health


def test_a_graver_fault_takes_the_place_of_a_lesser_one() -> None:
    assert play(book(), (0, bad("x")), (1, bad("soon")), (2, bad("quiet")), (3, bad("reset")), (4, bad("never"))) == [
        "unhealthy:x",
        "unhealthy:soon",
        "unhealthy:quiet",
        "unhealthy:reset",
        "unhealthy:never",
    ]


def test_after_the_reset_that_clears_the_graver_fault_the_lesser_one_counts() -> None:
    steps = [(0.0, bad("reset", "1")), (1.0, bad("soon", "2")), (2.0, Sighting(Health.HEALTHY, "", "2")), (7.0, Sighting(Health.HEALTHY, "", "2"))]
    assert play(book(), *steps) == ["unhealthy:reset", "unhealthy:soon", "unhealthy:soon", "healthy"]


@pytest.mark.parametrize(
    ("rules", "cause", "recovery"),
    [
        ({"xid": "reset", "xid:79": "never", "default": "quiet"}, "xid:79", "never"),
        ({"xid": "reset", "xid:79": "never", "default": "quiet"}, "xid:13", "reset"),
        ({"xid": "reset", "default": "never"}, "ecc", "never"),
        ({"xid": "reset"}, "ecc", "quiet"),
    ],
)
def test_the_closest_rule_counts(rules: dict[str, str], cause: str, recovery: str) -> None:
    found = HealthBook({name: Rule(Recovery(one)) for name, one in rules.items()}).rule(cause)
    assert found.recovery is Recovery(recovery)


def test_a_unit_that_flaps_is_held_until_it_was_quiet() -> None:
    one = book(flaps=3, window=100, hold=20)
    steps = [(0.0, bad("x")), (1.0, WELL), (10.0, bad("x")), (11.0, WELL), (20.0, bad("x")), (21.0, WELL), (40.9, WELL), (41.0, WELL)]
    assert play(one, *steps) == [
        *["unhealthy:x", "healthy"] * 2,
        *["unhealthy:x"] * 3,
        "healthy",
    ]


def test_falls_from_before_the_window_do_not_count() -> None:
    one = book(flaps=2, window=10, hold=1000)
    assert play(one, (0, bad("x")), (1, WELL), (10, bad("x")), (11, WELL)) == ["unhealthy:x", "healthy"] * 2


def test_not_knowing_in_between_does_not_shorten_the_hold_of_a_unit_that_flaps() -> None:
    one = book(flaps=1, window=100, hold=20)
    assert play(one, (0, bad("x")), (1, UNSURE), (2, WELL), (21.9, WELL), (22, WELL)) == [*["unhealthy:x"] * 4, "healthy"]


def test_the_book_says_when_to_look_again() -> None:
    one = book()
    assert one.due(0.0) is None
    play(one, (0, bad("quiet")))
    assert one.due(5.0) == LOOK_AGAIN, "a quiet begins with a look that finds none of the fault"
    play(one, (10, WELL))
    assert one.due(15.0) == 55.0
    assert one.due(500.0) == 0.0
    one.see("v", bad("reset"), 10.0)
    one.see("v", WELL, 11.0)
    assert one.due(15.0) == 55.0, "a reset comes when it comes"
    play(one, (70, WELL))
    assert one.due(70.0) is None


def test_the_longer_a_fault_lasts_the_less_often_it_is_looked_for() -> None:
    one = book()
    play(one, (0, bad("quiet")), (7200, bad("quiet")))
    assert [one.due(age) for age in (0.0, 10.0, 60.0, 7200.0)] == [LOOK_AGAIN, LOOK_AGAIN, 6.0, 60.0]


def test_a_unit_that_is_gone_is_not_waited_for_and_not_quiet() -> None:
    one = book()
    play(one, (0, bad("quiet")), (10, WELL))
    one.absent({"other"})
    assert one.due(100.0) is None
    assert play(one, (100, WELL), (159, WELL), (160, WELL)) == ["unhealthy:quiet", "unhealthy:quiet", "healthy"]


@pytest.mark.parametrize(("boot", "left"), [("boot-1", {"never", "quiet", "reset"}), ("boot-2", {"never"})])
def test_faults_outlive_a_restart_and_only_those_for_good_a_reboot(boot: str, left: set[str]) -> None:
    old = book()
    for cause in ("never", "quiet", "reset"):
        old.see(cause, bad(cause, "1"), 10.0)
    old.see("well", WELL, 10.0)
    old.see("unsure", UNSURE, 10.0)
    new = HealthBook(RULES, Damping(), boot)
    new.load(json.loads(json.dumps(old.dump())))
    assert {unit for unit in ("never", "quiet", "reset", "well", "unsure") if new.get(unit)} == left
    for unit in left:
        assert new.get(unit) == old.get(unit)


def test_a_restart_does_not_shorten_the_quiet() -> None:
    old, new = book(), book()
    play(old, (0, bad("quiet")), (10, WELL))
    new.load(old.dump())
    assert play(new, (69, WELL), (128, WELL), (129, WELL)) == ["unhealthy:quiet", "unhealthy:quiet", "healthy"]


@pytest.mark.parametrize(
    "state",
    [
        {"boot_id": "boot-1", "units": []},
        {"boot_id": "boot-1", "units": {"a": {"cause": "x", "since": 1, "incarnation": "", "falls": []}, "b": {"cause": "x"}}},
        {"boot_id": "boot-1", "units": {"a": {"cause": "x", "since": 1, "incarnation": "", "falls": []}, "b": None}},
        {"boot_id": "boot-1", "units": {"a": {"cause": "x", "since": 1, "incarnation": "", "falls": []}, "b": {"cause": "x", "since": "?"}}},
    ],
)
def test_of_a_state_that_cannot_be_read_nothing_is_taken(state: dict[str, object]) -> None:
    one = book()
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        one.load(state)
    assert one.get("a") is None


def test_since_when_changes_only_with_the_health() -> None:
    one = book()
    assert [one.see("u", seen, now).since for now, seen in [(1.0, WELL), (2.0, WELL), (3.0, bad("quiet")), (4.0, WELL), (5.0, bad("soon"))]] == [
        1,
        1,
        3,
        3,
        3,
    ]


SIGHTINGS = st.builds(Sighting, st.sampled_from(Health), st.sampled_from(["", "quiet", "reset", "never", "x"]), st.sampled_from(["", "1", "2"]))


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), SIGHTINGS), max_size=12))
def test_a_clock_that_jumps_never_breaks_it_and_never_makes_bad_news_good(steps: list[tuple[float, Sighting]]) -> None:
    one = book(flaps=2)
    for now, seen in steps:
        found = one.see("u", seen, now)
        assert isinstance(found, UnitHealth)
        assert found.health is not Health.HEALTHY or seen.health is Health.HEALTHY
        assert found.health is Health.UNHEALTHY or seen.health is not Health.UNHEALTHY
        wait = one.due(now)
        assert wait is None or 0 <= wait <= 60
