# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from deviceplugin.observe.words import count, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 ms"),
        (0.0002, "0.2 ms"),
        (0.0123, "12 ms"),
        (0.9999, "1 s"),
        (59, "59 s"),
        (89, "89 s"),
        (300, "5 min"),
        (7200, "2 h"),
        (345600, "4 d"),
    ],
)
def test_a_duration_has_the_largest_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_thing_is_not_things() -> None:
    assert (count(1, "device"), count(0, "device")) == ("1 device", "0 devices")
