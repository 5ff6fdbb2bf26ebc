# SPDX-License-Identifier: Apache-2.0
"""A machine from data, and one that changes while others look at it."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import pytest

from deviceplugin import Host, sysfs
from deviceplugin.events import Kind, Watch
from deviceplugin.testing import SimulatedHost, TreeError

DOCS = Path(__file__).resolve().parents[3] / "docs/writing-a-plugin.md"
CARD = "/sys/devices/pci0000:3a/0000:3b:00.0/acme/card0"


@pytest.fixture
def machine(tmp_path: Path) -> SimulatedHost:
    return SimulatedHost(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(str(tmp_path))


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_each_kind_of_entry_is_made(machine: SimulatedHost, host: Host) -> None:
    machine.populate(
        {
            f"{CARD}/vendor": "0x10ee\n",
            "/sys/class/acme/card0": {"link": CARD},
            "/sys/class/acme/card1": {"link": "../none"},
            "/dev/acme0": {"device": "c 238:7"},
            "/dev/acme1": {"device": "b 8:16"},
            "/dev/pipe": {"fifo": True},
            "/sys/kernel/iommu_groups": {"directory": True},
            "/etc/empty": "",
        }
    )
    assert machine.read("/sys/class/acme/card0/vendor") == "0x10ee\n"
    assert os.readlink(machine.path("/sys/class/acme/card0")) == CARD.replace("/sys", "../..")
    assert os.readlink(machine.path("/sys/class/acme/card1")) == "../none"
    assert sysfs.device_number(host, "/dev/acme0") == sysfs.DeviceNumber("char", 238, 7)
    assert sysfs.device_number(host, "/dev/acme1") == sysfs.DeviceNumber("block", 8, 16)
    assert stat.S_ISFIFO(os.stat(machine.path("/dev/pipe")).st_mode)
    assert os.listdir(machine.path("/sys/kernel/iommu_groups")) == []
    assert machine.read("/etc/empty") == ""
    assert machine.device_file("/dev/acme2", major=238).number == "238:8"


def test_the_example_in_the_documentation_is_one(machine: SimulatedHost, host: Host, tmp_path: Path) -> None:
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL) if block.startswith("/sys/")]
    file = tmp_path / "one-card.yaml"
    file.write_text(example)
    machine.populate(file)
    assert sysfs.read(host, "/sys/class/acme/card0/driver_version") == "2.0"
    machine.write("/sys/class/acme/card0/driver_version", "1.2\n")
    assert sysfs.read(host, f"{CARD}/driver_version") == "1.2"
    assert sysfs.entries(host, "/sys/class/acme") == ["card0", "card1"]


def test_what_is_there_is_replaced_and_directories_are_kept(machine: SimulatedHost) -> None:
    machine.populate({"/a": "old", "/b/c": "kept", "/d": {"link": "a"}, "/e/f": "gone", "/g": {"link": "/b"}})
    machine.populate({"/a": {"fifo": True}, "/b": {"directory": True}, "/d": "text", "/e": {"device": "c 1:3"}, "/g": {"directory": True}})
    assert stat.S_ISFIFO(os.lstat(machine.path("/a")).st_mode)
    assert machine.read("/b/c") == "kept"
    assert machine.read("/d") == "text"
    assert machine.read("/e") == "c 1:3\n"
    assert stat.S_ISDIR(os.lstat(machine.path("/g")).st_mode)


@pytest.mark.parametrize(
    ("path", "value", "mistake"),
    [
        ("sys/a", "", "'sys/a': write the whole path from / on, without empty parts, '.' and '..'"),
        ("/", "", "'/': write the whole path from / on, without empty parts, '.' and '..'"),
        ("/a/", "", "'/a/': write the whole path from / on, without empty parts, '.' and '..'"),
        ("/a/../b", "", "'/a/../b': write the whole path from / on, without empty parts, '.' and '..'"),
        ("/a\0", "", r"'/a\x00': write the whole path from / on, without empty parts, '.' and '..'"),
        (3, "", "3: a path must be text"),
        ("/a", 4318, "/a: 4318 is int, not text: put it in quotes"),
        ("/a", True, "/a: True is bool, not text: put it in quotes"),
        ("/a", None, "/a: None is NoneType, not text: put it in quotes"),
        ("/a", {"link": ""}, "/a: link must name what it leads to"),
        ("/a", {"device": "238:0"}, "/a: device must be as 'c 188:0' or 'b 8:0', not '238:0'"),
        *(
            (
                "/a",
                value,
                "/a: must be text or one of {link: TARGET}, {device: 'c MAJOR:MINOR'}, {fifo: true}, {directory: true}, " + f"not {value!r}",
            )
            for value in ({}, {"fifo": False}, {"fifo": 1.5}, {"symlink": "b"}, {"link": 3}, {"link": "b", "fifo": True})
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(machine: SimulatedHost, tmp_path: Path, path: str, value: object, mistake: str) -> None:
    with pytest.raises(TreeError) as caught:
        machine.populate({"/fine": "", path: value})
    assert str(caught.value) == mistake
    assert everything(tmp_path) == []


def test_every_mistake_is_named(machine: SimulatedHost) -> None:
    with pytest.raises(TreeError) as caught:
        machine.populate({"/a": "", "/a/b": "", "/l": {"link": "x"}, "/l/c/d": "", "/n": 1})
    assert str(caught.value).splitlines() == [
        "/n: 1 is int, not text: put it in quotes",
        "/a/b: is below /a, which is no directory",
        "/l/c/d: is below /l, which is a link: write it below what that leads to",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("- /a\n", "FILE: must be a mapping from paths to what is there"),
        ("", "FILE: must be a mapping from paths to what is there"),
        ("/a: 0x10ee\n/b: 2.0\n", "FILE: /a: 4334 is int, not text: put it in quotes\nFILE: /b: 2.0 is float, not text: put it in quotes"),
        ("/a: x\n/a: y\n", "FILE:2:1: not valid YAML: the key '/a' is there twice"),
        ("/a: [\n", "FILE:2:1: not valid YAML: did not find expected node content"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(machine: SimulatedHost, tmp_path: Path, text: str, mistake: str) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text(text)
    with pytest.raises(TreeError) as caught:
        machine.populate(file)
    assert str(caught.value) == mistake.replace("FILE", str(file))


def test_a_file_that_is_not_there_is_named(machine: SimulatedHost) -> None:
    with pytest.raises(TreeError, match=r"^/none/tree.yaml: cannot be read: No such file or directory$"):
        machine.populate("/none/tree.yaml")


def test_paths_are_removed_and_renamed(machine: SimulatedHost, tmp_path: Path) -> None:
    machine.populate({"/a/b": "1", "/a/c/d": "2", "/l": {"link": "/a/c"}, "/e": "3"})
    machine.remove("/l")
    assert machine.rename("/a/b", "/new/b") == "/new/b"
    machine.rename("/e", "/new/b")
    machine.rename("/a/c", "/moved")
    machine.remove("/a")
    assert everything(tmp_path) == ["moved", "moved/d", "new", "new/b"]
    assert machine.read("/new/b") == "3"
    with pytest.raises(FileNotFoundError):
        machine.remove("/a")


def test_a_file_changes_whole_and_is_alone_in_its_directory(machine: SimulatedHost, host: Host) -> None:
    texts = {"a" * 4000, "b" * 4000}
    machine.write("/sys/state", "a" * 4000)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for text in texts:
                machine.write("/sys/state", text)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            assert set(sysfs.read_many(host, ["/sys/state"] * 5)) <= texts
            assert sysfs.entries_many(host, ["/sys"]) == [["state"]]
    finally:
        ended.set()
        thread.join()


def test_who_watches_a_directory_is_told_of_every_change_in_it(machine: SimulatedHost, host: Host) -> None:
    machine.write("/sys/acme/state", "ok\n")
    at = host.path("/sys/acme")
    watch = Watch([at])
    try:

        def seen() -> set[tuple[str, Kind]]:
            changes = watch.wait(5)
            assert changes
            assert {change.directory for change in changes} == {at}
            return {(change.name, change.kind) for change in changes}

        machine.write("/sys/acme/state", "failed\n")
        assert seen() == {("state", Kind.CREATED)}
        assert sysfs.read_many(host, ["/sys/acme/state"]) == ["failed"]
        machine.link("/sys/acme/state", "/sys/other")
        assert seen() == {("state", Kind.CREATED)}
        machine.rename("/sys/acme/state", "/sys/acme/was")
        assert seen() == {("state", Kind.DELETED), ("was", Kind.CREATED)}
        machine.remove("/sys/acme/was")
        assert seen() == {("was", Kind.DELETED)}
    finally:
        watch.close()
