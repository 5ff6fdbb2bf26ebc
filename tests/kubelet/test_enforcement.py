# SPDX-License-Identifier: Apache-2.0
"""What containers hold is compared with what is so, and shown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from prometheus_client import generate_latest

from deviceplugin import Allocation, Device, Enforcement, Verdict
from deviceplugin.daemon import Daemon
from deviceplugin.observe import metrics, report, status
from deviceplugin.observe.tables import Screen
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.serving import RESOURCE, Rack, plan_for, serving, wait_until


class Truth:
    """What is really so of each container, as the plugin finds it; containers it does not know are not judged."""

    def __init__(self) -> None:
        self.by_pod: dict[str, bool] = {}
        self.seen: Sequence[Allocation] = ()

    def hook(self) -> dict[str, object]:
        truth = self

        def reconcile(_plugin: object, allocations: Sequence[Allocation]) -> Iterable[Verdict]:
            truth.seen = allocations
            for one in allocations:
                if one.pod in truth.by_pod:
                    yield Verdict(one, truth.by_pod[one.pod], "" if truth.by_pod[one.pod] else "its tasks run elsewhere")

        return {"reconcile": reconcile}


def looks(daemon: Daemon, kubelet: Kubelet, enforced: dict[str, bool | None]) -> None:
    """Waits until the picture of the daemon has these devices in these states."""

    def state() -> dict[str, bool | None]:
        return {one.id: one.enforced for resource in status.take(daemon).resources for one in resource.devices}

    daemon.podresources.refresh()
    wait_until(lambda: state() == enforced, f"{enforced}, not {state()}")


def shown(daemon: Daemon) -> str:
    stream = io.StringIO()
    report.show_daemons(Screen(stream, terminal=False), [status.take(daemon)])
    return stream.getvalue()


def test_verdicts_follow_the_pods_into_the_picture_the_table_and_the_metrics(kubelet: Kubelet) -> None:
    truth = Truth()
    rack = Rack(Device("a", enforcement=Enforcement.HARD), Device("b", enforcement=Enforcement.HARD), **truth.hook())  # type: ignore[arg-type]
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        looks(daemon, kubelet, {"a": None, "b": None})
        pod = Pod.requesting(RESOURCE, 1)
        assert kubelet.admit(pod)
        (held,) = kubelet.held(pod)
        (free,) = {"a", "b"} - {held}
        truth.by_pod[pod.name] = True
        looks(daemon, kubelet, {held: True, free: None})
        assert "hard, verified" in shown(daemon)
        truth.by_pod[pod.name] = False
        looks(daemon, kubelet, {held: False, free: None})
        assert "hard: NOT ENFORCED: its tasks run elsewhere" in shown(daemon)
        text = generate_latest(metrics.registry(daemon)).decode()
        assert f'deviceplugin_devices_enforcement{{enforcement="hard",resource="{RESOURCE}"}} 2.0' in text
        assert f'deviceplugin_allocations_held{{enforced="false",resource="{RESOURCE}"}} 1.0' in text
        assert f'deviceplugin_allocations_held{{enforced="true",resource="{RESOURCE}"}} 0.0' in text
        kubelet.delete_pod(pod)
        looks(daemon, kubelet, {"a": None, "b": None})
        wait_until(lambda: truth.seen == (), "the plugin hearing that nobody holds anything")


def test_a_reload_gives_the_plugin_that_stays_its_verdicts_and_the_new_one_its_own(kubelet: Kubelet) -> None:
    first, second = Truth(), Truth()
    stays = Rack("a", **first.hook())  # type: ignore[arg-type]
    comes = Rack("c", resource="vendor.example/other", **second.hook())  # type: ignore[arg-type]
    with serving(kubelet, stays) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE, 1)
        assert kubelet.admit(pod)
        first.by_pod[pod.name] = True
        looks(daemon, kubelet, {"a": True})
        kept = daemon.reconcilers["device"]
        daemon.apply(plan_for(kubelet.root, stays, comes))
        kubelet.wait_for("vendor.example/other", healthy=1)
        assert daemon.reconcilers["device"] is kept
        other = Pod.requesting("vendor.example/other", 1)
        assert kubelet.admit(other)
        second.by_pod[other.name] = False
        looks(daemon, kubelet, {"a": True, "c": False})
        daemon.apply(plan_for(kubelet.root, stays))
        looks(daemon, kubelet, {"a": True})
        assert set(daemon.reconcilers) == {"device"}
