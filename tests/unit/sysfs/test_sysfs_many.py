# SPDX-License-Identifier: Apache-2.0
"""Many paths at once say what one after the other says; errors are values."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deviceplugin import Host, sysfs
from tests.unit.sysfs.tree import Tree

PATHS = [
    "/sys/on",
    "/sys/none",
    "/sys/on/below",
    "/sys",
    "/sys/loop",
    "/sys/to-on",
    "/sys/fifo",
    "/sys/raw",
    "/sys/\0",
    "/sys/\ud800",
    "/" + "n" * 5000,
]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    tree.file("/sys/on", " online \n")
    tree.link("/sys/loop", "loop")
    tree.link("/sys/to-on", "on")
    tree.file("/sys/raw")
    tree.at("/sys/raw").write_bytes(b"ok\xff\n\0")
    os.mkfifo(tree.at("/sys/fifo"))
    return tree


def test_each_file_is_text_or_none_or_an_error_that_names_it(tree: Tree) -> None:
    found = [str(one) if isinstance(one, sysfs.SysfsError) else one for one in sysfs.read_many(tree.host, PATHS)]
    assert found == [
        " online",
        None,
        None,
        None,
        "/sys/loop cannot be read: Too many levels of symbolic links",
        " online",
        "",
        "ok\ufffd",
        "/sys/\0 cannot be read: Invalid argument",
        "/sys/\ud800 cannot be read: Invalid or incomplete multibyte or wide character",
        f"/{'n' * 5000} cannot be read: File name too long",
    ]


def test_each_directory_is_names_in_order_or_an_error_that_names_it(tree: Tree) -> None:
    for name in ("1-10", "1-2", "usb1"):
        tree.file(f"/sys/bus/{name}")
    found = [
        str(one) if isinstance(one, sysfs.SysfsError) else one for one in sysfs.entries_many(tree.host, ["/sys/bus", "/sys/on", "/no", "/sys/loop"])
    ]
    assert found == [["1-2", "1-10", "usb1"], [], [], "/sys/loop cannot be read: Too many levels of symbolic links"]


def test_each_link_is_followed_or_an_error_that_names_it(tree: Tree) -> None:
    found = [
        str(one) if isinstance(one, sysfs.SysfsError) else one for one in sysfs.realpath_many(tree.host, ["/sys/to-on", "/sys/loop", "/no/../x"])
    ]
    assert found == ["/sys/on", "/sys/loop cannot be read: Too many levels of symbolic links", "/x"]


@pytest.mark.parametrize(("one", "many"), [(sysfs.read, sysfs.read_many), (sysfs.entries, sysfs.entries_many), (sysfs.realpath, sysfs.realpath_many)])
def test_one_by_one_says_the_same_but_raises(tree: Tree, one: Callable[[Host, str], object], many: Callable[[Host, list[str]], list[object]]) -> None:
    for path, expected in zip(PATHS, many(tree.host, PATHS), strict=True):
        if isinstance(expected, sysfs.SysfsError):
            with pytest.raises(sysfs.SysfsError) as caught:
                one(tree.host, path)
            assert (caught.value.path, str(caught.value)) == (expected.path, str(expected))
        else:
            assert one(tree.host, path) == expected


def test_a_root_may_end_with_slashes_and_paths_are_below_it(tree: Tree) -> None:
    assert sysfs.read_many(Host(f"{tree.root}//"), ["/sys/on", "//sys/on"]) == [" online", " online"]
    assert sysfs.read_many(Host(), [str(tree.at("/sys/on"))]) == [" online"]


def test_one_text_is_not_taken_for_many_paths(tree: Tree) -> None:
    with pytest.raises(TypeError, match="paths must be several, not the one text '/sys/on'"):
        sysfs.read_many(tree.host, "/sys/on")
