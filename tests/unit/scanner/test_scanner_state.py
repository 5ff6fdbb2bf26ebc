# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from deviceplugin.model import Device
from tests.helpers.core import sick
from tests.helpers.scanning import Bench


def test_a_fault_survives_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "state" / "health.json"
    first = Bench(state=state)
    first.find(sick("a", "fatal"), sick("b", "passing"), Device("c"))
    first.end()
    second = Bench(state=state)
    second.find(Device("a"), Device("b"), Device("c"))
    assert second.listed() == {"a": "unhealthy", "b": "healthy", "c": "healthy"}
    second.end()
    assert [path.name for path in state.parent.iterdir()] == ["health.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"units": [1]}', '{"boot_id": "boot", "units": {"a": {}}}', "\udcff"])
def test_a_state_that_cannot_be_read_is_left_aside_and_said(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "health.json"
    state.write_bytes(text.encode("utf-8", "surrogateescape"))
    bench = Bench(state=state)
    bench.find(Device("a"))
    assert bench.listed() == {"a": "healthy"}
    assert sum("starting without them" in record.getMessage() for record in caplog.records) == 1
    bench.end()


def test_a_state_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    bench = Bench(state=tmp_path / "file" / "health.json")
    bench.find(sick("a"))
    assert bench.listed() == {"a": "unhealthy"}
    assert "would not survive a restart" in caplog.text
    bench.end()
