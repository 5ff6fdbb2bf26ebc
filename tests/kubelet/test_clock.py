# SPDX-License-Identifier: Apache-2.0
"""The clock of the machine jumps: nothing is timed by it."""

from __future__ import annotations

import time

import pytest

from deviceplugin.observe.readiness import liveness, readiness, ready
from deviceplugin.observe.status import take
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.serving import RESOURCE, Rack, plan_for, service_of, serving

YEARS = 10 * 365 * 86400.0


def test_a_daemon_goes_on_as_before_when_the_clock_jumps(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    rack = Rack("a", "b")
    true = time.time
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        for jump in (YEARS, -YEARS, 0.5, -true()):  # the last: a machine without a battery starts in 1970
            monkeypatch.setattr(time, "time", lambda jump=jump: true() + jump)
            rack.sicken("a")
            kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
            daemon.apply(plan_for(kubelet.root, rack))
            status = take(daemon)
            assert 0 <= status.uptime_seconds < 60
            assert all(0 <= device.age_seconds < 60 for resource in status.resources for device in resource.devices)
            assert abs(status.config.loaded_at.timestamp() - (true() + jump)) < 60
            assert ready(readiness(daemon))
            assert liveness(daemon) == ()
            rack.put("a")
            kubelet.wait_for(RESOURCE, healthy=2)
            pod = Pod.requesting(RESOURCE, 2, name=f"pod-{jump:.0f}")
            assert kubelet.admit(pod)
            kubelet.delete_pod(pod)
        assert service_of(daemon).registrar.standing().registrations == 1
    assert len(kubelet.events.of("register")) == 1
