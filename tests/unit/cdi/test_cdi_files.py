# SPDX-License-Identifier: Apache-2.0
"""Spec files on the disk: whole or not at all, ours alone, and said what is wrong when they cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deviceplugin import DeviceNode, Host
from deviceplugin.cdi import CdiError, ContainerEdits, Spec, SpecDirectory, published

KIND = "example.com/thing"


def spec(*names: str) -> Spec:
    return Spec(kind=KIND, devices={name: ContainerEdits(nodes=(DeviceNode(f"/dev/{name}"),)) for name in names})


@pytest.fixture
def directory(tmp_path: Path) -> SpecDirectory:
    return SpecDirectory(Host(root=str(tmp_path)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "var/run/cdi"


def test_a_spec_is_written_for_all_to_read_and_nothing_is_left_beside_it(directory: SpecDirectory, place: Path) -> None:
    assert directory.write(spec("a", "b"))
    target = place / "example.com-thing.json"
    assert target.read_bytes() == spec("a", "b").to_json()
    assert target.stat().st_mode & 0o777 == 0o644
    assert os.listdir(place) == [target.name]


def test_the_same_content_is_not_written_again(directory: SpecDirectory, place: Path) -> None:
    directory.write(spec("a"))
    before = (place / "example.com-thing.json").stat()
    assert not directory.write(spec("a"))
    after = (place / "example.com-thing.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert directory.write(spec("a", "b"))


def test_a_longer_file_that_starts_alike_is_replaced(directory: SpecDirectory, place: Path) -> None:
    directory.write(spec("a"))
    with (place / "example.com-thing.json").open("ab") as file:
        file.write(b"{}")
    assert directory.write(spec("a"))
    assert (place / "example.com-thing.json").read_bytes() == spec("a").to_json()


def test_readers_never_see_half_a_file(directory: SpecDirectory, place: Path) -> None:
    directory.write(spec("a"))
    with (place / "example.com-thing.json").open("rb") as reader:
        directory.write(spec("b"))
        assert reader.read() == spec("a").to_json()  # the old file is another inode, still whole


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "read-write"),
        (errno.EACCES, "writable"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failure_says_the_file_and_what_to_do_and_leaves_the_old_file(
    directory: SpecDirectory, place: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    directory.write(spec("a"))

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CdiError) as caught:
        directory.write(spec("b"))
    assert caught.value.errno == number
    assert "/var/run/cdi/example.com-thing.json" in str(caught.value)
    assert words in str(caught.value)
    assert (place / "example.com-thing.json").read_bytes() == spec("a").to_json()
    assert os.listdir(place) == ["example.com-thing.json"]


def test_an_invalid_spec_leaves_the_disk_alone(directory: SpecDirectory, place: Path) -> None:
    with pytest.raises(CdiError):
        directory.write(spec())
    assert not place.exists()


def test_only_our_file_of_the_kind_is_removed(directory: SpecDirectory, place: Path) -> None:
    assert not directory.remove(KIND)
    directory.write(spec("a"))
    other = place / "vendor.json"
    other.write_bytes(spec("a").to_json())
    assert directory.remove(KIND)
    assert not directory.remove(KIND)
    assert os.listdir(place) == ["vendor.json"]


@pytest.mark.parametrize("text", ["not json", '{"kind": "example.com-thing/x", "devices": []}', "[]"])
def test_a_file_of_that_name_that_does_not_describe_the_kind_stays(directory: SpecDirectory, place: Path, text: str) -> None:
    place.mkdir(parents=True)
    (place / "example.com-thing.json").write_text(text)
    assert not directory.remove(KIND)
    assert (place / "example.com-thing.json").read_text() == text


def test_the_devices_in_others_files_are_found_in_json_and_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(spec("a", "b").to_json())
    (tmp_path / "a.yaml").write_text("cdiVersion: 0.5.0\nkind: example.com/thing\ndevices:\n- name: '0'\n- name: all\n- {}\n")
    assert published(str(tmp_path / "a.json"), KIND) == {"a", "b"}
    assert published(str(tmp_path / "a.yaml"), KIND) == {"0", "all"}
    assert published(str(tmp_path / "a.json"), "example.com/other") == frozenset()
    assert published(str(tmp_path / "none.json"), KIND) == frozenset()


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.yaml", "a: ["), ("a.yaml", "a: !!python/object:os.system {}"), ("a.json", "[]")])
def test_a_file_that_is_no_spec_is_an_error_that_names_it(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CdiError, match=name):
        published(str(tmp_path / name), KIND)
