# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Container, Kubelet, Pod
from tests.kubelet.fake.conftest import Clock
from tests.kubelet.fake.scripted import RESOURCE, Scripted, healthy, unhealthy

KubeletWith = Callable[..., Kubelet]


def serve(kubelet: Kubelet, devices: list[pb.Device], *, pre_start: bool = False) -> Scripted:
    plugin = Scripted(kubelet, devices)
    plugin.options = lambda: pb.DevicePluginOptions(pre_start_required=pre_start)
    plugin.register()
    kubelet.wait_for(RESOURCE, healthy=len([device for device in devices if device.health == "Healthy"]))
    return plugin


def test_a_restart_loses_every_device_until_the_plugin_is_back(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")):
        kubelet.restart()
        assert (kubelet.node_status(), kubelet.streams(RESOURCE)) == (({RESOURCE: 0}, {RESOURCE: 0}), 0)
    with serve(kubelet, healthy("a")):
        assert kubelet.capacity(RESOURCE) == 1


def test_running_containers_keep_their_devices_over_a_restart_and_allocate_is_not_called_again(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a", "b")) as plugin:
        assert kubelet.admit(pod)
        first = kubelet.start_container(pod)
        held = kubelet.held(pod)
        assert len(plugin.calls("Allocate")) == 1
    kubelet.restart()
    assert kubelet.admit(pod)
    assert kubelet.held(pod) == held == kubelet.allocated(RESOURCE)
    assert kubelet.restart_container(pod).environ == first.environ
    with serve(kubelet, healthy("a", "b")) as plugin:
        other = Pod.requesting(RESOURCE)
        assert kubelet.admit(other)
        assert not kubelet.held(other) & held
        assert len(plugin.calls("Allocate")) == 1


def test_a_pod_whose_container_does_not_run_is_rejected_when_admitted_before_the_plugin_is_back(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
    kubelet.restart(running=[])
    assert "no healthy devices present" in kubelet.admit(pod).message


def test_a_pod_with_an_ended_init_container_that_used_the_resource_is_rejected_too(kubelet: Kubelet) -> None:
    pod = Pod(init_containers=(Container("init", {RESOURCE: 1}),), containers=(Container("main", {RESOURCE: 1}),))
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
        kubelet.start_container(pod, "init")
        kubelet.start_container(pod, "main")
    kubelet.restart()
    assert "no healthy devices present" in kubelet.admit(pod).message


def test_a_plugin_that_lists_before_pods_come_saves_them_in_a_reboot_without_allocate(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
    kubelet.reboot(readmit=False)
    assert not kubelet.sources_ready
    with serve(kubelet, healthy("a")) as plugin:
        assert all(kubelet.readmit().values())
        assert kubelet.sources_ready
        assert kubelet.start_container(pod).environ == {"IDS": "a"}
        assert not plugin.calls("Allocate")


def test_a_reboot_rejects_pods_whose_plugin_is_not_back(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
    kubelet.reboot()
    assert "no healthy devices present" in kubelet.admit(pod).message


def test_a_pod_whose_device_is_unhealthy_after_the_reboot_is_rejected(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
    kubelet.restart(running=[], readmit=False)
    with serve(kubelet, healthy("b") + unhealthy("a")):
        kubelet.readmit()
        assert "previously allocated devices are no longer healthy" in kubelet.admit(pod).message


def test_a_pod_whose_request_has_changed_is_rejected(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a", "b")):
        assert kubelet.admit(pod)
        kubelet.delete_pod(pod)
        kubelet.restart(running=[], readmit=False)
    with serve(kubelet, healthy("a", "b")):
        changed = Pod(uid=pod.uid, containers=(Container(limits={RESOURCE: 2}),))
        text = f'pod "{pod.uid}" container "main" changed request for resource "{RESOURCE}" from 1 to 2'
        assert text in kubelet.admit(changed).message


def test_only_static_pods_get_another_chance_from_a_restart(kubelet: Kubelet) -> None:
    with serve(kubelet, unhealthy("a")):
        kubelet.wait_for(RESOURCE, unhealthy=1)
        static = Pod(containers=(Container(limits={RESOURCE: 1}),), static=True)
        usual = Pod.requesting(RESOURCE)
        assert not kubelet.admit(static)
        assert not kubelet.admit(usual)
        kubelet.restart(readmit=False)
    with serve(kubelet, healthy("a", "b")):
        assert {uid: bool(admission) for uid, admission in kubelet.readmit().items()} == {static.uid: True, usual.uid: False}


def test_pre_start_is_left_out_between_a_restart_and_the_plugins_return(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a"), pre_start=True) as plugin:
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
        kubelet.restart()
        kubelet.restart_container(pod)
        assert len(plugin.calls("PreStartContainer")) == 1


def test_a_dead_pods_devices_come_free_only_when_all_pods_are_known(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
        kubelet.delete_pod(pod)
        kubelet.restart(readmit=False)
    with serve(kubelet, healthy("a")):
        assert "Available: 0" in kubelet.admit(Pod.requesting(RESOURCE)).message
        kubelet.readmit()
        assert kubelet.admit(Pod.requesting(RESOURCE))


def test_the_grace_of_a_remembered_resource_starts_at_the_restart(kubelet_with: KubeletWith, clock: Clock) -> None:
    kubelet = kubelet_with(clock=clock)
    with serve(kubelet, healthy("a")):
        pass
    kubelet.wait_for(RESOURCE, healthy=0)
    clock.now += 299
    kubelet.restart()
    clock.now += 299
    assert kubelet.endpoint(RESOURCE) is not None
    kubelet.capacity(RESOURCE)
    assert kubelet.endpoint(RESOURCE) is not None
    clock.now += 2
    kubelet.capacity(RESOURCE)
    assert kubelet.endpoint(RESOURCE) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_a_damaged_checkpoint_is_forgotten_with_all_it_held(kubelet: Kubelet, damage: str) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
    kubelet.stop()
    with open(kubelet.checkpoint.path) as file:
        text = file.read()
    texts = {"flip": text.replace('["a"]', '["b"]'), "cut": text[:-10], "other": "[]"}
    with open(kubelet.checkpoint.path, "w") as file:
        file.write(texts[damage])
    kubelet.start()
    assert kubelet.events.of("checkpoint corrupt")
    assert kubelet.held(pod) == set()
    with serve(kubelet, healthy("a")):
        assert kubelet.admit(Pod.requesting(RESOURCE))  # and so gets what the running container still uses


def test_the_checkpoint_has_the_kubelets_shape(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with serve(kubelet, healthy("a", nodes=[0, 1])):
        assert kubelet.admit(pod)
        with open(kubelet.checkpoint.path) as file:
            document = json.load(file)
        assert document["Data"]["PodDeviceEntries"] == [
            {
                "PodUID": pod.uid,
                "ContainerName": "main",
                "ResourceName": RESOURCE,
                "DeviceIDs": {"0": ["a"], "1": ["a"]},
                "AllocResp": "CggKA0lEUxIBYQ==",
            }
        ]
        assert kubelet.checkpoint.writes == 2  # one list, one container


def test_a_wiped_and_a_replaced_directory_leave_the_kubelet_unaware_until_it_restarts(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")):
        for damage in (kubelet.wipe_dir, kubelet.replace_dir):
            damage()
            assert kubelet.allocatable(RESOURCE) == 1
        kubelet.restart()
        assert kubelet.node_status()[0] == {RESOURCE: 1}  # the node remembers; the kubelet, whose checkpoint was wiped, does not
        assert kubelet.endpoint(RESOURCE) is None


def test_wiping_passes_over_what_a_plugin_removes_itself_meanwhile(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def late(path: str) -> None:
        unlink(path)
        unlink(path)

    with serve(kubelet, healthy("a")):
        monkeypatch.setattr(os, "unlink", late)
        kubelet.wipe_dir()
        monkeypatch.undo()
        assert os.listdir(kubelet.device_plugins) == []


def test_starting_twice_is_refused(kubelet: Kubelet) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        kubelet.start()
