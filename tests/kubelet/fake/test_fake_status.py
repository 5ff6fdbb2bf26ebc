# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from deviceplugin.testing import Container, Kubelet, Pod
from tests.kubelet.fake.scripted import RESOURCE, Scripted, healthy, unhealthy

OTHER = "vendor.example/other"


def test_the_status_shows_what_the_list_says(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        assert kubelet.pod_status(pod) == {"main": {RESOURCE: {"a": "Healthy"}}}
        plugin.relist(unhealthy("a"))
        refreshed = kubelet.wait_for_event("pod refreshed", RESOURCE)
        assert refreshed.detail["uid"] == pod.uid
        assert kubelet.pod_status(pod) == {"main": {RESOURCE: {"a": "Unhealthy"}}}


def test_a_device_that_is_no_longer_listed_is_healthy_and_nobody_is_told(kubelet: Kubelet) -> None:
    with Scripted(kubelet, unhealthy("a") + healthy("b")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        plugin.relist(healthy("c"))
        kubelet.wait_until(lambda: "c" in kubelet.devices(RESOURCE), "device c")
        assert kubelet.pod_status(pod) == {"main": {RESOURCE: {"b": "Healthy"}}}
        assert not kubelet.events.of("pod refreshed")


def test_a_plugin_that_goes_away_changes_no_status(kubelet: Kubelet) -> None:
    pod = Pod.requesting(RESOURCE)
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        assert kubelet.admit(pod)
    kubelet.wait_for(RESOURCE, healthy=0)
    assert kubelet.pod_status(pod) == {"main": {RESOURCE: {"a": "Healthy"}}}
    assert not kubelet.events.of("pod refreshed")


def test_init_containers_have_no_status(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        pod = Pod(init_containers=(Container("init", {RESOURCE: 1}),), containers=(Container("main"),))
        assert kubelet.admit(pod)
        assert kubelet.pod_status(pod) == {"main": {}}


def test_an_id_shared_by_two_resources_refreshes_a_pod_of_the_other(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("same")) as plugin, Scripted(kubelet, healthy("same")) as other:
        plugin.register()
        other.register(OTHER)
        kubelet.wait_for(RESOURCE, healthy=1)
        kubelet.wait_for(OTHER, healthy=1)
        pod = Pod.requesting(RESOURCE)
        assert kubelet.admit(pod)
        other.relist(unhealthy("same"))
        assert kubelet.wait_for_event("pod refreshed", OTHER).detail["uid"] == pod.uid
