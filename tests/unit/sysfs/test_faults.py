# SPDX-License-Identifier: Apache-2.0
"""What drivers do to those who read sysfs, through a real file system: one attribute that fails, or hangs, hides no other."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin import Host, sysfs
from deviceplugin.testing import SimulatedHost, fuse
from deviceplugin.testing.faulty_tree import FaultyTree

pytestmark = pytest.mark.skipif(fuse.missing() is not None, reason=str(fuse.missing()))

CARDS = [f"/sys/class/acme/card{number}" for number in range(4)]
STATES = [f"{card}/state" for card in CARDS]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultyTree, Host]]:
    machine = SimulatedHost(tmp_path_factory.mktemp("machine"))
    for number, card in enumerate(CARDS):
        machine.populate({f"/sys/devices/acme{number}/state": f"ok {number}\n", card: {"link": f"/sys/devices/acme{number}"}})
    tree = FaultyTree(machine.root)
    with tree.served() as root:
        yield tree, Host(root)


@pytest.fixture
def tree(served: tuple[FaultyTree, Host]) -> Iterator[FaultyTree]:
    yield served[0]
    for number in range(len(CARDS)):
        served[0].mend(f"/sys/devices/acme{number}/state")
        served[0].mend(f"/sys/devices/acme{number}")


@pytest.fixture
def host(served: tuple[FaultyTree, Host]) -> Host:
    return served[1]


def plain(found: list[str | sysfs.SysfsError | None]) -> list[object]:
    return [str(one) if isinstance(one, sysfs.SysfsError) else one for one in found]


def test_nothing_wrong(tree: FaultyTree, host: Host) -> None:
    assert sysfs.read_many(host, [*STATES, "/sys/none"]) == ["ok 0", "ok 1", "ok 2", "ok 3", None]
    assert sysfs.entries_many(host, ["/sys/class/acme", *CARDS]) == [["card0", "card1", "card2", "card3"], *[["state"]] * 4]
    assert sysfs.realpath_many(host, CARDS) == [f"/sys/devices/acme{number}" for number in range(4)]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO, errno.EACCES, errno.ENODATA, errno.EAGAIN])
def test_an_attribute_that_fails_is_an_error_beside_its_siblings(tree: FaultyTree, host: Host, number: int) -> None:
    tree.fail("/sys/devices/acme1/state", number)
    assert plain(sysfs.read_many(host, STATES)) == ["ok 0", f"{STATES[1]} cannot be read: {os.strerror(number)}", "ok 2", "ok 3"]
    with pytest.raises(sysfs.SysfsError, match=f"^{STATES[1]} cannot be read: "):
        sysfs.read(host, STATES[1])
    tree.mend("/sys/devices/acme1/state")
    assert sysfs.read(host, STATES[1]) == "ok 1"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR])
def test_one_that_goes_while_it_is_read_is_none(tree: FaultyTree, host: Host, number: int) -> None:
    tree.fail("/sys/devices/acme1/state", number)
    assert sysfs.read_many(host, STATES) == ["ok 0", None, "ok 2", "ok 3"]


def test_a_directory_that_fails_is_an_error_beside_its_siblings(tree: FaultyTree, host: Host) -> None:
    tree.fail("/sys/devices/acme2", errno.EIO)
    found = [str(one) if isinstance(one, sysfs.SysfsError) else one for one in sysfs.entries_many(host, CARDS)]
    assert found == [["state"], ["state"], f"{CARDS[2]} cannot be read: Input/output error", ["state"]]


def test_one_that_is_too_long_is_cut_off(tree: FaultyTree, host: Host) -> None:
    tree.lengthen("/sys/devices/acme3/state", 1 << 20)
    found = sysfs.read_many(host, STATES)
    assert found[:3] == ["ok 0", "ok 1", "ok 2"]
    assert found[3] == ("ok 3\n" * 1000)[: sysfs.MAX_BYTES].rstrip()


def test_one_that_hangs_keeps_its_batch_but_nobody_else(tree: FaultyTree, host: Host) -> None:
    # That this thread runs, and the tree answers, shows that the batch waits without the interpreter's lock.
    stuck = tree.hang("/sys/devices/acme2/state")
    found: list[str | sysfs.SysfsError | None] = []
    thread = threading.Thread(target=lambda: found.extend(sysfs.read_many(host, STATES)))
    thread.start()
    assert stuck.entered.wait(5)
    assert sysfs.read_many(host, STATES[:2]) == ["ok 0", "ok 1"]
    assert sysfs.entries_many(host, CARDS) == [["state"]] * 4
    assert not found
    stuck.release()
    thread.join(5)
    assert found == ["ok 0", "ok 1", "ok 2", "ok 3"]


def test_a_directory_that_hangs_keeps_its_batch_but_nobody_else(tree: FaultyTree, host: Host) -> None:
    stuck = tree.hang("/sys/devices/acme0")
    found: list[list[str] | sysfs.SysfsError] = []
    thread = threading.Thread(target=lambda: found.extend(sysfs.entries_many(host, CARDS)))
    thread.start()
    assert stuck.entered.wait(5)
    assert sysfs.read_many(host, STATES[1:]) == ["ok 1", "ok 2", "ok 3"]
    assert not found
    stuck.release()
    thread.join(5)
    assert found == [["state"]] * 4


class Interrupting(FaultyTree):
    """Its first reads are interrupted by a signal."""

    def __init__(self, directory: str, times: int) -> None:
        super().__init__(directory)
        self.left = times

    def read(self, path: str) -> bytes:
        if self.left:
            self.left -= 1
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGUSR1)
            raise InterruptedError(errno.EINTR, "a signal came")
        return super().read(path)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGUSR1, before)


def test_a_read_that_a_signal_interrupts_is_made_again(tmp_path: Path, heard: list[int]) -> None:
    SimulatedHost(tmp_path).populate({"/a": "1", "/b": "2"})
    tree = Interrupting(str(tmp_path), 3)
    with tree.served() as root:
        assert sysfs.read_many(Host(root), ["/a", "/b"]) == ["1", "2"]
    assert tree.left == 0
    assert len(heard) == 3


def test_what_a_signals_handler_raises_ends_the_batch(tmp_path: Path, heard: list[int]) -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGUSR1, stop)
    SimulatedHost(tmp_path).populate({"/a": "1", "/b": "2"})
    tree = Interrupting(str(tmp_path), 1)
    with tree.served() as root:
        with pytest.raises(KeyboardInterrupt):
            sysfs.read_many(Host(root), ["/a", "/b"])
        assert sysfs.read_many(Host(root), ["/a", "/b"]) == ["1", "2"]


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.integers(0, 3), st.sampled_from([errno.EBUSY, errno.EIO, errno.EACCES, errno.ENOENT, errno.ENOMEM])))
def test_any_faults_are_those_of_their_files_alone(served: tuple[FaultyTree, Host], faults: Mapping[int, int]) -> None:
    tree, host = served
    for number, fault in faults.items():
        tree.fail(f"/sys/devices/acme{number}/state", fault)
    try:
        expected = [
            (None if faults[number] == errno.ENOENT else f"{path} cannot be read: {os.strerror(faults[number])}")
            if number in faults
            else f"ok {number}"
            for number, path in enumerate(STATES)
        ]
        assert plain(sysfs.read_many(host, STATES)) == expected
    finally:
        for number in faults:
            tree.mend(f"/sys/devices/acme{number}/state")
