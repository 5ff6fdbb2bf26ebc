# SPDX-License-Identifier: Apache-2.0
"""Devices that go and come back, the plugin watcher, CDI, and a configuration that changes."""

from __future__ import annotations

import json
import signal
import time

from tests.e2e.daemon import FUSE, files, generic, make_files, running
from tests.e2e.harness import Node, Pod, wait_for

SEEN_WITHIN = 1.0  # seconds from a change of the hardware to the kubelet's view of it


def test_device_removed_and_brought_back(node: Node) -> None:
    folder = make_files(node, "hot")
    resource = "example.com/hot"
    with running(node, generic(files("hot", folder / "hot"))):
        (device,) = node.wait_resource(resource, 1)
        with node.pod(Pod.single("holder", limits={resource: 1})):
            node.wait_health("holder", resource, {device: "Healthy"})
            began = time.monotonic()
            (folder / "hot").unlink()
            node.wait_resource(resource, 0, SEEN_WITHIN)
            print(f"removal seen by the kubelet after {time.monotonic() - began:.3f} s")
            node.wait_health("holder", resource, {device: "Unhealthy"})
            assert node.wait_running("holder").phase == "Running"
            node.create_pod(Pod.single("refused", limits={resource: 1}))
            assert f"cannot allocate unhealthy devices {resource}" in node.wait_failed("refused").message
            node.delete_pod("refused")

            began = time.monotonic()
            node.make_device(folder / "hot", 10, 229)
            node.wait_resource(resource, 1, SEEN_WITHIN)
            print(f"return seen by the kubelet after {time.monotonic() - began:.3f} s")
            node.wait_health("holder", resource, {device: "Healthy"})
        with node.pod(Pod.single("next", limits={resource: 1})):
            assert node.pod_devices("next") == {resource: [device]}


def test_registration_through_the_plugin_watcher(node: Node) -> None:
    node.make_device("/dev/fuse", 10, 229)
    with running(node, generic(FUSE, registration="watcher")) as daemon:
        node.wait_resource("example.com/fuse", 1)
        assert not list(node.device_plugins_dir.glob("example.com_fuse-*"))
        with node.pod(Pod.single("survivor", limits={"example.com/fuse": 1})):
            pid = node.container_pid("survivor")
            for _ in range(3):
                node.kill_kubelet()
                node.start_kubelet()
                node.wait_resource("example.com/fuse", 1)
            for _ in range(3):
                daemon.end(signal.SIGKILL)
                node.wait_resource("example.com/fuse", 0)
                daemon.start()
                node.wait_resource("example.com/fuse", 1)
            assert node.container_pid("survivor") == pid
        folder = make_files(node, "w0")
        daemon.write({"stateDirectory": str(node.work / "state"), **generic(FUSE, files("w", folder / "w*"), registration="watcher")})
        daemon.send(signal.SIGHUP)
        node.wait_resource("example.com/w", 1)
        node.wait_resource("example.com/fuse", 1)


def test_quick_restarts_through_the_plugin_watcher(node: Node) -> None:
    """Once a second it takes in the socket that went and the one that came: up to 1.36 the first may cost the second its connection."""
    node.make_device("/dev/fuse", 10, 229)
    reads = "the kubelet reads the list"
    with running(node, generic(FUSE, registration="watcher")) as daemon:
        daemon.wait_log(reads, 30)
        for number in [signal.SIGTERM, signal.SIGKILL] * 5:
            before = daemon.log.read_text().count(reads)

            def again(before: int = before) -> bool:
                return daemon.log.read_text().count(reads) > before

            daemon.restart(number)
            wait_for(again, 30, "the kubelet to read the list again", (daemon.log,))
        node.wait_resource("example.com/fuse", 1)
        with node.pod(Pod.single("after", limits={"example.com/fuse": 1})):
            assert node.pod_devices("after")


def test_cdi_device_reaches_the_container(cdi_node: Node) -> None:
    spec = {
        "cdiVersion": "0.6.0",
        "kind": "example.com/injected",
        "devices": [{"name": "one", "containerEdits": {"env": ["INJECTED=by-cdi"], "deviceNodes": [{"path": "/dev/fuse"}]}}],
    }
    cdi_node.make_device("/dev/fuse", 10, 229)
    cdi_node.cdi_dir.mkdir(parents=True, exist_ok=True)
    (cdi_node.cdi_dir / "example.json").write_text(json.dumps(spec))
    plugin = cdi_node.work / "injected.py"
    plugin.write_text(
        "from deviceplugin import Device, Plugin\n\n\nclass Injected(Plugin):\n    resource = 'example.com/injected'\n\n"
        "    def discover(self):\n        yield Device('one', cdi=['example.com/injected=one'])\n"
    )
    with running(cdi_node, {"version": "v1", "listen": "", "plugins": [{"plugin": f"{plugin}:Injected"}]}):
        cdi_node.wait_resource("example.com/injected", 1)
        with cdi_node.pod(Pod.single("cdi", limits={"example.com/injected": 1})):
            assert cdi_node.pod_env("cdi")["INJECTED"] == "by-cdi"
            assert "/dev/fuse" in [device["path"] for device in cdi_node.oci_spec("cdi")["linux"]["devices"]]


def test_reload_changes_what_changed_and_a_bad_file_changes_nothing(node: Node) -> None:
    folder = make_files(node, "stay", "come")
    state = {"stateDirectory": str(node.work / "state")}
    with running(node, generic(files("stay", folder / "stay"))) as daemon:
        node.wait_resource("example.com/stay", 1)
        (socket,) = node.device_plugins_dir.glob("example.com_stay-*")
        daemon.config.write_text("version: v1\nplugin: []\n")
        daemon.send(signal.SIGHUP)
        daemon.wait_log("did you mean 'plugins'?")
        node.wait_resource("example.com/stay", 1)
        daemon.write({**state, **generic(files("stay", folder / "stay"), files("come", folder / "come"))})
        daemon.send(signal.SIGHUP)
        node.wait_resource("example.com/come", 1)
        assert list(node.device_plugins_dir.glob("example.com_stay-*")) == [socket]
        daemon.write({**state, **generic(files("stay", folder / "stay"))})
        daemon.send(signal.SIGHUP)
        node.wait_resource("example.com/come", 0)
        assert list(node.device_plugins_dir.glob("example.com_stay-*")) == [socket]


def test_second_instance_says_that_it_waits_and_for_whom(node: Node) -> None:
    node.make_device("/dev/fuse", 10, 229)
    with running(node, generic(FUSE), "active") as active:
        node.wait_resource("example.com/fuse", 1)
        with running(node, generic(FUSE), "standby") as standby:
            standby.wait_log(f"pid {active.pid}")
            standby.wait_complete()
            roles = {daemon["pid"]: [(resource["role"], resource["waitsFor"]) for resource in daemon["resources"]] for daemon in active.devices()}
            assert roles[active.pid] == [("active", "")]
            ((role, waits_for),) = roles[standby.pid]
            assert role == "standby"
            assert f"pid {active.pid}" in waits_for
        node.wait_resource("example.com/fuse", 1)
