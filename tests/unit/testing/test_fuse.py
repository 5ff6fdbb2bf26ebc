# SPDX-License-Identifier: Apache-2.0
"""Trees behind a real mount: what a system call is told is what the tree said."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from deviceplugin._native import inotify
from deviceplugin.testing import fuse
from deviceplugin.testing.fuse import FuseError, serve

pytestmark = pytest.mark.skipif(fuse.missing() is not None, reason=str(fuse.missing()))

CUT_OFF = f"{os.strerror(errno.ECONNABORTED)}|{os.strerror(errno.ENOTCONN)}"
"""What a call is answered that waited when the tree was unmounted, or came later: which one depends on how far it was."""


class Groups:
    """Directories of one file, ``state``, that takes what starts with a letter."""

    def __init__(self) -> None:
        self.states: dict[str, bytes] = {"": b"idle\n"}
        self.calls: list[tuple[object, ...]] = []

    def stat(self, path: str) -> os.stat_result:
        directory, _, name = path.rpartition("/")
        if path in self.states:
            return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, 0, 0, 0, 0))
        if name == "state" and directory in self.states:
            return os.stat_result((stat.S_IFREG | 0o640, 0, 0, 1, 3, 4, 0, 0, 0, 0))
        raise OSError(errno.ENOENT, "nothing there")

    def list(self, path: str) -> list[str]:
        return ["state", *(group for group in self.states if group and not path)]

    def read(self, path: str) -> bytes:
        self.calls.append(("read", path))
        return self.states[os.path.dirname(path)]

    def write(self, path: str, data: bytes) -> None:
        self.calls.append(("write", path, data))
        if not data[:1].isalpha():
            raise OSError(errno.EINVAL, "not a letter")
        self.states[os.path.dirname(path)] = data

    def mkdir(self, path: str) -> None:
        if len(self.states) > 2:
            raise OSError(errno.ENOSPC, "no more groups")
        self.states[path] = b"new\n"

    def rmdir(self, path: str) -> None:
        if path not in self.states:
            raise OSError(errno.ENOENT, "no such group")
        del self.states[path]

    def rename(self, old: str, new: str) -> None:
        self.states[new] = self.states.pop(old)


@pytest.fixture
def tree() -> Groups:
    return Groups()


@pytest.fixture
def mount(tree: Groups) -> Iterator[Path]:
    with serve(tree) as directory:
        yield Path(directory)


def write(path: Path, data: bytes) -> None:
    """One write(2)."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def refused(number: int) -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(os.strerror(number)))


def test_a_file_is_read_whole_each_time(tree: Groups, mount: Path) -> None:
    assert (mount / "state").read_text() == "idle\n"
    tree.states[""] = b"x" * 500_000  # more than one read(2), and than the kernel asks for at once
    assert (mount / "state").read_bytes() == b"x" * 500_000
    with (mount / "state").open("rb", buffering=0) as file:
        assert file.read(3) == b"xxx"
        tree.states[""] = b"busy\n"
        assert file.read(3) == b"xxx"
        file.seek(0)
        assert file.read(9) == b"busy\n"
        assert file.read(9) == b""


def test_each_write_reaches_the_tree_whole(tree: Groups, mount: Path) -> None:
    for data in (b"one", b"t" * 100_000):
        write(mount / "state", data)
    assert [call for call in tree.calls if call[0] == "write"] == [("write", "state", b"one"), ("write", "state", b"t" * 100_000)]
    fd = os.open(mount / "state", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"first")
    os.write(fd, b"second")
    os.close(fd)
    assert tree.states[""] == b"second"


def test_who_writes_gets_the_errno_and_may_write_again(tree: Groups, mount: Path) -> None:
    fd = os.open(mount / "state", os.O_WRONLY)
    with refused(errno.EINVAL):
        os.write(fd, b"17")
    assert os.write(fd, b"seventeen") == 9
    os.close(fd)
    assert tree.states[""] == b"seventeen"


def test_directories_come_and_go_and_every_call_has_its_errno(tree: Groups, mount: Path) -> None:
    (mount / "a").mkdir()
    assert sorted(os.listdir(mount)) == ["a", "state"]
    assert (mount / "a/state").read_text() == "new\n"
    (mount / "b").mkdir()
    with refused(errno.ENOSPC):
        (mount / "c").mkdir()
    with refused(errno.EEXIST):
        (mount / "a").mkdir()
    (mount / "a").rename(mount / "d")
    assert sorted(tree.states) == ["", "b", "d"]
    (mount / "b").rmdir()
    with refused(errno.ENOENT):
        (mount / "b").rmdir()
    del tree.states["d"]  # as a kernel would, by itself
    assert os.listdir(mount) == ["state"]
    assert not (mount / "d").exists()
    tree.states["e"] = b"back\n"
    assert (mount / "e/state").read_text() == "back\n"


