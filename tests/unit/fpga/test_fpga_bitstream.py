# SPDX-License-Identifier: Apache-2.0
"""A bitstream is used only if it is whole, for this card, and the one that somebody vouched for."""

from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import Host
from deviceplugin.plugins.fpga.bitstream import Bitstream, BitstreamError, Store, parse
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import INTERFACE, NLB0, NLB3, OTHER_INTERFACE, gbs, put_bitstream

GOOD = gbs(INTERFACE, NLB0)


@pytest.fixture
def store(machine: SimulatedHost) -> Store:
    return Store(Host(machine.root), "/srv/intel.com/fpga", require_digest=True, largest=1 << 20)


def test_what_is_in_one() -> None:
    found = parse(GOOD, "x.gbs")
    assert (found.interface, found.afu) == (INTERFACE, NLB0)
    assert bytes(found.image) == bytes.fromhex(NLB0) + b"\x5a" * 4096


def with_metadata(text: bytes) -> bytes:
    return GOOD[:16] + struct.pack("<I", len(text)) + text + b"image"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "fewer than the header"),
        (GOOD[:19], "fewer than the header"),
        (b"\x7fELF" + GOOD[4:], "no GBS file"),
        (GOOD[:40], "truncated"),
        (GOOD[: 20 + struct.unpack_from("<I", GOOD, 16)[0]], "truncated"),
        (GOOD[:16] + struct.pack("<I", 0) + GOOD[20:], "0 bytes"),
        (GOOD[:16] + struct.pack("<I", 4096) + GOOD[20:] * 4, "4096 bytes"),
        (GOOD[:16] + struct.pack("<I", 0xFFFFFFFF) + GOOD[20:], "4294967295 bytes"),
        (with_metadata(b"{"), "metadata cannot be used"),
        (with_metadata(b"\xff\xfe"), "metadata cannot be used"),
        (with_metadata(b"{}"), "afu-image"),
        (with_metadata(b'{"afu-image": {"interface-uuid": "12", "accelerator-clusters": []}}'), "interface-uuid"),
        (with_metadata(b'{"afu-image": {"interface-uuid": "%s", "accelerator-clusters": []}}' % INTERFACE.encode()), "0 accelerator clusters"),
        (with_metadata(b'{"afu-image": {"interface-uuid": 7, "accelerator-clusters": []}}'), "interface-uuid"),
        (with_metadata(b"[" * 4000), "metadata cannot be used"),
    ],
)
def test_what_is_none(data: bytes, words: str) -> None:
    with pytest.raises(BitstreamError, match=words):
        parse(data, "/srv/x.gbs")


@given(st.binary(max_size=300), st.integers(0, 60), st.integers(0, 5000))
def test_no_bytes_do_more_than_refuse(noise: bytes, at: int, cut: int) -> None:
    damaged = (GOOD[:at] + noise + GOOD[at + len(noise) :])[: len(GOOD) - cut]
    try:
        found = parse(damaged, "x.gbs")
    except BitstreamError:
        return
    assert len(found.interface) == len(found.afu) == 32


def test_store_gives_what_is_right(machine: SimulatedHost, store: Store) -> None:
    put_bitstream(machine, INTERFACE, NLB0)
    assert store.check(INTERFACE, NLB0) == ""
    assert store.load(INTERFACE, NLB0).afu == NLB0


def test_missing(machine: SimulatedHost, store: Store) -> None:
    assert "digest" in store.check(INTERFACE, NLB0)
    machine.write(f"/srv/intel.com/fpga/{INTERFACE}/{NLB0}.gbs.sha256", "0" * 64)
    assert "No such file" in store.check(INTERFACE, NLB0)


def test_truncated_by_a_byte(machine: SimulatedHost, store: Store) -> None:
    put_bitstream(machine, INTERFACE, NLB0, GOOD)
    put_bitstream(machine, INTERFACE, NLB0, GOOD[:-1], digest=False)
    assert "truncated, damaged" in store.check(INTERFACE, NLB0)
    put_bitstream(machine, INTERFACE, NLB0, GOOD, digest=False)
    assert store.check(INTERFACE, NLB0) == ""


