# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import gc
import itertools
import logging
import os
import socket
import threading
import uuid
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.events import Change, Events, Kind, Uevent, coalesce, uevents
from deviceplugin.events.uevents import Uevents, parse_uevent
from deviceplugin.model import Host

USB = (
    b"add@/devices/pci0000:00/0000:00:14.0/usb1/1-2\0ACTION=add\0DEVPATH=/devices/pci0000:00/0000:00:14.0/usb1/1-2\0SUBSYSTEM=usb\0MAJOR=189\0"
    b"MINOR=4\0DEVNAME=bus/usb/001/005\0DEVTYPE=usb_device\0PRODUCT=46d/c52b/1211\0TYPE=0/0/0\0BUSNUM=001\0DEVNUM=005\0SEQNUM=4711\0"
)


def test_a_uevent_is_parsed() -> None:
    event = parse_uevent(USB)
    assert event is not None
    assert (event.action, event.devpath) == ("add", "/devices/pci0000:00/0000:00:14.0/usb1/1-2")
    assert event.properties["DEVNAME"] == "bus/usb/001/005"
    assert len(event.properties) == 12


@pytest.mark.parametrize("data", [b"", b"\0", b"libudev\0\xfe\xed\xca\xfe", b"add", b"add@relative\0", b"@/devices/x\0", b"\xff@\xff"])
def test_what_is_no_uevent_is_none(data: bytes) -> None:
    assert parse_uevent(data) is None


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    event = parse_uevent(data)
    assert event is None or (event.action and event.devpath.startswith("/"))


text = st.text(st.characters(blacklist_characters="\0=@", blacklist_categories=["Cs"]), min_size=1)


@given(text, text, st.dictionaries(text, st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))))
def test_what_the_kernel_writes_comes_back(action: str, path: str, properties: dict[str, str]) -> None:
    data = "\0".join([f"{action}@/{path}", *(f"{k}={v}" for k, v in properties.items()), ""]).encode()
    assert parse_uevent(data) == Uevent(action, f"/{path}", properties)


class Netlink:
    """In place of the kernel's socket: what ``recvfrom`` gives, one after the other."""

    def __init__(self, script: Iterable[tuple[bytes, tuple[int, int]] | OSError]) -> None:
        self.script = list(script)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if not self.script:
            raise BlockingIOError
        step = self.script.pop(0)
        if isinstance(step, OSError):
            raise step
        return step

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def hearing(monkeypatch: pytest.MonkeyPatch, *script: tuple[bytes, tuple[int, int]] | OSError) -> Uevents:
    monkeypatch.setattr(socket, "socket", lambda *_: Netlink(script))
    return Uevents(["usb"])


def test_only_the_subsystems_asked_for_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = USB.replace(b"SUBSYSTEM=usb", b"SUBSYSTEM=net")
    assert hearing(monkeypatch, (other, (0, 1)), (USB, (0, 1))).receive() == [parse_uevent(USB)]


def test_a_process_that_poses_as_the_kernel_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hearing(monkeypatch, (USB, (4242, 1)), (USB, (4242, 0))).receive() == []


def test_uevents_that_were_dropped_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = hearing(monkeypatch, OSError(errno.ENOBUFS, "No buffer space available"), (USB, (0, 1))).receive()
    assert heard == [Change("", "", Kind.LOST), parse_uevent(USB)]


def test_any_other_error_of_the_socket_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="no more"):
        hearing(monkeypatch, OSError(errno.EIO, "no more")).receive()


def synthetic() -> Path:
    """A device of which the kernel can be asked for an event."""
    path = Path("/sys/class/mem/null/uevent")
    if not os.access(path, os.W_OK):
        pytest.skip("this kernel cannot be asked for an event: /sys/class/mem/null/uevent is not writable")
    if Path("/proc/self/ns/user").stat().st_ino != uevents._FIRST_USER_NAMESPACE:
        pytest.skip("the kernel sends no uevents into a user namespace")
    return path


def test_the_kernels_own_event_arrives() -> None:
    path, cookie = synthetic(), str(uuid.uuid4())
    events = Events(Host(), subsystems=["mem"])
    path.write_text(f"change {cookie} XID=79")
    stream = iter(events)
    event = next(e for batch in stream for e in batch if isinstance(e, Uevent) and e.properties.get("SYNTH_UUID") == cookie)
    assert (event.action, event.devpath) == ("change", "/devices/virtual/mem/null")
    assert event.properties["SYNTH_ARG_XID"] == "79"
    events.close()
    assert list(stream) == []


