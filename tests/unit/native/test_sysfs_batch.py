# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deviceplugin._native import sysfs as native
from tests.oracles import sysfs as oracle

LIMIT = 4096

# Few names, so that links meet files, loops and each other; one that is not UTF-8, one too long for any file system.
NAMES = ["a", "b", "b10", "b9", "b09", "\u0663", "\udcff", "n" * 300]

paths = st.one_of(
    st.lists(st.sampled_from([*NAMES, ".", "..", ""]), max_size=6).map(lambda parts: "/" + "/".join(parts)),
    st.sampled_from(["", "a", "/", "//", "/a\0b", "/\ud800", "/a/" * 3000, "/a" + "/" * 4090, "/" + "../" * 20 + "a"]),
)
contents = st.one_of(st.binary(max_size=40), st.sampled_from([b"x" * 4095 + b"\xc3\xa9", b" \n\0\t\r", b"on\xff\n\0", b"y" * (1 << 20)]))
places = st.lists(st.sampled_from(NAMES[:-1]), min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(
    places,
    st.one_of(
        contents,
        st.tuples(st.just("link"), st.one_of(paths, places)),
        st.tuples(st.sampled_from(["directory", "fifo", "socket", "null", "long"]), st.just("")),
    ),
    max_size=8,
)


def make(root: Path, place: str, content: bytes | tuple[str, str]) -> None:
    """What cannot be made, such as a file below a file, is left out."""
    at = root / place
    try:
        at.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case bytes():
                at.write_bytes(content)
            case ("directory", _):
                at.mkdir()
            case ("fifo", _):
                os.mkfifo(at)
            case ("socket", _):
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(os.fspath(at))
            case ("null", _):
                at.symlink_to("/dev/null")
            case ("long", _):
                for number in range(45):
                    (at.parent / f"{at.name}{number}").symlink_to(f"{at.name}{number + 1}")
            case (_, target):
                at.symlink_to(target)
    except (OSError, ValueError):
        return


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("trees")
    yield base
    shutil.rmtree(base)


numbers = itertools.count()


def grow(nursery: Path) -> Path:
    """A new root, so deep that no path in these tests climbs out of it to where others write."""
    root = nursery / str(next(numbers)) / "1/2/3/4/5/6/7"
    root.mkdir(parents=True)
    return root


@settings(deadline=None)
@given(trees, st.lists(paths | places.map("/".__add__), max_size=12), st.sampled_from([LIMIT, 1, 5]))
@example({"a": ("link", "/a")}, ["/a", "/a/b"], LIMIT)
@example({"a": ("long", "")}, [f"/a{number}" for number in range(12)], LIMIT)
def test_every_tree_is_seen_as_the_oracle_sees_it(nursery: Path, tree: dict[str, bytes | tuple[str, str]], asked: list[str], limit: int) -> None:
    root = grow(nursery)
    for place, content in tree.items():
        make(root, place, content)
    asked = [*asked, *(f"/{place}" for place in tree)]
    for above in (f"{root}/", "/"):
        at = above if above != "/" else ""
        told = asked if above != "/" else [f"{root}/{path}" for path in asked]
        assert native.read(at, told, limit) == oracle.read(at, told, limit)
        assert native.names(at, told) == oracle.names(at, told)
        assert native.resolve(at, told) == oracle.resolve(at, told)


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("019ab-\udcff\u0663\uff10"), min_size=1, max_size=5), unique=True, max_size=12))
def test_names_are_in_the_order_of_the_oracle(nursery: Path, found: list[str]) -> None:
    root = grow(nursery)
    for name in found:
        (root / name).touch()
    assert native.names("", [str(root)]) == [sorted(found, key=oracle.by_number)]


def test_what_is_in_sysfs_is_seen_as_the_oracle_sees_it() -> None:
    classes = [f"/sys/class/{kind}" for kind in ("mem", "tty", "misc", "net", "none")]
    devices = [os.path.join(where, name) for where in classes if os.path.isdir(where) for name in os.listdir(where)]
    attributes = [f"{directory}/{name}" for directory in devices for name in ("uevent", "dev", "subsystem", "nothing", "device/vendor")]
    assert devices
    assert native.read("", attributes, LIMIT) == oracle.read("", attributes, LIMIT)
    assert native.names("", devices) == oracle.names("", devices)
    assert native.resolve("", attributes) == oracle.resolve("", attributes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o200)
    (tmp_path / "directory").mkdir(0o300)
    assert native.read(f"{tmp_path}/", ["/file"], LIMIT) == [errno.EACCES]
    assert native.names(f"{tmp_path}/", ["/directory"]) == [errno.EACCES]


