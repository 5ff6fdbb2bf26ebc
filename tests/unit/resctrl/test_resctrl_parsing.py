# SPDX-License-Identifier: Apache-2.0
"""Numbers and sets of CPUs are read as the kernel reads them.

What is expected was seen on Linux 6.18 with two CPUs: numbers were written to a cgroup's ``cpu.shares``, lists to ``cpuset.cpus``.
"""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.testing.resctrl.parsing import Unreadable, cpu_list, cpu_mask, show_cpu_list, show_cpu_mask, signed, unsigned


@pytest.mark.parametrize(
    ("text", "value"),
    [("16", 16), ("0x10", 16), ("0X10", 16), ("010", 8), ("+16", 16), ("00016", 14), ("0x00010", 16), ("+0x10", 16), ("16\n", 16)],
)
def test_numbers_are_read(text: str, value: int) -> None:
    assert unsigned(text, 0) == value


@pytest.mark.parametrize("text", ["", "0x", "08", "1 6", "-1", "0xg", "++16", "+", "16x", "x16", "0b11", "-0", "16\n\n", " 16"])
def test_what_is_no_number_is_invalid(text: str) -> None:
    with pytest.raises(Unreadable) as raised:
        unsigned(text, 0)
    assert raised.value.number == errno.EINVAL


@pytest.mark.parametrize(("text", "bits"), [("18446744073709551616", 64), ("0x10000000000000000", 64), ("4294967296", 32)])
def test_large_numbers_are_out_of_range(text: str, bits: int) -> None:
    with pytest.raises(Unreadable) as raised:
        unsigned(text, 0, bits)
    assert raised.value.number == errno.ERANGE


def test_signed_numbers_have_32_bits() -> None:
    assert (signed("-2147483648"), signed("2147483647"), signed("-0x10")) == (-(1 << 31), (1 << 31) - 1, -16)
    for text in ("2147483648", "-2147483649"):
        with pytest.raises(Unreadable, match="ERANGE"):
            signed(text)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}),
        ("0-1", {0, 1}),
        ("0-1:1/2", {0}),
        ("0-1:0/2", set()),
        ("0,", {0}),
        ("  0 , 1", {0, 1}),
        ("0 1", {0, 1}),
        ("0\t1", {0, 1}),
        ("all", {0, 1}),
        ("ALL", {0, 1}),
        ("N", {1}),
        ("0-N", {0, 1}),
        ("\n", set()),
    ],
)
def test_lists_are_read(text: str, cpus: set[int]) -> None:
    assert cpu_list(text, 2) == cpus


@pytest.mark.parametrize("text", ["1-0", "0-", "-1", "x", "0x1", "0-1:1/0", "0-1:3/2", "1:1/2", "none", "0;1"])
def test_wrong_lists_are_invalid(text: str) -> None:
    with pytest.raises(Unreadable, match="EINVAL"):
        cpu_list(text, 2)


@pytest.mark.parametrize("text", ["99", "0-99"])
def test_lists_end_at_the_last_cpu(text: str) -> None:
    with pytest.raises(Unreadable, match="ERANGE"):
        cpu_list(text, 2)


@pytest.mark.parametrize(("text", "error"), [("4", "EOVERFLOW"), ("g", "EINVAL"), ("000000003", "EOVERFLOW"), ("0,3", "EOVERFLOW")])
def test_masks_are_of_the_cpus_there_are(text: str, error: str) -> None:
    with pytest.raises(Unreadable, match=error):
        cpu_mask(text, 2)


@given(st.sets(st.integers(0, 99)), st.sampled_from([100, 128, 129]))
def test_what_is_shown_is_read_back(cpus: set[int], total: int) -> None:
    assert cpu_list(show_cpu_list(cpus), total) == cpus
    assert cpu_mask(show_cpu_mask(cpus, total), total) == cpus
    assert len(show_cpu_mask(cpus, total).replace(",", "")) == (total + 3) // 4
