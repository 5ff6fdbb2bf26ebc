# SPDX-License-Identifier: Apache-2.0
"""A ConfigMap that is edited under a real kubelet, with no signal to the daemon."""

from __future__ import annotations

import time

import yaml

from tests.e2e.daemon import Daemon, files, generic, make_files
from tests.e2e.harness import Node, Pod
from tests.helpers.configmap import ConfigMap

SEEN_WITHIN = 3.0  # seconds from the kubelet's rename of ..data to its view of what the edit changes


def test_an_edit_reaches_the_kubelet_and_the_pod_that_holds_a_device_does_not_notice(node: Node) -> None:
    folder = make_files(node, "stay", "come")
    state = {"stateDirectory": str(node.work / "state")}
    stay, come = files("stay", folder / "stay"), files("come", folder / "come")
    mount = ConfigMap(str(node.work / "mount"), config=yaml.safe_dump({**state, **generic(stay)}))
    daemon = Daemon(node, generic(stay))
    daemon.config = node.work / "mount" / "config.yaml"
    daemon.start()
    try:
        node.wait_resource("example.com/stay", 1)
        (socket,) = node.device_plugins_dir.glob("example.com_stay-*")
        with node.pod(Pod.single("holder", limits={"example.com/stay": 1})):
            pid = node.container_pid("holder")
            held = node.pod_devices("holder")
            began = time.monotonic()
            mount.write(config=yaml.safe_dump({**state, **generic(stay, come)}))
            node.wait_resource("example.com/come", 1, SEEN_WITHIN)
            print(f"edit seen by the kubelet after {time.monotonic() - began:.3f} s")
            mount.write(config="version: v1\npluginz: []\n")
            daemon.wait_log("config.yaml:2: top level: unknown key 'pluginz', did you mean 'plugins'?; nothing was changed")
            with node.pod(Pod.single("next", limits={"example.com/come": 1})):
                assert node.pod_devices("next").keys() == {"example.com/come"}
            mount.write(config=yaml.safe_dump({**state, **generic(stay)}))
            node.wait_resource("example.com/come", 0, SEEN_WITHIN)
            assert node.pod_devices("holder") == held
            assert node.container_pid("holder") == pid
        assert list(node.device_plugins_dir.glob("example.com_stay-*")) == [socket]
    finally:
        status = daemon.end()
        node.clear()
    assert status == 0