def test_for_another_card(machine: SimulatedHost, store: Store) -> None:
    put_bitstream(machine, INTERFACE, NLB0, gbs(OTHER_INTERFACE, NLB0))
    assert f"is for cards with interface {OTHER_INTERFACE}" in store.check(INTERFACE, NLB0)


def test_with_another_function(machine: SimulatedHost, store: Store) -> None:
    put_bitstream(machine, INTERFACE, NLB0, gbs(INTERFACE, NLB3))
    assert f"holds the function {NLB3}" in store.check(INTERFACE, NLB0)


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63, "0" * 65])
def test_digest_that_is_none(machine: SimulatedHost, store: Store, text: str) -> None:
    path = put_bitstream(machine, INTERFACE, NLB0)
    machine.write(f"{path}.sha256", text)
    assert ".sha256 does not start with" in store.check(INTERFACE, NLB0)


def test_digest_in_the_configuration_comes_first(machine: SimulatedHost, store: Store) -> None:
    put_bitstream(machine, INTERFACE, NLB0, GOOD, digest=False)
    digest = hashlib.sha256(GOOD).hexdigest()
    assert store.check(INTERFACE, NLB0, digest.upper()) == ""
    assert "should have" in store.check(INTERFACE, NLB0, "0" * 64)


def test_digest_need_not_be_there_if_so_configured(machine: SimulatedHost) -> None:
    put_bitstream(machine, INTERFACE, NLB0, digest=False)
    assert Store(Host(machine.root), "/srv/intel.com/fpga", require_digest=False, largest=1 << 20).check(INTERFACE, NLB0) == ""


def test_a_large_one_is_checked_without_being_held(machine: SimulatedHost) -> None:
    store = Store(Host(machine.root), "/srv/intel.com/fpga", require_digest=True, largest=1 << 30)
    put_bitstream(machine, INTERFACE, NLB0, gbs(INTERFACE, NLB0, bytes(32 << 20)))
    tracemalloc.start()
    try:
        assert store.check(INTERFACE, NLB0) == ""
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(store.load(INTERFACE, NLB0).image) == (32 << 20) + 16


def test_too_large_a_file_is_not_even_read(machine: SimulatedHost, store: Store) -> None:
    path = put_bitstream(machine, INTERFACE, NLB0)
    os.truncate(machine.path(path), 1 << 40)
    assert "more than largestBitstream" in store.check(INTERFACE, NLB0)


def test_what_is_no_regular_file(machine: SimulatedHost, store: Store) -> None:
    path = put_bitstream(machine, INTERFACE, NLB0)
    machine.remove(path)
    machine.fifo(path)
    assert "not a regular file" in store.check(INTERFACE, NLB0)
    machine.remove(path)
    os.mkdir(machine.path(path))
    assert "cannot be read" in store.check(INTERFACE, NLB0) or "not a regular file" in store.check(INTERFACE, NLB0)


@pytest.mark.parametrize("how", ["replaced", "rewritten", "grown"])
def test_changed_while_it_is_read(machine: SimulatedHost, store: Store, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = put_bitstream(machine, INTERFACE, NLB0, GOOD)
    real = os.fstat

    def meanwhile(fd: int) -> os.stat_result:
        status = real(fd)
        monkeypatch.setattr(os, "fstat", real)
        if how == "replaced":
            put_bitstream(machine, INTERFACE, NLB0, GOOD, digest=False)
        else:
            with open(machine.path(path), "r+b" if how == "rewritten" else "ab") as file:
                file.write(b"\x00" * 8)
        return status

    monkeypatch.setattr(os, "fstat", meanwhile)
    with pytest.raises(BitstreamError, match=r"changed or replaced|should have"):
        store.load(INTERFACE, NLB0)


def test_read_again_only_when_it_changed(machine: SimulatedHost, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_bitstream(machine, INTERFACE, NLB0)
    loads: list[str] = []
    examine = store._examine

    def counted(interface: str, afu: str, sha256: str, keep: int) -> Bitstream:
        loads.append(afu)
        return examine(interface, afu, sha256, keep)

    monkeypatch.setattr(store, "_examine", counted)
    for _ in range(5):
        assert store.check(INTERFACE, NLB0) == ""
    assert loads == [NLB0]
    machine.write(f"{path}.sha256", "0" * 64)
    assert "should have" in store.check(INTERFACE, NLB0)
    assert loads == [NLB0, NLB0]
