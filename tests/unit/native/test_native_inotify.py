# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deviceplugin._native import inotify
from deviceplugin._native.inotify import Inotify
from tests.oracles import inotify as oracle

ENTRIES = inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO


def packed(wd: int, mask: int, cookie: int, name: bytes, padding: int) -> bytes:
    return oracle.HEAD.pack(wd, mask, cookie, len(name) + padding) + name + bytes(padding)


events = st.builds(
    packed,
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=40),
    st.integers(0, 16),
)


def outcome(parse: object, data: bytes) -> object:
    try:
        return parse(data)  # type: ignore[operator]
    except ValueError:
        return ValueError


@given(st.lists(events).map(b"".join))
def test_events_are_parsed_as_the_oracle_does(data: bytes) -> None:
    assert inotify.parse(data) == oracle.parse(data)


@given(st.one_of(st.binary(max_size=80), st.builds(lambda whole, end: b"".join(whole)[:end], st.lists(events, min_size=1), st.integers(0, 200))))
@example(oracle.HEAD.pack(1, 2, 3, 2**32 - 1))
@example(oracle.HEAD.pack(1, 2, 3, 1))
def test_what_is_cut_off_is_refused_as_the_oracle_does(data: bytes) -> None:
    assert outcome(inotify.parse, data) == outcome(oracle.parse, data)


def test_what_happens_in_a_directory_is_told_in_order(tmp_path: Path) -> None:
    with Inotify() as watcher:
        wd = watcher.add(tmp_path, ENTRIES)
        (tmp_path / "a").touch()
        (tmp_path / "a").rename(tmp_path / "ä")
        (tmp_path / "ä").unlink()
        found = watcher.read(5) or []
    assert [(e[0], e[1], e[3]) for e in found] == [
        (wd, inotify.CREATE, "a"),
        (wd, inotify.MOVED_FROM, "a"),
        (wd, inotify.MOVED_TO, "ä"),
        (wd, inotify.DELETE, "ä"),
    ]
    assert found[1][2] == found[2][2] != 0, "both halves of a move have one cookie"


def test_the_oracle_sees_the_same(tmp_path: Path) -> None:
    twin = oracle.Inotify()
    with Inotify() as watcher, contextlib.closing(twin):
        assert watcher.add(str(tmp_path), ENTRIES) == twin.add(str(tmp_path), ENTRIES)
        for i in range(100):
            (tmp_path / f"file-{i}").touch()
        assert watcher.read(5) == twin.read(5)


def test_a_name_that_is_not_utf_8_survives(tmp_path: Path) -> None:
    with Inotify() as watcher:
        watcher.add(os.fsencode(tmp_path), ENTRIES)
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
        assert [os.fsencode(e[3]) for e in watcher.read(5) or []] == [b"\xff"]


def test_nothing_is_told_of_a_watch_that_ended_but_that(tmp_path: Path) -> None:
    with Inotify() as watcher:
        wd = watcher.add(tmp_path, ENTRIES)
        watcher.remove(wd)
        (tmp_path / "a").touch()
        assert watcher.read(5) == [(wd, inotify.IGNORED, 0, "")]
        with pytest.raises(OSError, match=f"cannot end watch {wd}"):
            watcher.remove(wd)


