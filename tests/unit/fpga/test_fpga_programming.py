# SPDX-License-Identifier: Apache-2.0
"""Ports get their function before a container starts: one at a time per card, verified, and after a crash anew."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from deviceplugin import Device, Health, Host, sysfs
from deviceplugin.plugins.fpga import CannotStart, Fpga, programming
from deviceplugin.plugins.fpga.programming import ProgrammingFailed, StillProgramming
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import INTERFACE, NLB0, NLB3, OTHER_INTERFACE, Fpgas, gbs, put_bitstream
from tests.unit.fpga.bench import AF_NLB0, AF_NLB3, REGION, Bench

STATE = "/var/lib/deviceplugin/fpga/programming"
WANT_NLB3 = {"functions": [{"afu": NLB3}]}


@pytest.fixture
def two(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost) -> Bench:
    """A card with two ports that have NLB0 and are to have NLB3."""
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    put_bitstream(machine, INTERFACE, NLB3)
    return bench(**WANT_NLB3)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deviceplugin.plugins.fpga._PREPARE", 0.0)
    monkeypatch.setattr(programming, "VERIFY", 0.0)


def settle(bench: Bench) -> None:
    """Waits until no job runs."""
    for thread in threading.enumerate():
        if thread.name.startswith("program-"):
            thread.join(5)
    assert not any(thread.name.startswith("program-") for thread in threading.enumerate())


def markers(bench: Bench) -> list[str]:
    try:
        return sorted(name for name in os.listdir(bench.fpgas.host.path(STATE)) if name.endswith(".programming"))
    except FileNotFoundError:
        return []


def test_port_is_offered_as_what_it_will_be(two: Bench) -> None:
    assert {one.resource for one in two.look().values()} == {AF_NLB3}
    assert two.ioctls.calls == []  # to look is not to touch


def test_programmed_once_and_verified(two: Bench) -> None:
    device = two.look()["0000-3b-00.0-p1"]
    two.plugin.prepare([device])
    assert [(node, port) for node, port, _ in two.ioctls.calls] == [("/dev/dfl-fme.0", 1)]
    assert two.ioctls.calls[0][2] == bytes.fromhex(NLB3) + b"\x5a" * 4096
    assert [port.afu for port in two.fpgas.cards[0].ports] == [NLB0, NLB3]
    two.plugin.prepare([device])  # the container starts again
    assert len(two.ioctls.calls) == 1
    assert markers(two) == []
    assert two.ioctls.opened == set()


def test_all_ports_of_a_container_are_programmed_though_the_first_is_already(two: Bench) -> None:
    two.fpgas.cards[0].ports[0].afu = NLB3
    two.plugin.prepare(list(two.look().values()))
    assert [port for _, port, _ in two.ioctls.calls] == [1]


class Locks:
    """Counts who asks for a lock of a card, before they get it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Semaphore(0)
        self.real = fcntl.flock
        monkeypatch.setattr(fcntl, "flock", self)

    def __call__(self, fd: int, operation: int) -> None:
        self.asked.release()
        self.real(fd, operation)

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.asked.acquire(timeout=5), "nobody asks for the lock"


def test_one_card_programs_one_port_at_a_time_and_two_cards_both(two: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    two.fpgas.dfl("0000:5e:00.0", [NLB0, NLB0])
    locks = Locks(monkeypatch)
    two.ioctls.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(two.plugin.prepare, list(two.look().values()))
        locks.wait(4)
        two.ioctls.gate.set()
        start.result(10)  # the recorder fails what programs two ports of one card at a time
    assert sorted((node, port) for node, port, _ in two.ioctls.calls) == [
        ("/dev/dfl-fme.0", 0),
        ("/dev/dfl-fme.0", 1),
        ("/dev/dfl-fme.1", 0),
        ("/dev/dfl-fme.1", 1),
    ]


def test_many_starts_at_once_program_once(two: Bench) -> None:
    devices = two.look()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: two.plugin.prepare([devices[f"0000-3b-00.0-p{n % 2}"]]), range(16)))
    assert sorted(port for _, port, _ in two.ioctls.calls) == [0, 1]


def test_long_programming_goes_on_while_the_kubelet_asks_again(two: Bench, impatient: None) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    two.ioctls.gate.clear()
    for _ in range(3):
        with pytest.raises(StillProgramming, match=r"0000-3b-00\.0-p0 is being programmed"):
            two.plugin.prepare([device])
    assert two.ioctls.entered.wait(5)
    assert two.look()["0000-3b-00.0-p0"].health is Health.HEALTHY  # a container is about to start with it
    two.ioctls.gate.set()
    settle(two)
    two.plugin.prepare([device])
    assert len(two.ioctls.calls) == 1


def test_port_in_reset_right_after_is_waited_for(two: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    real, busy = sysfs.read, [errno.EBUSY, errno.EBUSY]

    def read(host: Host, path: str) -> str | None:
        if two.ioctls.calls and busy:
            raise sysfs.SysfsError(path, os.strerror(busy.pop()))
        return real(host, path)

    monkeypatch.setattr(sysfs, "read", read)
    two.plugin.prepare([device])
    assert busy == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.EINVAL, errno.ENODEV])
