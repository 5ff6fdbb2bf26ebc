# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deviceplugin.kubelet.lock import LockError, Owner, ResourceLock
from tests.helpers.core import WIDGET

ME = Owner(os.getpid(), "node-1", 12.5)
WAIT = 10

HOLDER = """
import sys
from deviceplugin.kubelet.lock import Owner, ResourceLock
lock = ResourceLock(sys.argv[1], sys.argv[2])
lock.acquire(Owner(4711, "elsewhere", 3.0), lambda: None, lambda: sys.exit("not free"))
print("held", flush=True)
sys.stdin.read()
"""


class Wanting:
    """One instance that wants the lock."""

    def __init__(self, directory: Path, resource: str = WIDGET, owner: Owner = ME) -> None:
        self.lock = ResourceLock(str(directory), resource)
        self.news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.lock.acquire(owner, lambda: self.news.put("held"), lambda: self.news.put("waits"))

    def next(self) -> str:
        return self.news.get(timeout=WAIT)


def test_a_free_lock_is_held_at_once(tmp_path: Path) -> None:
    one = Wanting(tmp_path)
    assert (one.next(), one.lock.held) == ("held", True)
    one.lock.release()
    assert not one.lock.held


def test_a_second_instance_waits_and_is_next(tmp_path: Path) -> None:
    first, second = Wanting(tmp_path), Wanting(tmp_path)
    assert (first.next(), second.next(), second.lock.held) == ("held", "waits", False)
    first.lock.release()
    assert second.next() == "held"
    assert second.lock.held
    second.lock.release()


def test_resources_do_not_wait_for_each_other(tmp_path: Path) -> None:
    names = [WIDGET, "example.com/other", "example.com/widget.shared", "example.org/widget"]
    instances = [Wanting(tmp_path, name) for name in names]
    assert [one.next() for one in instances] == ["held"] * 4
    for one in instances:
        one.lock.release()


def test_a_holder_that_is_killed_frees_the_lock(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path), WIDGET]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        second = Wanting(tmp_path)
        assert second.next() == "waits"
        assert second.lock.owner() == Owner(4711, "elsewhere", 3.0)
        holder.send_signal(signal.SIGKILL)
        assert second.next() == "held"
        second.lock.release()


def test_who_holds_it_can_be_read(tmp_path: Path) -> None:
    one = Wanting(tmp_path / "run", owner=Owner(7, "node-7", 1.5))
    assert ResourceLock(str(tmp_path / "run"), WIDGET).owner() == Owner(7, "node-7", 1.5)
    one.lock.release()
    other = Wanting(tmp_path / "run", owner=Owner(8, "n", 2.0))
    assert other.lock.owner() == Owner(8, "n", 2.0), "a shorter name must leave nothing of a longer one"
    other.lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"pid": 1}', '{"pid": "x", "host": "h", "since": 0}', "\udcff"])
def test_a_label_that_makes_no_sense_is_no_owner(tmp_path: Path, text: str) -> None:
    lock = ResourceLock(str(tmp_path), WIDGET)
    Path(lock.path).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert lock.owner() is None


def test_a_directory_that_is_missing_is_made(tmp_path: Path) -> None:
    one = Wanting(tmp_path / "run" / "deviceplugin")
    assert one.next() == "held"
    one.lock.release()


def in_the_way(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


def below_a_file(tmp_path: Path) -> Path:
    return in_the_way(tmp_path) / "locks"


def with_a_link(tmp_path: Path) -> Path:
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("precious")
    os.symlink(elsewhere, ResourceLock(str(tmp_path), WIDGET).path)
    return tmp_path


def with_a_directory(tmp_path: Path) -> Path:
    os.mkdir(ResourceLock(str(tmp_path), WIDGET).path)
    return tmp_path


@pytest.mark.parametrize("make", [in_the_way, below_a_file, with_a_link, with_a_directory])
def test_a_place_where_no_lock_can_be_is_said_with_what_to_do(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    directory = make(tmp_path)
    with pytest.raises(LockError) as caught:
        Wanting(directory)
    text = str(caught.value)
    assert text.startswith(f"{WIDGET}: cannot open the lock {directory}/")
    assert "must be there, writable and shared by all instances" in text
    assert not (tmp_path / "precious").exists() or (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LockError, match="No locks available; the file system must support flock"):
        Wanting(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_gives_up_waiting_never_holds_it(tmp_path: Path) -> None:
    first, second = Wanting(tmp_path), Wanting(tmp_path)
    assert (first.next(), second.next()) == ("held", "waits")
    waiting = [thread for thread in threading.enumerate() if thread.name == f"lock-{WIDGET}"]
    second.lock.release()
    first.lock.release()
    for thread in waiting:
        thread.join(WAIT)
    assert second.news.empty()
    third = Wanting(tmp_path)
    assert third.next() == "held"
    third.lock.release()


def test_a_lock_given_up_while_it_is_taken_touches_no_other_file(tmp_path: Path) -> None:
    """Its descriptor's number may be another file's at once."""
    lock = ResourceLock(str(tmp_path / "locks"), WIDGET)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    opened: list[int] = []

    def on_held() -> None:
        lock.release()
        opened.append(os.open(precious, os.O_RDWR))

    lock.acquire(ME, on_held, lambda: None)
    for fd in opened:
        os.close(fd)
    assert precious.read_text() == "precious"


def test_a_label_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def pwrite(_fd: int, _data: bytes, _at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with caplog.at_level(logging.WARNING):
        one = Wanting(tmp_path)
    assert one.lock.held
    assert "No space left" in caplog.text
    one.lock.release()


def test_the_label_is_plain_json(tmp_path: Path) -> None:
    one = Wanting(tmp_path)
    assert json.loads(Path(one.lock.path).read_text()) == {"pid": ME.pid, "host": "node-1", "since": 12.5}
    one.lock.release()
