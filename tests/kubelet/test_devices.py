# SPDX-License-Identifier: Apache-2.0
"""What is on the list: devices that come, go, break and recover, and devices that should never have been there."""

from __future__ import annotations

import os

import pytest

from deviceplugin import Device, Health, Skipped
from deviceplugin.checks import MAX_MESSAGE_BYTES
from deviceplugin.config import HealthSettings, RecoveryRule
from deviceplugin.daemon import Daemon
from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet import endpoint
from deviceplugin.testing import Kubelet, Pod, plugin_calls
from deviceplugin.testing.rpc import RpcFailed
from tests.kubelet.serving import RESOURCE, Rack, service_of, serving, wait_until


def skipped(daemon: Daemon, label: str = "device") -> list[str]:
    return [one.reason for one in daemon.scanners[label].inventory.skipped]


def health(kubelet: Kubelet) -> dict[str, str]:
    return {one.id: one.health for one in kubelet.devices(RESOURCE).values()}


def test_device_that_vanishes_stays_unhealthy_while_a_pod_holds_it(either: Kubelet) -> None:
    rack = Rack("a", "b")
    with serving(either, rack, settle=0.0) as daemon:
        either.wait_for(RESOURCE, healthy=2)
        pod = Pod.requesting(RESOURCE, 2)
        assert either.admit(pod)
        either.start_container(pod)
        daemon.podresources.refresh()
        wait_until(lambda: daemon.held(RESOURCE, "a"), "the view of who holds what")
        rack.pull("a")
        either.wait_for(RESOURCE, healthy=1, unhealthy=1)
        assert either.pod_status(pod)["main"][RESOURCE] == {"a": "Unhealthy", "b": "Healthy"}
        either.restart()
        either.wait_for(RESOURCE, healthy=1, unhealthy=1)
        either.delete_pod(pod)
        daemon.podresources.refresh()
        either.wait_until(lambda: set(health(either)) == {"b"}, "the list without the device that nobody holds")


def test_device_that_comes_back_is_healthy_again(either: Kubelet) -> None:
    rack = Rack("a", "b")
    with serving(either, rack):
        either.wait_for(RESOURCE, healthy=2)
        for _ in range(2):
            rack.pull("a")
            either.wait_for(RESOURCE, healthy=1, unhealthy=1)
            rack.put("a")
            either.wait_for(RESOURCE, healthy=2)


def test_vanished_device_is_not_given_out(kubelet: Kubelet) -> None:
    rack = Rack("a", "b")
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=2)
        rack.pull("a")
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
        assert not kubelet.admit(Pod.requesting(RESOURCE, 2))
        with pytest.raises(RpcFailed, match="'a' is no longer there"):
            plugin_calls.allocate(kubelet, RESOURCE, [["a"]])


def test_all_devices_gone_is_an_unhealthy_list_and_then_an_empty_one(kubelet: Kubelet) -> None:
    rack = Rack("a")
    with serving(kubelet, rack, settle=0.3) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        rack.pull("a")
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=1)
        assert not kubelet.admit(Pod.requesting(RESOURCE))

        def buried() -> bool:
            daemon.podresources.refresh()
            return not health(kubelet)

        wait_until(buried, "the empty list", describe=kubelet.describe)
        assert kubelet.streams(RESOURCE) == 1
        rack.put("a")
        kubelet.wait_for(RESOURCE, healthy=1)


def test_resource_is_announced_with_its_first_device(kubelet: Kubelet) -> None:
    rack = Rack()
    with serving(kubelet, rack):
        rack.published()
        assert not kubelet.events.of("register")
        assert kubelet.admit(Pod.requesting(RESOURCE, name="early")), "the kubelet does not know the name: the pod waits for no device"
        rack.put("a")
        kubelet.wait_for(RESOURCE, healthy=1)


def test_broken_devices_are_listed_so_that_pods_are_told_why(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack(Device("a", health=Health.UNHEALTHY, cause="no driver"))):
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=1)
        assert "no healthy devices present" in kubelet.admit(Pod.requesting(RESOURCE)).message


def test_unknown_is_not_healthy(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack(Device("a", health=Health.UNKNOWN, cause="not asked yet"), "b")):
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
        assert health(kubelet) == {"a": "Unhealthy", "b": "Healthy"}


def test_health_of_a_held_device_reaches_the_pods_status_and_back(either: Kubelet) -> None:
    rack = Rack("a")
    with serving(either, rack):
        either.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert either.admit(pod)
        either.start_container(pod)
        rack.sicken("a")
        either.wait_for(RESOURCE, healthy=0, unhealthy=1)
        assert either.pod_status(pod)["main"][RESOURCE] == {"a": "Unhealthy"}
        either.restart_container(pod)
        rack.put("a")
        either.wait_for(RESOURCE, healthy=1)
        assert either.pod_status(pod)["main"][RESOURCE] == {"a": "Healthy"}
        assert [e.detail["uid"] for e in either.events.of("pod refreshed", RESOURCE)][-2:] == [pod.uid, pod.uid]