def test_failure_makes_the_port_unwell_until_it_is_programmed(two: Bench, number: int) -> None:
    devices = two.look()
    device = devices["0000-3b-00.0-p0"]
    two.ioctls.fail = number
    with pytest.raises(ProgrammingFailed, match=os.strerror(number)):
        two.plugin.prepare([device])
    assert os.strerror(number) in two.fpgas.host.read(f"{STATE}/0000-3b-00.0-p0.programming")  # for whoever comes after a crash
    two.fpgas.cards[0].manager("write error")
    two.ioctls.gate.clear()  # what the plugin itself tries meanwhile takes time
    assert {one.id: (one.health.value, one.cause.partition(":")[0]) for one in two.look().values()} == {
        "0000-3b-00.0-p0": ("unhealthy", "program"),
        "0000-3b-00.0-p1": ("healthy", ""),
    }
    assert markers(two) == ["0000-3b-00.0-p0.programming"]
    two.ioctls.fail = 0
    two.ioctls.gate.set()
    two.plugin.prepare([device])
    two.fpgas.cards[0].manager("operating")
    assert two.well() == set(devices)
    assert markers(two) == []


def test_card_that_ends_up_with_something_else(two: Bench) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    two.ioctls.effect = NLB0
    with pytest.raises(ProgrammingFailed, match=f"should be {NLB3} then: it is '{NLB0}'"):
        two.plugin.prepare([device])
    assert markers(two) == ["0000-3b-00.0-p0.programming"]


def test_a_port_that_something_uses_is_not_touched(two: Bench) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    two.ioctls.opened.add("/dev/dfl-port.0")
    with pytest.raises(ProgrammingFailed, match="in use"):
        two.plugin.prepare([device])
    assert (two.ioctls.calls, markers(two)) == ([], [])
    two.ioctls.opened.clear()
    two.plugin.prepare([device])


def test_without_a_place_for_the_marker_no_card_is_touched(two: Bench, machine: SimulatedHost) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    machine.remove("/var/lib/deviceplugin/fpga")
    machine.write("/var/lib/deviceplugin/fpga", "a file")
    with pytest.raises(ProgrammingFailed, match=r"Not a directory|File exists"):
        two.plugin.prepare([device])
    assert two.ioctls.calls == []


def crashed(bench: Bench, port: str = "0000-3b-00.0-p0", afu: str = NLB3) -> None:
    """The daemon died while it programmed a port."""
    bench.fpgas.host.write(f"{STATE}/{port}.programming", json.dumps({"afu": afu, "card": "0000:3b:00.0", "failed": ""}))


@pytest.mark.parametrize("left", [NLB0, NLB3, "f" * 32, "0" * 32])
def test_after_a_crash_half_way_it_is_done_anew_whatever_the_port_tells(two: Bench, left: str) -> None:
    two.look()
    two.fpgas.cards[0].ports[0].afu = left
    crashed(two)
    two.restart()
    first = two.look()["0000-3b-00.0-p0"]
    assert (first.health, first.cause.partition(":")[0]) == (Health.UNHEALTHY, "program")
    settle(two)
    assert [port for _, port, _ in two.ioctls.calls] == [0]
    assert two.well() == {"0000-3b-00.0-p0", "0000-3b-00.0-p1"}


def test_a_container_that_waits_since_before_the_crash_gets_the_port_anew(two: Bench) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    two.fpgas.cards[0].ports[0].afu = NLB3  # as it looks, all is well
    crashed(two)
    two.plugin.prepare([device])
    assert len(two.ioctls.calls) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"afu": 7}', "\0"])
def test_marker_that_cannot_be_read_is_still_a_marker(two: Bench, machine: SimulatedHost, text: str) -> None:
    two.look()
    machine.write(f"{STATE}/0000-3b-00.0-p0.programming", text)
    assert two.look()["0000-3b-00.0-p0"].health is Health.UNHEALTHY
    settle(two)
    assert two.well() == {"0000-3b-00.0-p0", "0000-3b-00.0-p1"}


def test_what_fails_is_tried_less_and_less_often(two: Bench) -> None:
    two.look()
    crashed(two)
    two.ioctls.fail = errno.EIO
    tries = []
    for _ in range(100):
        two.look()
        settle(two)
        tries.append(len(two.ioctls.calls))
        two.passes(5)
    assert 4 <= tries[-1] <= 6


def test_check_on_the_command_line_touches_nothing(two: Bench, machine: SimulatedHost, host: Host) -> None:
    crashed(two)
    check = Fpga(two.plugin.config, host, ioctls=two.ioctls)
    check.start()
    found = {one.id: one for one in check.discover() if isinstance(one, Device)}
    check.stop()
    settle(two)
    assert found["0000-3b-00.0-p0"].health is Health.UNHEALTHY
    assert two.ioctls.calls == []
    assert os.listdir(machine.path("/var/lib/deviceplugin/fpga")) == ["programming"]
    assert markers(two) == ["0000-3b-00.0-p0.programming"]