def test_a_path_below_the_hosts_root_is_watched(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    events = Events(Host(root=str(tmp_path)), paths=["/dev", "/sys/class/fpga"])
    (tmp_path / "dev" / "fuse").touch()
    assert next(iter(events)) == [Change(str(tmp_path / "dev"), "fuse", Kind.CREATED)]
    events.close()


def test_closing_ends_the_iteration_of_another_thread(tmp_path: Path) -> None:
    events = Events(Host(), paths=[str(tmp_path)], subsystems=["no such subsystem"])
    batches: list[object] = []
    first = threading.Event()

    def follow() -> None:
        for batch in events:
            batches.append(batch)
            first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    (tmp_path / "a").touch()
    assert first.wait(5)
    events.close()
    events.close()
    thread.join(5)
    assert not thread.is_alive()
    assert len(batches) == 1


def test_an_iteration_that_is_given_up_leaves_nothing_open(tmp_path: Path) -> None:
    gc.collect()
    before = psutil.Process().num_fds()
    events = Events(Host(), paths=[str(tmp_path)], subsystems=["usb"])

    def watch() -> Generator[object, None, None]:
        yield from events

    (tmp_path / "a").touch()
    looking = watch()
    next(looking)
    assert psutil.Process().num_fds() == before + 3
    looking.close()
    assert psutil.Process().num_fds() == before


def test_without_uevents_paths_are_watched_and_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(socket, "socket", refuse)
    with caplog.at_level(logging.WARNING):
        events = Events(Host(), paths=[str(tmp_path)], subsystems=["usb", "pci"])
        (tmp_path / "a").touch()
        assert next(iter(events)) == [Change(str(tmp_path), "a", Kind.CREATED)]
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("no uevents of usb, pci")


def test_in_a_user_namespace_the_log_says_why_nothing_arrives(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(uevents, "_FIRST_USER_NAMESPACE", 1)
    with caplog.at_level(logging.WARNING):
        Events(Host(), subsystems=["usb"]).close()
    assert ["user namespace" in r.getMessage() for r in caplog.records] == [True]


class World:
    """A clock and what happens when: ``wait`` moves the one until the other."""

    def __init__(self, happenings: Iterable[float]) -> None:
        self.now = 0.0
        self.happenings = sorted(happenings)

    def wait(self, timeout: float | None) -> list[float] | None:
        if not self.happenings and timeout is None:
            return None
        until = float("inf") if timeout is None else self.now + timeout
        if self.happenings and self.happenings[0] <= until:
            self.now = max(self.now, self.happenings[0])
            ready = [h for h in self.happenings if h <= self.now]
            del self.happenings[: len(ready)]
            return ready
        self.now = until
        return []

    def told(self, settle: float) -> list[tuple[float, list[float]]]:
        return [(self.now, batch) for batch in coalesce(self.wait, settle, lambda: self.now)]


def test_the_first_is_told_at_once_and_the_rest_when_it_is_quiet() -> None:
    assert World([1.0, 1.2, 1.5, 9.0]).told(settle=0.5) == [(1.0, [1.0]), (2.0, [1.2, 1.5]), (9.0, [9.0])]


def test_a_storm_is_told_of_while_it_lasts() -> None:
    times = [at for at, _ in World([i / 10 for i in range(1000)]).told(settle=0.5)]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 0.5 * 20 + 0.1


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(0, 10))
def test_nothing_is_lost_or_told_twice_or_late(happenings: list[float], settle: float) -> None:
    told = World(happenings).told(settle)
    assert sorted(h for _, batch in told for h in batch) == sorted(happenings)
    assert all(at - h <= settle * 21 + 1e-6 for at, batch in told for h in batch)


def test_an_early_empty_answer_is_no_quiet() -> None:
    answers: list[list[str] | None] = [["a"], [], ["b"], [], None]
    now = iter(range(100))
    assert list(coalesce(lambda _: answers.pop(0), settle=1000, clock=lambda: float(next(now)))) == [["a"]]
    answers = [["a"], [], ["b"], [], None]
    clock = iter([0, 1, 2, 3, 3, 99, 99])
    assert list(coalesce(lambda _: answers.pop(0), settle=10, clock=lambda: float(next(clock)))) == [["a"], ["b"]]