def test_many_changes_at_once_are_few_lists_and_few_checkpoints(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "COALESCE", 0.3)
    ids = [f"d{n}" for n in range(30)]
    rack = Rack(*ids)
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=30)
        writes = kubelet.checkpoint.writes
        for one in ids:
            looks = rack.looks
            rack.sicken(one)
            wait_until(lambda looks=looks: rack.looks > looks, "a look")  # type: ignore[misc]
        kubelet.wait_for(RESOURCE, healthy=0, unhealthy=30)
        assert kubelet.checkpoint.writes - writes <= 15
    assert not any(e.detail["repeated"] for e in kubelet.events.of("list", RESOURCE))


def test_first_change_after_a_quiet_time_goes_out_at_once(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "COALESCE", 1.0)
    rack = Rack("a", "b")
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        wait_until(lambda: kubelet.settings.clock() - kubelet.wait_for_event("list", RESOURCE).at > 1.1, "a quiet time")
        began = kubelet.settings.clock()
        rack.sicken("a")
        listed = kubelet.wait_for_event("list", RESOURCE, count=2)
        assert listed.at - began < 0.9
        assert daemon.tally.value("lists", resource=RESOURCE) == 2


def test_flapping_device_is_held_back(kubelet: Kubelet) -> None:
    rack = Rack("a", "b", settings={"health": HealthSettings(flaps=3, flap_hold=60.0)})
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=2)
        for n in range(3):
            rack.sicken("a")
            kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
            rack.put("a")
            if n < 2:
                kubelet.wait_for(RESOURCE, healthy=2)
        rack.published()
        assert health(kubelet) == {"a": "Unhealthy", "b": "Healthy"}


def test_fault_outlives_the_daemon(kubelet: Kubelet) -> None:
    settings = {"health": HealthSettings(recovery={"broken": RecoveryRule(after="never")})}
    rack = Rack("a", "b", settings=settings)
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=2)
        rack.sicken("a")
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
    with serving(kubelet, Rack("a", "b", settings=settings)):
        kubelet.wait_for_event("registered", RESOURCE, count=2)
        kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
        assert health(kubelet) == {"a": "Unhealthy", "b": "Healthy"}


# What must not be on the list


def test_id_that_is_there_twice_is_listed_once_and_the_worse_health_counts(kubelet: Kubelet) -> None:
    rack = Rack()
    rack.found = lambda: [Device("a"), Device("b"), Device("a", health=Health.UNHEALTHY, cause="broken")]
    with serving(kubelet, rack) as daemon:
        listed = kubelet.wait_for_event("list", RESOURCE)
        assert (listed.detail["listed"], listed.detail["healthy"], listed.detail["unhealthy"]) == (2, 1, 1)
        assert kubelet.capacity(RESOURCE) == 2
        assert health(kubelet) == {"a": "Unhealthy", "b": "Healthy"}
        assert "there twice" in skipped(daemon)[0]


def test_id_under_two_resources_is_refused(kubelet: Kubelet) -> None:
    """The kubelet looks for the pod of a device by its id alone: it would refresh the wrong pod."""
    with serving(kubelet, Rack()) as daemon:
        rack = Rack(label="both")
        rack.found = lambda: [Device("a"), Device("a", resource="vendor.example/other"), Device("b", resource="vendor.example/other")]
        with serving(kubelet, rack) as both:
            kubelet.wait_for(RESOURCE, healthy=1)
            kubelet.wait_for("vendor.example/other", healthy=1)
            assert set(kubelet.devices("vendor.example/other")) == {"b"}
            assert "there twice" in skipped(both, "both")[0]
        assert not skipped(daemon)


@pytest.mark.parametrize(
    "bad",
    [
        Device("lone surrogate \udcff"),
        Device("tab\there"),
        Device(""),
        Device("x" * 256),
        Device("a::0"),
        Device("b", health="Healthy"),  # type: ignore[arg-type]
        Device("b", nodes=["relative/path"]),
        Device("b", envs={"": "x"}),
        Device("b", numa_nodes=["0"]),  # type: ignore[list-item]
        "not a device",
    ],
    ids=["utf-8", "control", "empty", "long", "replica", "health", "path", "env", "numa", "type"],
)
def test_bad_device_is_left_out_and_its_siblings_stay(kubelet: Kubelet, bad: Device) -> None:
    rack = Rack()
    rack.found = lambda: [Device("a"), bad, Skipped("seen", "left out on purpose")]
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        assert set(kubelet.devices(RESOURCE)) == {"a"}
        assert len(skipped(daemon)) == 2
        assert kubelet.streams(RESOURCE) == 1