def test_another_process_that_has_the_card_is_waited_for(two: Bench, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    with other_process(two.fpgas.host, "0000:3b:00.0"):
        locks = Locks(monkeypatch)
        with pytest.raises(StillProgramming):
            two.plugin.prepare([device])
        locks.wait(1)
        assert two.ioctls.calls == []
        two.fpgas.cards[0].ports[0].afu = NLB3  # it was the other one's to do
    settle(two)
    two.plugin.prepare([device])
    assert two.ioctls.calls == []


@contextmanager
def other_process(machine: SimulatedHost, card: str) -> Iterator[None]:
    os.makedirs(machine.path(STATE), exist_ok=True)
    with open(machine.path(f"{STATE}/{card}.lock"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize(
    ("content", "words"),
    [(gbs(INTERFACE, NLB3)[:-1], "sha256"), (gbs(OTHER_INTERFACE, NLB3), "interface"), (None, "No such file")],
    ids=["truncated", "for another card", "missing"],
)
def test_port_without_a_usable_bitstream_is_offered_to_nobody(two: Bench, machine: SimulatedHost, content: bytes | None, words: str) -> None:
    path = put_bitstream(machine, INTERFACE, NLB3)
    if content is None:
        machine.remove(path)
    else:
        put_bitstream(machine, INTERFACE, NLB3, content, digest="interface" in words)
    two.fpgas.cards[0].ports[1].afu = NLB3
    found = two.look()
    assert (found["0000-3b-00.0-p0"].health, found["0000-3b-00.0-p0"].cause.partition(":")[0]) == (Health.UNHEALTHY, "bitstream")
    assert words in found["0000-3b-00.0-p0"].cause
    assert found["0000-3b-00.0-p1"].health is Health.HEALTHY  # it has the function
    with pytest.raises(ProgrammingFailed, match=words):
        two.plugin.prepare([found["0000-3b-00.0-p0"]])
    assert (two.ioctls.calls, markers(two)) == ([], [])
    put_bitstream(machine, INTERFACE, NLB3)
    assert two.well() == set(found)


def test_bitstream_that_is_replaced_during_programming_changes_nothing(two: Bench, machine: SimulatedHost) -> None:
    device = two.look()["0000-3b-00.0-p0"]
    two.ioctls.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(two.plugin.prepare, [device])
        assert two.ioctls.entered.wait(5)
        put_bitstream(machine, INTERFACE, NLB3, gbs(INTERFACE, NLB3, b"another image"))
        two.ioctls.gate.set()
        start.result(10)
    assert two.ioctls.calls[0][2].endswith(b"\x5a" * 4096)


def test_region_mode_programs_what_the_configuration_says(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    put_bitstream(machine, INTERFACE, NLB3)
    plugin = bench(mode="region", functions=[{"afu": NLB3, "interface": INTERFACE, "address": "0000:3b:*", "ports": [1]}])
    devices = plugin.look()
    assert {one.resource for one in devices.values()} == {REGION}
    plugin.plugin.prepare(list(devices.values()))
    assert [port.afu for port in fpgas.cards[0].ports] == [NLB0, NLB3]


def test_first_function_that_matches_counts(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    fpgas.dfl("0000:5e:00.0", [NLB0], interface=OTHER_INTERFACE)
    plugin = bench(functions=[{"afu": NLB3, "ports": [1]}, {"afu": NLB0, "interface": INTERFACE}])
    found = {one.id: one.resource for one in plugin.look().values()}
    assert (found["0000-3b-00.0-p0"], found["0000-3b-00.0-p1"]) == (AF_NLB0, AF_NLB3)


def test_opae_is_programmed_with_its_own_driver(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost) -> None:
    fpgas.opae("0000:5e:00.0")
    put_bitstream(machine, OTHER_INTERFACE, NLB3)
    plugin = bench(**WANT_NLB3)
    plugin.plugin.prepare([plugin.one()])
    assert [(node, port) for node, port, _ in plugin.ioctls.calls] == [("/dev/intel-fpga-fme.0", 0)]


def test_card_whose_engine_has_no_file_cannot_be_programmed(two: Bench) -> None:
    two.fpgas.host.remove("/dev/dfl-fme.0")
    two.fpgas.cards[0].ports[1].afu = NLB3
    assert two.health() == {"0000-3b-00.0-p0": ("unhealthy", "node"), "0000-3b-00.0-p1": ("healthy", "")}


def test_function_that_was_taken_away_keeps_a_container_from_starting(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0])
    plugin = bench()
    device: Device = plugin.one()
    plugin.plugin.prepare([device])
    fpgas.cards[0].ports[0].afu = NLB3  # by somebody else, and nobody has looked yet
    with pytest.raises(CannotStart, match=f"should have the function {NLB0}, and has {NLB3}"):
        plugin.plugin.prepare([device])
