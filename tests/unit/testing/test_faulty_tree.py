# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from deviceplugin.testing.faulty_tree import FaultyTree


@pytest.fixture
def tree(tmp_path: Path) -> FaultyTree:
    (tmp_path / "a").write_text("text\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("a")
    return FaultyTree(tmp_path)


def test_without_faults_it_is_the_directory(tree: FaultyTree, tmp_path: Path) -> None:
    assert sorted(tree.list("")) == ["a", "d", "l"]
    assert tree.stat("l") == os.lstat(tmp_path / "l")
    assert tree.readlink("l") == "a"
    tree.write("a", b"more")
    tree.write("a", b"new")
    assert tree.read("a") == b"new"
    tree.mkdir("d/e")
    tree.rename("d/e", "f")
    tree.rmdir("f")
    assert sorted(os.listdir(tmp_path)) == ["a", "d", "l"]
    for call in (lambda: tree.read("none"), lambda: tree.write("none", b""), lambda: tree.list("none"), lambda: tree.rmdir("none")):
        with pytest.raises(FileNotFoundError):
            call()


def test_a_fault_meets_everything_but_stat(tree: FaultyTree) -> None:
    tree.fail("/a", errno.EBUSY)
    tree.fail("d", errno.EIO)
    tree.fail("new", errno.ENOSPC)
    for call, number in (
        (lambda: tree.read("a"), errno.EBUSY),
        (lambda: tree.write("a", b"x"), errno.EBUSY),
        (lambda: tree.list("d"), errno.EIO),
        (lambda: tree.rmdir("d"), errno.EIO),
        (lambda: tree.rename("d", "e"), errno.EIO),
        (lambda: tree.mkdir("new"), errno.ENOSPC),
    ):
        with pytest.raises(OSError, match=os.strerror(number)):
            call()
    tree.stat("a")
    tree.mend("/a")
    assert tree.read("a") == b"text\n"


def test_a_file_can_be_of_any_length(tree: FaultyTree, tmp_path: Path) -> None:
    tree.lengthen("a", 1 << 20)
    assert tree.read("a") == (b"text\n" * 300_000)[: 1 << 20]
    tree.lengthen("a", 3)
    assert tree.read("a") == b"tex"
    (tmp_path / "a").write_text("")
    assert tree.read("a") == b"xxx"
    tree.mend("a")
    assert tree.read("a") == b""


@pytest.mark.parametrize("how", ["release", "mend", "another fault"])
def test_what_hangs_goes_on_when_it_may(tree: FaultyTree, how: str) -> None:
    hang = tree.hang("a")
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(tree.read("a")))
    thread.start()
    assert hang.entered.wait(5)
    assert not found
    if how == "release":
        hang.release()
    elif how == "mend":
        tree.mend("a")
    else:
        tree.fail("a", errno.EIO)
    thread.join(5)
    assert found == [b"text\n"]