def test_odd_id_that_the_kubelet_takes_is_listed_with_a_warning(kubelet: Kubelet) -> None:
    odd = ["x" * 64, "with,comma", "Ünïcode/…:@#?%41"]
    with serving(kubelet, Rack(*odd)) as daemon:
        kubelet.wait_for(RESOURCE, healthy=3)
        assert set(kubelet.devices(RESOURCE)) == set(odd)
        assert len(daemon.scanners["device"].inventory.warnings) == 2
        pod = Pod.requesting(RESOURCE, 3)
        assert kubelet.admit(pod)
        kubelet.restart()
        assert kubelet.held(pod) == set(odd), "through the checkpoint"


def test_list_that_the_kubelet_could_not_receive_is_never_sent(kubelet: Kubelet, caplog: pytest.LogCaptureFixture) -> None:
    other = "vendor.example/other"
    rack = Rack(Device("z", resource=other), *(f"{n:05}{'x' * 200}" for n in range(100)))
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=100)
        kubelet.wait_for(other, healthy=1)
        rack.put(*(f"{n:05}{'x' * 200}" for n in range(100, 20_000)))
        wait_until(lambda: skipped(daemon), "the refusal")
        assert "the kubelet accepts at most" in skipped(daemon)[0]
        assert kubelet.streams(RESOURCE) == 1
        assert len(kubelet.healthy(RESOURCE)) == 100
        assert kubelet.streams(other) == 1
    assert all(e.detail["bytes"] <= MAX_MESSAGE_BYTES for e in kubelet.events.of("list"))  # type: ignore[operator]


def test_largest_list_that_the_kubelet_takes_is_served(kubelet: Kubelet) -> None:
    with serving(kubelet, Rack(*(f"{n:05}{'x' * 195}" for n in range(19_000)))):
        listed = kubelet.wait_for_event("list", RESOURCE)
        assert listed.detail["healthy"] == 19_000
        assert listed.detail["bytes"] > 0.95 * MAX_MESSAGE_BYTES  # type: ignore[operator]


# When the hardware cannot be asked, or nothing can be written down


def test_failing_discovery_keeps_the_last_devices(kubelet: Kubelet, caplog: pytest.LogCaptureFixture) -> None:
    rack = Rack("a", "b")
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)

        def fail() -> list[Device]:
            raise OSError("the bus hangs")

        well, rack.found = rack.found, fail
        for _ in range(3):
            looks = rack.looks
            rack.event()
            wait_until(lambda looks=looks: rack.looks > looks, "a look")  # type: ignore[misc]
        wait_until(lambda: "the bus hangs" in daemon.scanners["device"].report.error, "the failure")
        assert kubelet.admit(Pod.requesting(RESOURCE))
        kubelet.restart()
        kubelet.wait_for(RESOURCE, healthy=2)
        rack.found = well
        rack.put("c")
        kubelet.wait_for(RESOURCE, healthy=3)
    assert sum("the bus hangs" in record.getMessage() for record in caplog.records) == 1


def test_devices_of_a_plugin_that_has_been_blind_for_long_are_unhealthy(kubelet: Kubelet) -> None:
    rack = Rack("a", settings={"unknown_after": 0.2})
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=1)

        def fail() -> list[Device]:
            raise OSError("the bus hangs")

        well, rack.found = rack.found, fail

        def distrusted() -> bool:
            rack.event()
            return health(kubelet) == {"a": "Unhealthy"}

        wait_until(distrusted, "the distrust")
        rack.found = well
        rack.event()
        kubelet.wait_for(RESOURCE, healthy=1)


def test_full_disk_costs_the_memory_of_faults_and_nothing_else(
    kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file of ours is on a device that is full (/dev/full): the state, and the name in the lock."""
    real = open

    def full(path: object, mode: str = "r", **options: object) -> object:
        return real(*(("/dev/full", "wb") if "x" in mode else (path, mode)), **options)  # type: ignore[call-overload]

    monkeypatch.setattr("deviceplugin.files.open", full, raising=False)
    rack = Rack("a", "b")
    state = os.path.join(kubelet.root, "var/lib/deviceplugin")
    with serving(kubelet, rack):
        kubelet.wait_for(RESOURCE, healthy=2)
        for _ in range(2):
            rack.sicken("a")
            kubelet.wait_for(RESOURCE, healthy=1, unhealthy=1)
            rack.put("a")
            kubelet.wait_for(RESOURCE, healthy=2)
        assert kubelet.admit(Pod.requesting(RESOURCE, 2))
        assert os.listdir(state) == []
        monkeypatch.undo()
        rack.event()
        wait_until(lambda: os.listdir(state) == ["health-device.json"], "the state, once there is room")
    said = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert said
    assert "No space left on device" in said[0]
    assert len(said) == 1, "once, not for each change"


def test_snapshot_is_the_same_for_all_streams(kubelet: Kubelet) -> None:
    rack = Rack("b", "a")
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        snapshot: Snapshot = service_of(daemon).cell.get()
        rack.published()
        assert service_of(daemon).cell.get() is snapshot, "nothing changed: nothing is made anew"
