# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from pathlib import Path

from deviceplugin.config import Deadlines
from deviceplugin.daemon import Daemon
from deviceplugin.model import Device, Health
from deviceplugin.observe.pages import Pages
from deviceplugin.observe.readiness import Check, liveness, readiness, ready
from tests.unit.observe.told import Make


def by_name(daemon: Daemon, now: float | None = None) -> dict[str, Check]:
    return {one.name: one for one in readiness(daemon, now)}


def test_without_a_kubelet_nothing_is_served_and_so_nothing_is_ready(make: Make, root: Path) -> None:
    checks = by_name(make(Device("a")))
    assert checks["config"].ok
    assert checks["plugin/told"].ok
    assert checks["plugin/told"].text.startswith("1 device, looked ")
    resource = checks["resource/example.com/told"]
    assert not resource.ok
    assert resource.text == f"active, not serving: no kubelet at {root}/var/lib/kubelet/device-plugins/kubelet.sock"


def test_a_node_without_hardware_is_ready(make: Make) -> None:
    assert all(one.ok for one in readiness(make()))


def test_a_complete_standby_is_ready_and_says_for_whom_it_waits(make: Make) -> None:
    make(Device("a"))
    check = by_name(make(Device("a")))["resource/example.com/told"]
    assert check.ok
    assert check.text.startswith("standby, ready to take over from pid ")


def test_a_failing_discovery_is_not_ready_and_gives_the_reason(make: Make) -> None:
    check = by_name(make(error=OSError("no driver")))["plugin/told"]
    assert not check.ok
    assert check.text == "plugin told: discover() failed: OSError: no driver (1 failure in a row)"


def test_a_hanging_hook_is_named(make: Make) -> None:
    daemon = make(block=threading.Event(), deadlines=Deadlines(discover=0.05))
    check = by_name(daemon)["plugin/told"]
    assert not check.ok
    assert check.text.startswith("discover() hangs since ")


def test_a_plugin_that_has_not_looked_for_three_intervals_is_late(make: Make) -> None:
    daemon = make(Device("a"))
    now = time.monotonic()
    assert by_name(daemon, now + 3600 * 2.9)["plugin/told"].ok
    late = by_name(daemon, now + 3600 * 3.1)["plugin/told"]
    assert not late.ok
    assert late.text == "looked 3 h ago, and should every 60 min"


def test_devices_that_are_unhealthy_do_not_make_the_daemon_unready(make: Make) -> None:
    assert by_name(make(Device("a", health=Health.UNHEALTHY, cause="broken")))["plugin/told"].ok


def test_a_lock_that_cannot_be_used_blocks_and_says_why(make: Make, root: Path) -> None:
    (root / "run").mkdir()
    (root / "run/deviceplugin").write_text("in the way")
    check = by_name(make(Device("a")))["resource/example.com/told"]
    assert not check.ok
    assert check.text.startswith("blocked: example.com/told: cannot open the lock ")


def test_two_plugins_with_one_resource_are_a_conflict(make: Make) -> None:
    daemon = make(Device("a"), labels=("one", "two"))
    conflict = by_name(daemon)["conflict/example.com/told"]
    assert not conflict.ok
    assert "rename one of the resources" in conflict.text


def test_a_configuration_that_was_refused_is_shown_and_the_daemon_stays_ready(make: Make) -> None:
    daemon = make()
    daemon.config_error = "c.yaml: unknown key"
    assert by_name(daemon)["config"] == Check("config", False, "not applied, the one before is in force: c.yaml: unknown key", vital=False)
    assert ready(readiness(daemon))
    lines = str(Pages(daemon).get("/readyz").body).splitlines()
    assert lines == ["[!] config: not applied, the one before is in force: c.yaml: unknown key", "ready"]


def test_a_daemon_lives_while_its_threads_do(make: Make) -> None:
    daemon = make(Device("a"))
    assert liveness(daemon) == ()
    daemon.scanners["told"].stop()
    assert liveness(daemon) == ("scan-told",)
