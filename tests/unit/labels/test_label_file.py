# SPDX-License-Identifier: Apache-2.0
"""A feature file is whole or not there, and every label is one that Kubernetes takes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import Host
from deviceplugin.labels import DIRECTORY, LabelFile, label_value

VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


@given(st.text(max_size=90))
def test_any_text_becomes_a_value_that_kubernetes_takes(text: str) -> None:
    assert VALUE.fullmatch(label_value(text))
    assert label_value(label_value(text)) == label_value(text)


def test_the_file_is_whole_sorted_and_written_once(tmp_path: Path) -> None:
    file = LabelFile(Host(root=str(tmp_path)), f"{DIRECTORY}/card")
    path = tmp_path / "etc/kubernetes/node-feature-discovery/features.d/card"
    assert not file.remove()
    assert file.write({"b": "2", "a": "1"})
    assert path.read_text(encoding="utf-8") == "a=1\nb=2\n"
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat().st_ino
    assert not file.write({"a": "1", "b": "2"})
    assert path.stat().st_ino == before
    assert file.write({"a": "1"})
    assert os.listdir(path.parent) == ["card"]
    assert file.remove()
    assert not path.exists()


def test_a_failure_leaves_the_labels_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LabelFile(Host(root=str(tmp_path)), f"{DIRECTORY}/card")
    file.write({"a": "1"})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.write({"a": "2"})
    path = tmp_path / "etc/kubernetes/node-feature-discovery/features.d"
    assert os.listdir(path) == ["card"]
    assert (path / "card").read_text(encoding="utf-8") == "a=1\n"