def test_a_path_as_long_as_the_kernel_allows_is_found_and_one_byte_more_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    room = oracle.PATH_MAX - 1 - len(f"{tmp_path}/")
    longest = "./" * ((room - 1) // 2) + ("/" if (room - 1) % 2 else "") + "a"
    assert len(f"{tmp_path}/{longest}") == oracle.PATH_MAX - 1
    longer = longest[:-1] + "/a"
    assert native.read(f"{tmp_path}/", [longest, longer], LIMIT) == ["1", errno.ENAMETOOLONG]
    assert native.read("", [f"{tmp_path}/{longest}", f"{tmp_path}/{longer}"], LIMIT) == ["1", errno.ENAMETOOLONG]
    assert native.resolve(f"{tmp_path}/", [longer]) == ["/a"]


def test_a_deep_path_is_resolved_until_it_is_too_long(tmp_path: Path) -> None:
    longest = "/x" * 2046 + "/xx"
    assert len(longest) == oracle.PATH_MAX - 1
    asked = ["/x" * 2000, longest, f"{longest}x", "/x" * 5000]
    assert native.resolve("", asked) == [*asked[:2], errno.ENAMETOOLONG, errno.ENAMETOOLONG]
    assert native.resolve(f"{tmp_path}/", asked) == oracle.resolve(f"{tmp_path}/", asked)


def test_many_links_are_followed_and_one_more_is_a_loop(tmp_path: Path) -> None:
    for number in range(41):
        (tmp_path / f"l{number}").symlink_to(f"/l{number + 1}" if number % 2 else f"./l{number + 1}")
    assert native.resolve(f"{tmp_path}/", ["/l1/x", "/l0/x"]) == ["/l41/x", errno.ELOOP]


def test_a_large_directory_is_listed_whole(tmp_path: Path) -> None:
    expected = [f"{number}-{'x' * 200}" for number in range(3000)]
    for name in expected:
        (tmp_path / name).touch()
    assert native.names("", [str(tmp_path), "/none", str(tmp_path)]) == [expected, errno.ENOENT, expected]


@pytest.mark.parametrize("look", [native.names, native.resolve, lambda root, paths: native.read(root, paths, LIMIT)])
@pytest.mark.parametrize(
    ("root", "asked", "error"),
    [("", "/sys", TypeError), ("", [b"/sys"], TypeError), ("", [None], TypeError), ("", 3, TypeError), ("/a\0/", ["/x"], ValueError)],
)
def test_what_is_no_list_of_paths_is_refused(look: object, root: str, asked: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        look(root, asked)  # type: ignore[operator]


def test_nothing_asked_is_nothing_answered() -> None:
    assert (native.read("", [], LIMIT), native.names("", ()), native.resolve("", iter([]))) == ([], [], [])


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    native.read(f"{tmp_path}/", ["/a", "/fifo", "/", "/none"] * 50, LIMIT)
    native.names(f"{tmp_path}/", ["/", "/a", "/none"] * 50)
    assert os.listdir("/proc/self/fd") == before


def test_threads_that_look_at_once_see_the_same(tmp_path: Path) -> None:
    asked = [f"/f{number}" for number in range(200)]
    for path in asked:
        (tmp_path / path[1:]).write_text(path)
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.extend(native.read(f"{tmp_path}/", asked, LIMIT) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [asked] * 80


def test_signals_change_nothing(tmp_path: Path) -> None:
    asked = [f"/f{number}" for number in range(400)]
    for path in asked:
        (tmp_path / path[1:]).write_text(path)
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        while len(heard) < 20:
            assert native.read(f"{tmp_path}/", asked, LIMIT) == asked
            assert native.resolve(f"{tmp_path}/", asked) == asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
