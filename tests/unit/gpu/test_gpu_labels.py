# SPDX-License-Identifier: Apache-2.0
"""The plugin tells Node Feature Discovery of its GPUs where it is asked to, and a file that cannot be written takes no GPU away."""

from __future__ import annotations

from pathlib import Path

import pytest

from deviceplugin import Device, Host, Sharing
from deviceplugin.plugins.gpu import Gpu, GpuConfig
from deviceplugin.plugins.gpu.labels import FILE
from deviceplugin.testing import nvml


def look(root: Path, sharing: dict[str, Sharing], *, labels: bool = True) -> list[Device]:
    library = nvml.one_t4().install(root / "lib")
    plugin = Gpu(GpuConfig(library=str(library), labels=labels), Host(str(root)))
    plugin.sharing = sharing
    try:
        return [one for one in plugin.discover() if isinstance(one, Device)]
    finally:
        plugin.stop()


def test_labels_say_how_gpus_are_shared(tmp_path: Path) -> None:
    assert look(tmp_path, {"nvidia.com/gpu": Sharing(replicas=4)})
    written = (tmp_path / FILE.lstrip("/")).read_text().splitlines()
    assert {"nvidia.com/gpu.count=1", "nvidia.com/gpu.replicas=4", "nvidia.com/gpu.sharing-strategy=time-slicing"} <= set(written)


def test_no_file_is_written_unless_asked_for(tmp_path: Path) -> None:
    assert look(tmp_path, {}, labels=False)
    assert not (tmp_path / FILE.lstrip("/")).exists()


def test_a_file_that_cannot_be_written_is_said_and_takes_no_gpu_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "etc").write_text("in the way")
    assert len(look(tmp_path, {})) == 1
    assert [record.message for record in caplog.records if "the labels cannot be written" in record.message]


def test_labels_are_left_over_where_they_are_ours(tmp_path: Path) -> None:
    assert look(tmp_path, {})
    host, path = Host(str(tmp_path)), tmp_path / FILE.lstrip("/")
    assert list(Gpu(GpuConfig(), host).uninstall(remove=True)) == [], "without labels in the configuration the file is somebody else's"
    ours = Gpu(GpuConfig(labels=True), host)
    assert list(ours.uninstall(remove=False)) == [f"label file {path}"]
    assert path.exists()
    assert list(ours.uninstall(remove=True)) == [f"label file {path}"]
    assert list(ours.uninstall(remove=True)) == []
