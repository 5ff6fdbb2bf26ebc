# SPDX-License-Identifier: Apache-2.0
"""Names of slots, keys and groups say what they mean, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.cdi import is_device_name
from deviceplugin.plugins.llc import naming

SLOTS = st.dictionaries(st.integers(0, 300), st.integers(1, (1 << 32) - 1), min_size=1, max_size=4)


@given(SLOTS)
def test_names_lead_back_to_the_slots(slots: dict[int, int]) -> None:
    key = naming.key_of(slots)
    assert naming.slots_of(naming.ids_of(slots)) == slots
    assert naming.slots_of_key(key) == slots
    assert naming.key_of_group(naming.group_of(key)) == key
    assert is_device_name(key)


def test_key_is_short_and_plain() -> None:
    assert naming.key_of({1: 0b1, 0: 0b111100}) == "d0x3c.d1x1"
    assert naming.group_of("d0x3c") == "kdp-llc.d0x3c"
    assert naming.device_id(0, 3) == "l3.0.03"


@pytest.mark.parametrize("id_", ["", "l3.0", "l3.0.3", "l3.00.03", "l3.0.32", "l3.-1.03", "l3.0.03::1", "L3.0.03", "l3.0.03\n", "l3.99999999999.00"])
def test_other_ids_are_refused(id_: str) -> None:
    with pytest.raises(ValueError, match="is not the id of a cache slot"):
        naming.slots_of([id_])


@pytest.mark.parametrize("key", ["", "d0x0", "d0x03", "d1x1.d0x1", "d0x1.d0x2", "d0x1.", "d00x1", "d0xG", "d0x1ffffffff", "info"])
def test_other_keys_are_none(key: str) -> None:
    assert naming.slots_of_key(key) is None
    assert naming.key_of_group(naming.PREFIX + key) is None


def test_groups_of_others_have_no_key() -> None:
    assert naming.key_of_group("d0x1") is None
    assert naming.key_of_group("guaranteed") is None
