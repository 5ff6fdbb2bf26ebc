# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deviceplugin.kubelet import watch as watching
from deviceplugin.kubelet.watch import DirectoryWatch

WAIT = 10


class Seen:
    """A running watch and what it says."""

    def __init__(self, *directories: Path) -> None:
        self.news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.watch = DirectoryWatch([str(one) for one in directories], self.news.put, self.lost.put)
        self.watch.start()

    def until(self, *names: str) -> None:
        """Waits until each of the names was said, or "" in their place: anything may have changed."""
        wanted = set(names)
        while wanted:
            name = self.news.get(timeout=WAIT)
            wanted = set() if name == "" else wanted - {name}

    def sees(self, directory: Path, name: str) -> bool:
        """Whether something made in the directory is seen by its own name. What is made before the directory is watched is told as ""."""
        for i in range(50):
            (directory / f"{name}{i}").touch()
            while (said := self.news.get(timeout=WAIT)) != "":
                if said == f"{name}{i}":
                    return True
        return False


@pytest.fixture(autouse=True)
def events_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look that needs no event comes too late to help."""
    monkeypatch.setattr(watching, "RECHECK", 3600.0)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "kubelet" / "device-plugins"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def seen(plugins: Path) -> Iterator[Seen]:
    one = Seen(plugins)
    yield one
    one.watch.stop()


def test_the_kubelets_socket_is_seen_to_come_and_go(plugins: Path, seen: Seen) -> None:
    (plugins / "kubelet.sock").touch()
    assert seen.news.get(timeout=WAIT) == "kubelet.sock"
    (plugins / "kubelet.sock").unlink()
    assert seen.news.get(timeout=WAIT) == "kubelet.sock"


def test_a_socket_that_is_renamed_into_place_is_seen_under_both_names(plugins: Path, seen: Seen) -> None:
    (plugins / ".new").touch()
    seen.until(".new")
    (plugins / ".new").rename(plugins / "kubelet.sock")
    seen.until(".new", "kubelet.sock")


def test_all_directories_are_watched(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    seen = Seen(one, two)
    assert seen.sees(one, "a")
    assert seen.sees(two, "b")
    seen.watch.stop()


def test_a_directory_that_is_missing_is_awaited(tmp_path: Path) -> None:
    directory = tmp_path / "lib" / "kubelet" / "device-plugins"
    seen = Seen(directory)
    (tmp_path / "lib").mkdir()
    seen.until("lib")
    (tmp_path / "lib" / "kubelet").mkdir()
    seen.until("kubelet")
    directory.mkdir()
    seen.until("device-plugins")
    assert seen.sees(directory, "kubelet.sock")
    seen.watch.stop()


def test_directories_made_all_at_once_are_found(tmp_path: Path) -> None:
    directory = tmp_path / "lib" / "kubelet" / "device-plugins"
    seen = Seen(directory)
    os.makedirs(directory)
    seen.until("lib")
    assert seen.sees(directory, "kubelet.sock")
    seen.watch.stop()


@pytest.mark.parametrize("times", [1, 5])
def test_a_directory_that_is_removed_and_made_again_is_watched_again(plugins: Path, seen: Seen, times: int) -> None:
    """Its inode number is often the same."""
    for i in range(times):
        shutil.rmtree(plugins)
        plugins.mkdir()
        assert seen.sees(plugins, f"kubelet-{i}-")


def test_a_directory_that_is_replaced_by_another_is_watched_in_its_place(plugins: Path, seen: Seen) -> None:
    other = plugins.parent / "other"
    other.mkdir()
    plugins.rename(plugins.parent / "old")
    other.rename(plugins)
    assert seen.sees(plugins, "kubelet.sock")


def test_where_events_were_lost_anything_may_have_changed(plugins: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 70_000:
        pytest.skip("a queue so long takes too long to fill")
    gate, news = threading.Event(), queue.SimpleQueue[str]()

    def slow(name: str) -> None:
        news.put(name)
        gate.wait(WAIT)

    watch = DirectoryWatch([str(plugins)], slow, lambda _directory: None)
    watch.start()
    (plugins / "first").touch()
    assert news.get(timeout=WAIT) == "first"
    for _ in range(most // 2 + 10):
        os.close(os.open(plugins / "x", os.O_CREAT | os.O_WRONLY))
        os.unlink(plugins / "x")
    gate.set()
    while news.get(timeout=WAIT) != "":
        pass
    watch.stop()


def test_stopping_is_prompt_and_leaves_neither_thread_nor_descriptor(plugins: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    seen = Seen(plugins)
    thread = seen.watch._thread
    seen.watch.stop()
    thread.join(0)
    assert not thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_watch_that_never_started_can_be_stopped(plugins: Path) -> None:
    DirectoryWatch([str(plugins)], lambda _name: None, lambda _directory: None).stop()
