# SPDX-License-Identifier: Apache-2.0
"""Another configuration while everything runs: what it does not change does not notice."""

from __future__ import annotations

import os
import signal

import yaml

from deviceplugin.config import PluginSettings, ResourceSettings
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.serving import FILES, RESOURCE, Rack, plan_for, put_files, service_of, serving, wait_until

OTHER = "vendor.example/other"


def test_same_configuration_again_changes_nothing(either: Kubelet) -> None:
    rack = Rack("a")
    with serving(either, rack) as daemon:
        either.wait_for(RESOURCE, healthy=1)
        mark, looks = len(either.events), rack.looks
        daemon.apply(plan_for(either.root, rack))
        assert either.streams(RESOURCE) == 1
        assert len(either.events) == mark
        assert rack.looks == looks


def test_plugin_that_is_added_joins_and_one_that_is_removed_leaves(either: Kubelet) -> None:
    one, two = Rack("a"), Rack("o", resource=OTHER)
    with serving(either, one) as daemon:
        either.wait_for(RESOURCE, healthy=1)
        daemon.apply(plan_for(either.root, one, two))
        either.wait_for(OTHER, healthy=1)
        daemon.apply(plan_for(either.root, two))
        either.wait_for(RESOURCE, healthy=0)
        assert either.streams(OTHER) == 1
        assert not [name for name in os.listdir(either.device_plugins) if name.startswith("vendor.example_device")]
        daemon.apply(plan_for(either.root, one, two))
        either.wait_for(RESOURCE, healthy=1)
    assert len(either.events.of("register", OTHER)) == 1


def test_replicas_change_without_a_new_registration(either: Kubelet) -> None:
    rack = Rack("a", "b")
    with serving(either, rack) as daemon:
        either.wait_for(RESOURCE, healthy=2)
        for replicas, healthy in ((4, 8), (1, 2)):
            daemon.apply(plan_for(either.root, rack, resources={RESOURCE: ResourceSettings(replicas=replicas)}))
            either.wait_for(RESOURCE, healthy=healthy)
    assert len(either.events.of("register")) == 1


def test_devices_that_pods_hold_outlive_a_change_of_their_plugins_options(either: Kubelet) -> None:
    """The plugin is made anew; a device that it no longer finds is still listed while a pod holds it."""
    before, after = Rack("a", "b"), Rack("b", settings={"interval": 5.0})
    with serving(either, before) as daemon:
        either.wait_for(RESOURCE, healthy=2)
        pod = Pod.requesting(RESOURCE, 2)
        assert either.admit(pod)
        either.start_container(pod)
        daemon.apply(plan_for(either.root, after))
        either.wait_for(RESOURCE, healthy=1, unhealthy=1)
        assert either.pod_status(pod)["main"][RESOURCE] == {"a": "Unhealthy", "b": "Healthy"}
    assert len(either.events.of("register")) == 1


def test_policy_changes_at_once_and_unseen(kubelet: Kubelet) -> None:
    rack = Rack("a")
    with serving(kubelet, rack) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        mark = len(kubelet.events)
        daemon.apply(plan_for(kubelet.root, rack, resources={RESOURCE: ResourceSettings(policy="pack")}))
        looks = rack.looks
        wait_until(lambda: service_of(daemon).registrar._handlers._policy() == "pack", "the policy")
        assert rack.looks - looks <= 1
        assert not kubelet.events.of("register", since=mark)


def test_registration_goes_from_kubelet_sock_to_the_watcher_and_back(short_root: str) -> None:
    rack, other = Rack("a"), Rack("o", resource=OTHER)
    with Kubelet(short_root, watch_interval=0.05) as kubelet, serving(kubelet, rack, other) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        kubelet.wait_for(OTHER, healthy=1)
        daemon.apply(plan_for(short_root, rack, other, resources={RESOURCE: ResourceSettings(registration="watcher")}))
        kubelet.wait_for_event("plugin found", RESOURCE)
        kubelet.wait_for(RESOURCE, healthy=1)
        daemon.apply(plan_for(short_root, rack, other))
        kubelet.wait_for_event("registered", RESOURCE, count=3)
        kubelet.wait_for(RESOURCE, healthy=1)
        kubelet.wait_until(lambda: kubelet.streams(RESOURCE) == 1, "one stream")
        assert len(kubelet.events.of("register", OTHER)) == 1


def test_pods_come_while_the_configuration_changes(either: Kubelet) -> None:
    rack, other = Rack("a", "b"), Rack("o", resource=OTHER)
    with serving(either, rack, other) as daemon:
        either.wait_for(RESOURCE, healthy=2)
        for n in range(6):
            daemon.apply(plan_for(either.root, *((rack, other) if n % 2 else (rack,))))
            pod = Pod.requesting(RESOURCE, 2, name=f"pod-{n}")
            assert either.admit(pod)
            either.delete_pod(pod)


def test_process_reads_its_file_again_on_sighup(kubelet: Kubelet) -> None:
    from tests.kubelet.serving import running

    put_files(kubelet, "a")
    file = os.path.join(kubelet.root, "config.yaml")

    def write(**settings: object) -> None:
        with open(f"{file}.new", "w", encoding="ascii") as new:
            yaml.safe_dump({"version": "v1", **settings}, new)
        os.rename(f"{file}.new", file)

    write(resources={RESOURCE: {"replicas": 2}})
    with running(kubelet, "--config", file) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        write(resources={RESOURCE: {"replicas": 3}})
        daemon.process.send_signal(signal.SIGHUP)
        kubelet.wait_for(RESOURCE, healthy=3)
        write(resources={RESOURCE: {"replica": 4}})
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_log("did you mean 'replicas'")
        assert len(kubelet.healthy(RESOURCE)) == 3
        assert daemon.end() == 0
        assert "Traceback" not in daemon.log()
    assert len(kubelet.events.of("register")) == 1
    assert PluginSettings(plugin=FILES).label == "files"
