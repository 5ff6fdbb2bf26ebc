# SPDX-License-Identifier: Apache-2.0
"""What kernels of all ages write is read, and what is written is what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.plugins.llc.bandwidth import bandwidth_of
from deviceplugin.plugins.llc.resctrl import Resctrl, ResctrlError, masks
from deviceplugin.testing.resctrl import SCENARIOS, SimResctrl
from tests.helpers.llc import Disk, Node, look, picked


class Fixed:
    """One file's content, and what is written."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.written: list[bytes] = []

    def read(self, path: str) -> bytes:
        return self.content if path.endswith("schemata") else b"ok\n"

    def write(self, path: str, data: bytes) -> None:
        self.written.append(data)

    def list(self, path: str) -> list[str]:
        return []

    def mkdir(self, path: str) -> None:
        raise FileExistsError(17, "File exists")

    def rmdir(self, path: str) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    def read_only(self) -> bool:
        return False


@pytest.mark.parametrize(
    "text",
    [
        "L3:0=7ff;1=3c\nMB:0=100;1=50\n",
        "    L3:0=7ff;1=3c\n    MB:0=100;1=50\n",  # padded to the widest name
        "    L3:0=007ff;1=0003c\n    MB:0= 100;1=  50\n",  # before Linux 4.17 or so
        "L2:0=ff;1=ff\nL3:0=7ff;1=3c\nMB:0=100;1=50",
        "L3:0=7ff;1=3c\nMB:0=100;1=50\nNEW:0=x;y\n",  # a resource that nobody knows yet
        "L3:0=7ff;1=3c;\nMB:0=100;1=50;\n",
    ],
)
def test_schemata_of_all_kernels(text: str) -> None:
    found = Resctrl(Fixed(text.encode())).schemata("g")
    assert found is not None
    assert (found["L3"], found["MB"]) == ({0: 0x7FF, 1: 0x3C}, {0: 100, 1: 50})


@given(st.binary(max_size=200))
def test_any_bytes_are_schemata_or_an_error(content: bytes) -> None:
    try:
        Resctrl(Fixed(content)).schemata("g")
    except ResctrlError as error:
        assert "which is not NAME:cache=value" in str(error)  # noqa: PT017 - or no error at all


def test_only_what_differs_is_written() -> None:
    files = Fixed(b"L3:0=7;1=3c\nMB:0=100;1=100\n")
    with pytest.raises(ResctrlError, match="does not hold L3:1=1"):
        Resctrl(files).put("g", {"L3": {0: 7, 1: 1, 9: 1}, "MB": {0: 100}})
    assert files.written == [b"L3:1=1\n"]
    assert not Resctrl(files).put("g", {"L3": {0: 7, 9: 1}})


def test_lines_that_do_not_fit_into_one_write_are_several() -> None:
    caches = dict.fromkeys(range(300), 1048575)
    text = "\n".join(f"{name}:" + ";".join(f"{id_}=1" for id_ in caches) for name in ("L3CODE", "L3DATA")) + "\n"
    files = Fixed(text.encode())
    with pytest.raises(ResctrlError, match="does not hold"):
        Resctrl(files).put("g", {"L3CODE": caches, "L3DATA": caches})
    assert [len(data) < 4096 for data in files.written] == [True, True]
    assert b"".join(files.written).count(b"=fffff") == 600


def test_masks_are_those_that_code_and_data_share() -> None:
    assert masks({"L3CODE": {0: 1, 1: 2}, "L3DATA": {0: 1, 1: 3}}, ("L3CODE", "L3DATA")) == {0: 1, 1: 0}
    assert masks({}, ("L3",)) == {}


def test_group_that_is_gone() -> None:
    files = Disk(SimResctrl(SCENARIOS["skylake"]))
    there = Resctrl(files)
    assert there.schemata("gone") is None
    assert there.tasks("gone") is None
    assert not there.remove("gone")
    assert there.make("new")
    assert not there.make("new")
    with pytest.raises(ResctrlError, match="gone/schemata cannot be read: No such file"):
        there.put("gone", {"L3": {0: 1}})
    with pytest.raises(ResctrlError, match="gone/tasks cannot take thread"):
        there.join("gone", 1)
    assert there.join("new", 1)
    assert not there.join("new", 99999)


@pytest.mark.parametrize("scenario", ["skylake", "spr20", "haswell", "amd", "cdp"])
def test_old_kernels(tmp_path: Path, scenario: str) -> None:
    node = Node(str(tmp_path), replace(SCENARIOS[scenario], kernel=(4, 14)), mode="reserve", memoryBandwidth=20)
    plugin = node.plugin()
    devices = look(plugin)
    assert devices
    plugin.prepare(picked(devices, "l3.0.00", "l3.0.02"))
    assert node.groups == ["kdp-llc.d0x5"]
    assert {one.health.value for one in look(plugin).values()} == {"healthy"}


@given(st.dictionaries(st.integers(0, 3), st.integers(1, 255)), st.integers(1, 100), st.integers(0, 20), st.integers(1, 20), st.integers(1, 2048))
def test_bandwidth_is_what_the_kernel_takes(slots: dict[int, int], per_slot: int, least: int, step: int, most: int) -> None:
    root = dict.fromkeys(range(4), most)
    found = bandwidth_of(slots, per_slot, (least, step), root)
    assert set(found) == set(root)
    for cache, value in found.items():
        assert value <= most
        if cache not in slots:
            assert value == most
        elif value < most:
            assert value >= max(least, per_slot * slots[cache].bit_count())
            assert value == least or value % step == 0
