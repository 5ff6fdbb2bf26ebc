# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deviceplugin._native import inotify
from deviceplugin.events.watch import Change, Kind, Watch


@pytest.fixture
def top(tmp_path: Path) -> Path:
    directory = tmp_path / "top"
    directory.mkdir()
    return directory


def drain(watch: Watch) -> list[Change]:
    """All that is known by now."""
    changes: list[Change] = []
    while more := watch.wait(0):
        changes += more
    return changes


def below(top: Path, changes: list[Change]) -> list[tuple[str, str, Kind]]:
    """The changes with their directories relative to ``top``, each once and in order."""
    return list(dict.fromkeys((os.path.relpath(c.directory, top), c.name, c.kind) for c in changes))


def test_entries_of_a_directory_are_told(top: Path) -> None:
    watch = Watch([str(top)])
    (top / "a").touch()
    (top / "a").chmod(0o600)
    (top / "a").rename(top / "b")
    (top / "b").unlink()
    assert below(top, drain(watch)) == [
        (".", "a", Kind.CREATED),
        (".", "a", Kind.CHANGED),
        (".", "a", Kind.DELETED),
        (".", "b", Kind.CREATED),
        (".", "b", Kind.DELETED),
    ]
    watch.close()


def test_of_a_file_only_its_own_changes_are_told(top: Path) -> None:
    watch = Watch([str(top / "fuse")])
    (top / "other").touch()
    assert drain(watch) == []
    (top / "fuse").touch()
    (top / "fuse").chmod(0o600)
    (top / "fuse").unlink()
    assert below(top, drain(watch)) == [(".", "fuse", Kind.CREATED), (".", "fuse", Kind.CHANGED), (".", "fuse", Kind.DELETED)]
    watch.close()


def test_a_path_that_is_not_there_yet_is_awaited(top: Path) -> None:
    watch = Watch([str(top / "dev" / "bus" / "usb")])
    (top / "elsewhere").mkdir()
    assert drain(watch) == []
    (top / "dev").mkdir()
    assert below(top, drain(watch)) == [(".", "dev", Kind.CREATED)]
    (top / "dev" / "bus").mkdir()
    drain(watch)
    (top / "dev" / "bus" / "usb").mkdir()
    (top / "dev" / "bus" / "usb" / "001").touch()  # before there is a watch on it
    assert ("dev/bus/usb", "", Kind.LOST) in below(top, drain(watch))
    (top / "dev" / "bus" / "usb" / "002").touch()
    assert below(top, drain(watch)) == [("dev/bus/usb", "002", Kind.CREATED)]
    watch.close()


def test_a_path_that_appears_in_one_go_is_seen(top: Path) -> None:
    watch = Watch([str(top / "a" / "b" / "c")])
    (top / "a" / "b" / "c").mkdir(parents=True)
    assert ("a/b/c", "", Kind.LOST) in below(top, drain(watch))
    (top / "a" / "b" / "c" / "d").touch()
    assert below(top, drain(watch)) == [("a/b/c", "d", Kind.CREATED)]
    watch.close()


def test_a_directory_that_is_replaced_is_watched_anew(top: Path) -> None:
    target = top / "plugins"
    target.mkdir()
    watch = Watch([str(target)])
    for _ in range(3):
        shutil.rmtree(target)
        target.mkdir()
        assert ("plugins", "", Kind.LOST) in below(top, drain(watch))
        (target / "kubelet.sock").touch()
        assert below(top, drain(watch)) == [("plugins", "kubelet.sock", Kind.CREATED)]
    watch.close()


def test_a_renamed_parent_is_no_longer_the_path(top: Path) -> None:
    target = top / "var" / "lib" / "plugins"
    target.mkdir(parents=True)
    watch = Watch([str(target)])
    (top / "var").rename(top / "old")
    assert (".", "var", Kind.DELETED) in below(top, drain(watch))
    (top / "old" / "lib" / "plugins" / "x").touch()
    assert drain(watch) == []
    target.mkdir(parents=True)
    drain(watch)
    (target / "y").touch()
    assert below(top, drain(watch)) == [("var/lib/plugins", "y", Kind.CREATED)]
    watch.close()


def test_two_names_of_one_directory_are_both_told(top: Path) -> None:
    (top / "real").mkdir()
    (top / "link").symlink_to("real")
    watch = Watch([str(top / "real"), str(top / "link")])
    (top / "real" / "x").touch()
    assert sorted(below(top, drain(watch))) == [("link", "x", Kind.CREATED), ("real", "x", Kind.CREATED)]
    watch.close()


