# SPDX-License-Identifier: Apache-2.0
"""Options are strict, and errors say what to write."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from deviceplugin.plugins.fpga import FpgaConfig
from deviceplugin.testing.fpga import NLB0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "orchestrated"}, "mode"),
        ({"modes": "af"}, "modes"),
        ({"functions": [{"afu": "d8424dc4"}]}, "32 hexadecimal digits"),
        ({"functions": [{"afu": NLB0, "interface": "x" * 32}]}, "interface"),
        ({"functions": [{"afu": NLB0, "sha256": "abc"}]}, "64 hexadecimal digits"),
        ({"functions": [{"afu": NLB0, "ports": [-1]}]}, "ports"),
        ({"functions": [{"afu": NLB0}], "mode": "regiondevel"}, "leave functions out"),
        ({"managers": [{"resource": "zynq", "nodes": []}]}, "nothing to hold a container to"),
        ({"managers": [{"resource": "zynq", "nodes": ["uio0"]}]}, "below /dev"),
        ({"managers": [{"resource": "zynq", "nodes": ["/dev/../etc"]}]}, "below /dev"),
        ({"managers": [{"resource": "-zynq", "nodes": ["/dev/uio0"]}]}, "letter or digit"),
        ({"domain": "kubernetes.io"}, "domain"),
        ({"domain": "Fpga_"}, "domain"),
        ({"bitstreams": "srv"}, "absolute"),
        ({"stateDirectory": "var"}, "absolute"),
        ({"largestBitstream": 0}, "largestBitstream"),
        ({"largestBitstream": 1 << 32}, "largestBitstream"),
        ({"busyTimeout": -1}, "busyTimeout"),
        ({"requireDigest": "yes"}, "requireDigest"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(options, FpgaConfig)


def test_ids_as_people_write_them() -> None:
    config = msgspec.convert({"functions": [{"afu": "D8424DC4-A4A3-C413-F89E-433683F9040B"}]}, FpgaConfig)
    assert config.functions[0].afu_id == NLB0