def test_what_a_tree_has_no_method_for_is_refused_as_in_kernfs(mount: Path) -> None:
    with refused(errno.EACCES):
        (mount / "new").touch()
    with refused(errno.EPERM):
        (mount / "state").unlink()
    with refused(errno.EPERM):
        (mount / "link").symlink_to("state")
    with refused(errno.EPERM):
        os.mkfifo(mount / "fifo")
    with refused(errno.EINVAL):
        os.readlink(mount / "state")


def test_stat_is_what_the_tree_says(mount: Path) -> None:
    status = os.stat(mount / "state")
    assert (stat.filemode(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_size) == ("-rw-r-----", 1, 3, 4, 0)
    assert stat.filemode(os.stat(mount).st_mode) == "drwxr-xr-x"


def test_inotify_sees_what_is_made_and_removed(mount: Path) -> None:
    with inotify.Inotify() as watcher:
        watcher.add(mount, inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO)
        (mount / "a").mkdir()
        (mount / "a").rename(mount / "b")
        (mount / "b").rmdir()
        events = watcher.read(5)
        assert events is not None
        directory = 0x40000000  # IN_ISDIR
        assert [(mask & ~directory, name) for _, mask, _, name in events] == [
            (inotify.CREATE, "a"),
            (inotify.MOVED_FROM, "a"),
            (inotify.MOVED_TO, "b"),
            (inotify.DELETE, "b"),
        ]


def test_it_is_unmounted_when_a_test_fails_with_a_file_open(tree: Groups) -> None:
    opened: list[int] = []

    def fail() -> None:
        with serve(tree) as directory:
            opened.append(os.open(f"{directory}/state", os.O_RDONLY))
            raise ZeroDivisionError(directory)

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    assert str(caught.value) not in Path("/proc/mounts").read_text()
    assert not os.path.exists(str(caught.value))
    with pytest.raises(OSError, match=CUT_OFF):
        os.read(opened[0], 1)
    with pytest.raises(OSError, match=CUT_OFF):  # it is closed all the same
        os.close(opened[0])


def test_who_waits_for_the_tree_at_the_end_comes_back(tree: Groups) -> None:
    entered, released = threading.Event(), threading.Event()
    errors: list[str] = []

    def hang(path: str) -> bytes:
        entered.set()
        assert released.wait(5)
        return b""

    def read(path: Path) -> None:
        try:
            path.read_text()
        except OSError as error:
            errors.append(str(error))
        released.set()

    tree.read = hang  # type: ignore[method-assign]
    with serve(tree) as directory:
        thread = threading.Thread(target=read, args=(Path(directory, "state"),))
        thread.start()
        assert entered.wait(5)
    thread.join()
    assert len(errors) == 1
    assert re.search(CUT_OFF, errors[0])


def test_it_may_be_mounted_in_a_place_and_several_at_once(tree: Groups, tmp_path: Path) -> None:
    place = tmp_path / "sys/fs/groups"
    place.mkdir(parents=True)
    with serve(tree, str(place)) as directory, serve(Groups()) as other:
        assert directory == str(place)
        (Path(directory) / "a").mkdir()
        assert (os.listdir(other), sorted(os.listdir(place))) == (["state"], ["a", "state"])
    assert os.listdir(place) == []


def test_what_is_no_directory_cannot_be_mounted_on(tree: Groups, tmp_path: Path) -> None:
    with pytest.raises(FuseError, match=f"^{tmp_path}/none cannot be mounted on: "), serve(tree, f"{tmp_path}/none"):
        pytest.fail("it was mounted")


def test_a_mistake_in_a_tree_is_told_at_the_end(tree: Groups) -> None:
    def misread(path: str) -> bytes:
        raise KeyError(path)

    def read() -> None:
        with serve(tree) as directory, refused(errno.EIO):
            Path(directory, "state").read_text()

    tree.read = misread  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="'state'"):
        read()


def test_signals_still_end_the_process(mount: Path) -> None:
    with open("/proc/self/status", encoding="ascii") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert (caught >> (number - 1) & 1) == (signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN))


def test_the_process_stays_where_it_is(tree: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serve(tree):
        assert Path.cwd() == tmp_path
    assert Path.cwd() == tmp_path


def test_threads_are_answered_at_once(tree: Groups, mount: Path) -> None:
    both = threading.Barrier(2, timeout=5)
    read = tree.read

    def meet(path: str) -> bytes:
        both.wait()
        return read(path)

    tree.read = meet  # type: ignore[method-assign]
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append((mount / "state").read_text()))
    thread.start()
    assert (mount / "state").read_text() == "idle\n"
    thread.join()
    assert found == ["idle\n"]


def test_a_machine_that_cannot_mount_is_told_what_it_lacks(tree: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(FuseError, match=r"^cannot serve a tree: missing: libfuse 3 \(Debian's libfuse3-3\)$"), serve(tree):
        pytest.fail("it was mounted")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert fuse.missing() == "missing: a /dev/fuse that this user may open"
