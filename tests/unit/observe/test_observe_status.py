# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import datetime
import json
import time
from collections import deque

import msgspec

from deviceplugin.inventory import Transition
from deviceplugin.kubelet.podresources import Holder, Holdings
from deviceplugin.model import Device, Health, Skipped
from deviceplugin.observe.status import Clock, ContainerStatus, Status, take
from tests.unit.observe.told import Make


def test_the_json_has_every_device_with_health_place_and_facts(make: Make) -> None:
    daemon = make(
        Device("b", unit="card", health=Health.UNHEALTHY, cause="xid: 79", numa_nodes=[1], attributes={"model": "T4"}, capacity={"memory": 16}),
        Device("a", numa_nodes=[0]),
        Skipped("0000:01:00.0", "bound to vfio-pci"),
    )
    picture = json.loads(msgspec.json.encode(take(daemon)))
    assert (picture["version"], picture["node"], picture["ready"]) == ("v1", "node-1", False)
    (plugin,) = picture["plugins"]
    assert plugin["skipped"] == [{"what": "0000:01:00.0", "reason": "bound to vfio-pci"}]
    (resource,) = picture["resources"]
    assert (resource["name"], resource["plugin"], resource["role"], resource["phase"]) == ("example.com/told", "told", "active", "down")
    assert (resource["healthy"], resource["unhealthy"], resource["unknown"], resource["replicas"]) == (1, 1, 0, 1)
    a, b = resource["devices"]
    assert (a["id"], a["health"], a["numaNodes"], a["heldBy"]) == ("a", "healthy", [0], None)
    assert (b["unit"], b["health"], b["cause"], b["attributes"], b["capacity"]) == ("card", "unhealthy", "xid: 79", {"model": "T4"}, {"memory": 16})
    (event,) = picture["events"]
    assert (event["unit"], event["before"], event["after"]) == ("card", "", "unhealthy")


def test_what_is_encoded_can_be_decoded_again(make: Make) -> None:
    picture = take(make(Device("a", attributes={"model": "T4"})))
    assert msgspec.json.decode(msgspec.json.encode(picture), type=Status) == picture


def test_bytes_that_are_no_text_do_not_take_the_page_away(make: Make) -> None:
    odd = "\udcff\n"
    daemon = make(Device("a", unit=odd, health=Health.UNHEALTHY, cause=odd, attributes={"m": odd}, capacity={odd: 1}), Device(odd), Skipped(odd, odd))
    daemon.config_error = odd
    picture = msgspec.json.decode(msgspec.json.encode(take(daemon)), type=Status)
    assert picture.resources[0].devices[0].cause == "\\udcff\n"
    assert len(picture.plugins[0].skipped) == 2


def test_holders_are_unknown_until_the_kubelet_spoke_and_named_after(make: Make) -> None:
    daemon = make(Device("a"), Device("b"))
    assert take(daemon).resources[0].devices[0].held_by is None
    holder = Holder("default", "trainer", "main")
    daemon.podresources.stop()
    daemon.podresources.holdings.set(Holdings({("example.com/told", "a"): (holder,)}, time.monotonic(), ""))
    a, b = take(daemon).resources[0].devices
    assert a.held_by == (ContainerStatus("default", "trainer", "main"),)
    assert b.held_by == ()


def test_monotonic_times_become_wall_times_as_of_one_moment() -> None:
    clock = Clock(monotonic=1000.0, wall=86400.0)
    assert clock.age(940.0) == 60.0
    assert clock.time(940.0) == datetime.datetime(1970, 1, 1, 23, 59, tzinfo=datetime.UTC)


def test_a_time_of_before_a_reboot_counts_as_now() -> None:
    clock = Clock(monotonic=10.0, wall=86400.0)
    assert clock.age(5000.0) == 0.0
    assert clock.time(5000.0) == clock.time(10.0)


def test_a_unit_that_is_well_at_first_sight_is_no_event(make: Make) -> None:
    daemon = make(Device("a"))
    assert take(daemon).events == ()
    daemon.events = deque([Transition(time.monotonic(), "told", "a", Health.UNHEALTHY, Health.HEALTHY, "")])
    assert [one.before for one in take(daemon).events] == ["unhealthy"]


def test_a_standby_says_for_whom_it_waits(make: Make) -> None:
    make(Device("a"))
    (resource,) = take(make(Device("a"))).resources
    assert resource.role == "standby"
    assert resource.waits_for.startswith("pid ")
    assert (resource.phase, resource.error) == ("", "")
