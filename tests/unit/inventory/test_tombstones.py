# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from deviceplugin.health import HealthBook
from deviceplugin.inventory import GONE, Inventory
from deviceplugin.model import Device, Health, Rule, Sharing
from tests.helpers.core import WIDGET, Shelf, sick


def test_a_device_that_vanishes_stays_unhealthy_while_it_is_held() -> None:
    shelf = Shelf()
    shelf.held = lambda _resource, _id: True
    shelf.put(Device("a"), Device("b"))
    shelf.put(Device("b"))
    assert shelf.listed() == {"a": f"unhealthy:{GONE}", "b": "healthy"}
    shelf.clock.advance(3000)
    shelf.bury()
    assert "a" in shelf.listed()
    assert shelf.inventory.tombstones == 1


def test_it_goes_when_nobody_holds_it_but_not_before_the_view_can_have_settled() -> None:
    shelf = Shelf()
    shelf.held = lambda _resource, _id: False
    shelf.put(Device("a"), Device("b"))
    shelf.put(Device("b"))
    assert "a" in shelf.listed(), "an Allocate may be under way"
    shelf.clock.advance(5)
    shelf.bury()
    assert shelf.listed() == {"b": "healthy"}
    assert shelf.inventory.tombstones == 0


def test_where_the_kubelet_does_not_say_it_goes_after_the_limit() -> None:
    shelf = Shelf(limit=600)
    shelf.put(Device("a"), Device("b"))
    shelf.put(Device("b"))
    shelf.clock.advance(599)
    shelf.bury()
    assert "a" in shelf.listed()
    shelf.clock.advance(1)
    shelf.bury()
    assert "a" not in shelf.listed()


def test_a_device_that_comes_back_is_what_it_was() -> None:
    shelf = Shelf()
    shelf.put(Device("a"), Device("b"))
    first = shelf.snapshot()
    shelf.put(Device("b"))
    shelf.put(Device("a"), Device("b"))
    assert shelf.listed() == {"a": "healthy", "b": "healthy"}
    assert shelf.snapshot().payload == first.payload
    assert shelf.inventory.tombstones == 0


def test_a_device_whose_shares_are_held_stays_with_all_of_them() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=2, rename="example.com/shared")})
    asked = []

    def held(resource: str, device_id: str) -> bool:
        asked.append((resource, device_id))
        return device_id == "a::1"

    shelf.held = held
    shelf.put(Device("a"), Device("b"))
    shelf.put()
    shelf.clock.advance(10)
    shelf.bury()
    assert shelf.listed("example.com/shared") == dict.fromkeys(["a::0", "a::1"], f"unhealthy:{GONE}")
    assert set(asked) == {("example.com/shared", f"{one}::{k}") for one in "ab" for k in (0, 1)}


def test_one_unknown_share_keeps_the_device() -> None:
    shelf = Shelf(sharing={WIDGET: Sharing(replicas=2)})
    shelf.held = lambda _resource, device_id: None if device_id == "a::0" else False
    shelf.put(Device("a"))
    shelf.put()
    shelf.clock.advance(10)
    shelf.bury()
    assert list(shelf.listed()) == ["a::0", "a::1"]


def test_what_is_gone_is_gone_whatever_its_unit_says() -> None:
    shelf = Shelf()
    shelf.put(Device("a", unit="card"), Device("b", unit="card"))
    shelf.put(Device("b", unit="card"))
    assert shelf.listed() == {"a": f"unhealthy:{GONE}", "b": "healthy"}
    shelf.put(sick("b", unit="card"))
    assert shelf.listed() == {"a": f"unhealthy:{GONE}", "b": "unhealthy:broken"}


def test_burying_publishes_only_what_it_changes() -> None:
    shelf = Shelf()
    shelf.put(Device("a"), Device("b"))
    shelf.put(Device("b"))
    before = shelf.inventory.snapshots
    shelf.bury()
    assert shelf.inventory.snapshots is before
    shelf.held = lambda _resource, _id: False
    shelf.clock.advance(5)
    shelf.bury()
    assert shelf.inventory.snapshots is not before
    assert shelf.snapshot().generation == before[WIDGET].generation + 1


def test_when_all_devices_are_gone_the_empty_list_is_told() -> None:
    shelf = Shelf()
    shelf.held = lambda _resource, _id: False
    shelf.put(Device("a"))
    shelf.put()
    shelf.clock.advance(5)
    shelf.bury()
    assert (shelf.snapshot().rows, shelf.snapshot().payload) == ((), b"")
    assert shelf.snapshot().generation == 3


@pytest.mark.parametrize("found_again", [True, False])
def test_a_new_inventory_of_the_same_plugin_knows_what_was_there(found_again: bool) -> None:
    old, new = Shelf(), Shelf()
    old.put(Device("a"), Device("b"))
    old.put(Device("a"))
    listed = old.snapshot()
    new.inventory.inherit(old.inventory)
    assert new.snapshot() is listed
    new.put(*([Device("a")] if found_again else []))
    expected = {"a": "healthy" if found_again else f"unhealthy:{GONE}", "b": f"unhealthy:{GONE}"}
    assert new.listed() == expected
    assert new.snapshot().generation == listed.generation + (not found_again), "streams that go on must see a change, and only a change"
    old.put(Device("z"))
    assert new.listed() == expected


def test_an_unhealthy_unit_that_vanishes_is_not_waited_for() -> None:
    shelf = Shelf(book=HealthBook({"default": Rule(seconds=30.0)}))
    shelf.put(sick("a"), Device("b"))
    shelf.put(Device("a"), Device("b"))
    assert shelf.inventory.book.due(shelf.clock()) == 30.0
    shelf.put(Device("b"))
    assert shelf.inventory.book.due(shelf.clock()) is None


def test_nothing_can_be_published_before_something_was_discovered() -> None:
    inventory = Inventory("widgets")
    assert inventory.bury(lambda _resource, _id: False) == ()
    assert inventory.snapshots == {}


def test_a_device_that_moves_to_a_resource_of_the_same_advertised_name_is_listed_once() -> None:
    shelf = Shelf()
    shelf.put(Device("a"))
    shelf.inventory.share({WIDGET: Sharing(rename="example.com/new")})
    shelf.put(Device("a", resource="example.com/new"))
    assert [(row.id, row.health) for row in shelf.snapshot("example.com/new").rows] == [("a", Health.HEALTHY)]
