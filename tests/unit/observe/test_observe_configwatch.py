# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deviceplugin._native import inotify
from deviceplugin.observe.configwatch import ConfigWatch, ways_to
from deviceplugin.source import fingerprint
from tests.helpers.configmap import ConfigMap

SETTLE = 0.02
NEVER = 3600.0


class Seen:
    """What a watch has told so far."""

    def __init__(self, *paths: str) -> None:
        self.paths = paths
        self.told: queue.SimpleQueue[tuple[str | None, ...]] = queue.SimpleQueue()

    def now(self) -> None:
        self.told.put(tuple(content(path) for path in self.paths))

    def next(self) -> tuple[str | None, ...]:
        return self.told.get(timeout=5.0)


def content(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return None


@contextmanager
def watching(*paths: str | Path, look: float = NEVER, settle: float = SETTLE, patience: float = 5.0) -> Iterator[Seen]:
    texts = [(str(path), content(str(path))) for path in paths]
    seen = Seen(*(path for path, _ in texts))
    files = {path: fingerprint(None if text is None else text.encode()) for path, text in texts}
    watch = ConfigWatch(files, seen.now, look=look, settle=settle, patience=patience)
    watch.start()
    try:
        yield seen
        assert seen.told.empty()
    finally:
        watch.stop()
        watch._thread.join(5.0)
        assert not watch._thread.is_alive()


def replaced(path: Path, text: str) -> None:
    (path.parent / "new").write_text(text)
    os.rename(path.parent / "new", path)


def written_in_place(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize("write", [replaced, written_in_place])
def test_an_edit_is_told_once(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one")
    with watching(path) as seen:
        for text in ("two", "three", "four"):
            write(path, text)
            assert seen.next() == (text,)


def test_every_version_of_a_config_map_is_told(tmp_path: Path) -> None:
    mount = ConfigMap(str(tmp_path / "mount"), config="one")
    with watching(mount.path("config.yaml")) as seen:
        for n in range(5):
            mount.write(config=f"version {n}")
            assert seen.next() == (f"version {n}",)
        mount.write(other="config.yaml is taken out of the ConfigMap")
        assert seen.next() == (None,)
        mount.write(config="back")
        assert seen.next() == ("back",)


def test_a_new_version_with_the_same_file_is_not_told(tmp_path: Path) -> None:
    mount = ConfigMap(str(tmp_path / "mount"), config="one", other="a")
    with watching(mount.path("config.yaml")) as seen:
        mount.write(config="one", other="b")
        mount.write(config="two", other="b")
        assert seen.next() == ("two",)


def test_what_is_put_back_before_it_settles_is_not_told(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one")
    with watching(path, settle=0.2) as seen:
        path.write_text("two")
        path.write_text("one")
        time.sleep(0.5)  # nothing to wait for: it is told nothing
        assert seen.told.empty()


def test_an_editor_that_is_still_writing_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one")
    with watching(path, settle=0.25) as seen:
        with open(path, "w", encoding="ascii", buffering=1) as file:
            for n in range(8):
                file.write(f"line {n}\n")
                time.sleep(0.05)  # the editor takes its time
        assert seen.next() == ("".join(f"line {n}\n" for n in range(8)),)


def test_what_never_settles_is_taken_as_it_is_when_patience_ends(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("one")
    over = threading.Event()

    def flap() -> None:
        n = 0
        while not over.wait(0.005):
            n += 1
            replaced(path, f"version {n}")

    thread = threading.Thread(target=flap)
    with watching(path, settle=0.1, patience=0.3) as seen:
        thread.start()
        first, said = seen.next(), seen.next()
        assert first != said
        over.set()
        thread.join()
        while said != (path.read_text(),):
            said = seen.next()


def test_a_file_that_goes_and_comes_back_and_one_in_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.yaml"
    with watching(path) as seen:
        path.parent.mkdir(parents=True)
        path.write_text("one")
        assert seen.next() == ("one",)
        path.unlink()
        assert seen.next() == (None,)
        path.write_text("two")
        assert seen.next() == ("two",)
        os.rename(tmp_path / "a", tmp_path / "x")
        assert seen.next() == (None,)
        os.rename(tmp_path / "x", tmp_path / "a")
        assert seen.next() == ("two",)


def test_a_file_behind_links_is_watched_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "real" / "c.yaml").write_text("one")
    (tmp_path / "other" / "c.yaml").write_text("other")
    (tmp_path / "dir").symlink_to("real")
    (tmp_path / "link").symlink_to(tmp_path / "dir" / ".." / "dir" / "c.yaml")
    with watching(tmp_path / "link") as seen:
        replaced(tmp_path / "real" / "c.yaml", "two")
        assert seen.next() == ("two",)
        (tmp_path / "new").symlink_to("other")
        os.rename(tmp_path / "new", tmp_path / "dir")
        assert seen.next() == ("other",)
        (tmp_path / "other" / "c.yaml").write_text("last")
        assert seen.next() == ("last",)


def test_a_second_file_counts_as_well_and_files_can_change(tmp_path: Path) -> None:
    one, two = tmp_path / "c.yaml", tmp_path / "labels"
    one.write_text("one")
    told = Seen(str(one), str(two))
    watch = ConfigWatch({str(one): fingerprint(b"one")}, told.now, look=NEVER, settle=SETTLE)
    watch.start()
    watch.follow({str(one): fingerprint(b"one"), str(two): ""})
    two.write_text("a=b\n")
    assert told.next() == ("one", "a=b\n")
    watch.stop()


def test_an_edit_between_reading_and_watching_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("newer")
    told = Seen(str(path))
    watch = ConfigWatch({str(path): fingerprint(b"older")}, told.now, look=NEVER, settle=SETTLE)
    watch.start()
    assert told.next() == ("newer",)
    watch.stop()


@pytest.mark.parametrize("limit", [True, False])
def test_without_events_the_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Deaf:
        closed = False

        def __init__(self) -> None:
            if limit:
                raise OSError(24, "no inotify instance: the limit fs.inotify.max_user_instances is reached")
            self._over = threading.Event()

        def add(self, _path: str, _mask: int) -> int:
            return 1

        def read(self, timeout: float) -> list[object] | None:
            return None if self._over.wait(timeout) else []

        def close(self) -> None:
            self._over.set()

    path = tmp_path / "c.yaml"
    path.write_text("one")
    monkeypatch.setattr(inotify, "Inotify", Deaf)
    with watching(path, look=0.05) as seen:
        path.write_text("two")
        assert seen.next() == ("two",)
    assert bool(caplog.records) is limit


def test_a_loop_of_links_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert ways_to([str(tmp_path / "loop")])[str(tmp_path)] == {"loop"}
    with watching(tmp_path / "loop") as seen:
        replaced(tmp_path / "loop", "one")
        assert [seen.next()] == [("one",)]


def test_the_way_to_a_file(tmp_path: Path) -> None:
    mount = ConfigMap(str(tmp_path / "mount"), config="one")
    ways = ways_to([mount.path("config.yaml")])
    assert ways["/"] == {str(tmp_path).split("/")[1]}
    assert ways[mount.directory] == {"config.yaml", "..data", os.readlink(mount.path("..data"))}
    assert ways[os.path.realpath(mount.path("..data"))] == {"config.yaml"}