def test_a_file_where_a_directory_should_be_is_passed_over(top: Path) -> None:
    (top / "a").touch()
    watch = Watch([str(top / "a" / "b")])
    (top / "a").unlink()
    (top / "a").mkdir()
    drain(watch)
    (top / "a" / "b").touch()
    assert below(top, drain(watch)) == [("a", "b", Kind.CREATED)]
    watch.close()


def test_overflow_means_that_anything_may_have_happened(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Overflowing:
        closed = False

        def add(self, path: str, mask: int) -> int:
            return hash(path) & 0xFFFF

        def remove(self, wd: int) -> None: ...

        def read(self, timeout: float | None, also: int) -> list[tuple[int, int, int, str]]:
            return [(-1, inotify.Q_OVERFLOW, 0, "")]

    monkeypatch.setattr(inotify, "Inotify", Overflowing)
    watch = Watch([str(top), "/dev/fuse"])
    assert watch.wait() == [Change(str(top), "", Kind.LOST), Change("/dev/fuse", "", Kind.LOST)]


def test_a_directory_that_cannot_be_watched_is_named_once(top: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(FakeInotify):
        def add(self, path: str, mask: int) -> int:
            if path == str(top):
                raise OSError(errno.EACCES, "Permission denied", path)
            return super().add(path, mask)

    monkeypatch.setattr(inotify, "Inotify", Refusing)
    with caplog.at_level(logging.WARNING):
        watch = Watch([str(top)])
        watch._arm()
    assert [r.getMessage() for r in caplog.records] == [f"cannot watch {top}, so changes there go unseen: Permission denied"]


def test_a_limit_of_the_kernel_is_an_error_and_leaves_nothing_open(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FakeInotify):
        def add(self, path: str, mask: int) -> int:
            raise OSError(errno.ENOSPC, "the limit fs.inotify.max_user_watches is reached", path)

    monkeypatch.setattr(inotify, "Inotify", Full)
    with pytest.raises(OSError, match="max_user_watches"):
        Watch([str(top)])
    assert FakeInotify.last.closed


class FakeInotify:
    last: FakeInotify

    def __init__(self) -> None:
        self.closed = False
        FakeInotify.last = self

    def add(self, path: str, mask: int) -> int:
        return hash(path) & 0xFFFF

    def close(self) -> None:
        self.closed = True


def test_it_is_iterated_over_until_another_thread_closes_it(top: Path) -> None:
    watch = Watch([str(top)])
    seen: list[Change] = []
    first = threading.Event()

    def follow() -> None:
        for change in watch:
            seen.append(change)
            first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    (top / "a").touch()
    assert first.wait(5)
    watch.close()
    thread.join(5)
    assert not thread.is_alive()
    assert seen == [Change(str(top), "a", Kind.CREATED)]
    assert watch.wait() is None


def test_a_wake_ends_the_wait(top: Path) -> None:
    watch = Watch([])
    watch.wake()
    assert watch.wait() == []
    watch.close()


steps = st.lists(
    st.tuples(st.sampled_from(["mkdir", "touch", "remove", "rename"]), st.sampled_from(["a", "a/b", "a/b/c", "x", "x/b"]), st.booleans()), max_size=12
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_whatever_happened_to_the_way_the_next_change_is_seen(tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, str, bool]]) -> None:
    top = tmp_path_factory.mktemp("top")
    watch = Watch([str(top / "a" / "b" / "c")])
    try:
        for action, path, look in moves:
            here = top / path
            try:
                if action == "mkdir":
                    here.mkdir()
                elif action == "touch":
                    here.touch()
                elif action == "rename":
                    here.rename(top / "x" if path[0] == "a" else top / "a")
                elif here.is_dir():
                    shutil.rmtree(here)
                else:
                    here.unlink()
            except OSError:
                continue  # not possible now: another step is
            if look:
                drain(watch)
        drain(watch)
        shutil.rmtree(top / "a", ignore_errors=True)
        (top / "a").unlink(missing_ok=True)
        (top / "a" / "b").mkdir(parents=True)
        drain(watch)
        (top / "a" / "b" / "c").touch()
        assert below(top, drain(watch)) == [("a/b", "c", Kind.CREATED)]
    finally:
        watch.close()