def test_an_overflow_of_the_queue_is_told(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"the queue here holds {limit} events: too many to fill in a test")
    with Inotify() as watcher:
        watcher.add(tmp_path, ENTRIES)
        a, b = tmp_path / "a", tmp_path / "b"
        a.touch()
        for _ in range(limit // 2 + 1):
            os.rename(a, b)
            a, b = b, a
        masks = set()
        while read := watcher.read(0):
            masks |= {(e[0], e[1]) for e in read}
    assert (-1, inotify.Q_OVERFLOW) in masks


def test_the_wait_is_as_long_as_asked_for() -> None:
    with Inotify() as watcher:
        start = time.monotonic()
        assert watcher.read(0.03) == []
        assert time.monotonic() - start >= 0.03
        assert watcher.read(0) == []
        assert watcher.read(-1) == []


def test_another_descriptor_ends_the_wait() -> None:
    reader, writer = os.pipe()
    try:
        with Inotify() as watcher:
            os.write(writer, b"x")
            assert watcher.read(None, reader) == []
    finally:
        os.close(reader)
        os.close(writer)


def test_a_descriptor_that_is_none_is_refused() -> None:
    with Inotify() as watcher, pytest.raises(OSError, match="cannot wait on descriptor 1000000"):
        watcher.read(None, 1000000)


def test_a_wake_before_the_wait_is_not_lost() -> None:
    with Inotify() as watcher:
        watcher.wake()
        assert watcher.read() == []
        assert watcher.read(0) == []


def readers(watcher: Inotify, count: int) -> tuple[list[threading.Thread], list[object]]:
    """Threads that go to ``read``, with what it gives them. Whether they are there yet must make no difference."""
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(watcher.read())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def test_a_wake_ends_a_wait_in_another_thread() -> None:
    with Inotify() as watcher:
        for _ in range(100):
            threads, results = readers(watcher, 1)
            watcher.wake()
            threads[0].join(5)
            assert results == [[]]


def test_closing_ends_every_wait_and_leaves_no_descriptor() -> None:
    before = psutil.Process().num_fds()
    for _ in range(50):
        watcher = Inotify()
        threads, results = readers(watcher, 4)
        watcher.close()
        for thread in threads:
            thread.join(5)
        assert results == [None] * 4
    assert psutil.Process().num_fds() == before


def test_once_closed_it_says_so(tmp_path: Path) -> None:
    watcher = Inotify()
    watcher.close()
    watcher.close()
    assert watcher.closed
    assert watcher.read() is None
    for use in (lambda: watcher.add(tmp_path, ENTRIES), lambda: watcher.remove(1), watcher.wake):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_signal_handler_runs_during_the_wait_and_may_end_it() -> None:
    class Alarm(Exception):
        pass

    def handler(*_: object) -> None:
        raise Alarm

    old = signal.signal(signal.SIGALRM, handler)
    try:
        with Inotify() as watcher:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(Alarm):
                watcher.read()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_forked_child_is_kept_from_stealing_events(tmp_path: Path) -> None:
    with Inotify() as watcher:
        watcher.add(tmp_path, ENTRIES)
        (tmp_path / "a").touch()
        child = os.fork()
        if child == 0:
            refused = 0
            for use in (lambda: watcher.read(0), lambda: watcher.add(tmp_path, ENTRIES), lambda: watcher.remove(1), watcher.wake):
                try:
                    use()
                except RuntimeError:
                    refused += 1
            watcher.close()
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        assert [e[3] for e in watcher.read(5) or []] == ["a"]


@pytest.mark.parametrize("path", ["/does/not/exist", b"/does/not/exist"])
def test_a_path_that_is_not_there_is_named_in_the_error(path: str | bytes) -> None:
    with Inotify() as watcher, pytest.raises(FileNotFoundError) as caught:
        watcher.add(path, ENTRIES)
    assert caught.value.filename == path


def test_a_path_with_a_nul_is_refused() -> None:
    with Inotify() as watcher, pytest.raises(ValueError, match="NUL"):
        watcher.add("/tmp\0/x", ENTRIES)


def test_the_limit_that_is_reached_is_named() -> None:
    held: list[Inotify] = []
    try:
        with pytest.raises(OSError, match=r"fs\.inotify\.max_user_instances"):  # noqa: PT012 - which of them fails is the machine's choice
            for _ in range(4096):
                held.append(Inotify())
    finally:
        for watcher in held:
            watcher.close()


def test_nothing_leaks(tmp_path: Path) -> None:
    process = psutil.Process()

    def use(times: int) -> tuple[int, int]:
        for i in range(times):
            watcher = Inotify()
            watcher.add(tmp_path, ENTRIES)
            (tmp_path / f"{i}").touch()
            (tmp_path / f"{i}").unlink()
            watcher.read(1)
            if i % 2:
                watcher.close()
            with contextlib.suppress(FileNotFoundError):
                Inotify().add("/does/not/exist", ENTRIES)
            for _ in range(50):
                inotify.parse(packed(1, 2, 3, b"name", 12) * 50)
        del watcher
        gc.collect()
        return process.num_fds(), process.memory_info().rss

    use(20)
    fds, rss = use(20)
    more_fds, more_rss = use(60)  # the kernel takes some 10 ms to end an instance that had a watch
    assert more_fds == fds
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which holds on to freed memory, to see who still uses it
        assert more_rss - rss < 1 << 20
