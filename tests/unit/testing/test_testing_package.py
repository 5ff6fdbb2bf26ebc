# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import deviceplugin.testing
from deviceplugin.testing import NotReached
from deviceplugin.testing.events import EventLog


def test_every_public_name_can_be_had() -> None:
    for name in deviceplugin.testing.__all__:
        assert getattr(deviceplugin.testing, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Kublet'"):
        _ = deviceplugin.testing.Kublet


def test_pytest_loads_the_fixtures_without_grpc() -> None:
    code = "import sys, deviceplugin.testing.pytest_plugin; print([m for m in ('grpc', 'google.protobuf') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_kubelet_needs_nothing_of_the_framework_but_the_protocol() -> None:
    code = (
        "import sys, deviceplugin; before = set(sys.modules); import deviceplugin.testing.conformance, deviceplugin.testing.host;"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('deviceplugin.') and not m.startswith('deviceplugin.testing')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (
        loaded
        == str(
            [
                "deviceplugin.kubelet",
                "deviceplugin.kubelet.deviceplugin_v1beta1_pb2",
                "deviceplugin.kubelet.pluginregistration_v1_pb2",
                "deviceplugin.kubelet.podresources_v1_pb2",
            ]
        )
        + "\n"
    )


def test_a_wait_sees_what_happens_between_its_looks() -> None:
    log = EventLog(lambda: 1.0)

    def tick() -> None:
        for n in range(1000):
            log.record("tick", n=n)

    thread = threading.Thread(target=tick)
    thread.start()
    log.wait(lambda: len(log.of("tick")) == 1000, 10, lambda: "1000 ticks")
    thread.join()


def test_a_failed_wait_tells_the_last_events() -> None:
    log = EventLog(lambda: 1.0)
    with pytest.raises(NotReached, match="the moon\nlast events:\n  \\(nothing has happened\\)"):
        log.wait(lambda: False, 0.01, lambda: "the moon")
    log.record("register", "vendor.example/device", text="x" * 300)
    with pytest.raises(NotReached, match=r"1.000 register vendor.example/device text=x+\.\.\. \(300 characters\)"):
        log.wait(lambda: False, 0.01, lambda: "the moon")


def test_a_failed_test_shows_the_kubelets_seed_and_events(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(kubelet):\n    assert kubelet.capacity('vendor.example/device') == 1\n")
    run = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    assert re.search(r"- kubelet -+\nkubelet \(v136, seed=\d+\) below .*\nlast events:\n.* kubelet started ", run.stdout)
