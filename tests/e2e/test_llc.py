# SPDX-License-Identifier: Apache-2.0
"""Pods request cache slots on a real kubelet with a containerd that knows CDI; resctrl is the simulator, mounted in the node's mount namespace.

The runc here (before 1.4) leaves out the group without a word where resctrl is not what is mounted at /sys/fs/resctrl, which no machine without the
hardware has. So it stands for every runtime that does not do what it was told: what containerd told it is checked in the bundle's config.json, and
that the container is outside its group must be noticed, said, and mended by the plugin.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin.testing import fuse
from tests.e2e import resctrl_mount
from tests.e2e.daemon import Daemon
from tests.e2e.harness import Container, Node, Pod, wait_for

LLC = "devices.local/llc"
SLOTS = 7
SOON = 40.0


class Machine:
    """A node with a cache that can be divided, and our daemon."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.at = node.work / "resctrl"
        self.at.mkdir(exist_ok=True)
        self.log = node.log("resctrl")
        inside = ["nsenter", f"--mount={node.namespace}", "--", "env", "-C", str(Path.cwd()), f"PYTHONPATH={Path.cwd()}"]
        with self.log.open("ab") as errors:
            self.served = subprocess.Popen(
                [*inside, sys.executable, resctrl_mount.__file__, str(self.at)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            assert self.served.stdout is not None
            assert self.served.stdout.readline() == b"ready\n", self.log.read_text()
            self._serve()
        except BaseException:
            self.unmount()
            raise

    def _serve(self) -> None:
        config = {"mode": "reserve", "mountPoint": str(self.at), "collect": {"after": 10}}
        self.daemon = Daemon(
            self.node, {"version": "v1", "listen": "", "plugins": [{"plugin": "deviceplugin.plugins.llc:Llc", "config": config}]}, "llc"
        )
        self.daemon.start()
        self.node.wait_resource(LLC, SLOTS)

    def inside(self, *argv: str) -> str:
        return subprocess.run(["nsenter", f"--mount={self.node.namespace}", "--", *argv], check=True, capture_output=True, text=True).stdout

    def read(self, path: str) -> str:
        return self.inside("cat", str(self.at / path))

    def groups(self) -> set[str]:
        return {name for name in self.inside("ls", str(self.at)).split() if name.startswith("kdp-llc.")}

    def mask(self, group: str = "") -> int:
        line = next(line for line in self.read(f"{group}/schemata" if group else "schemata").splitlines() if "L3:" in line)
        return int(line.rpartition("=")[2], 16)

    def tasks(self, group: str) -> set[int]:
        return set(map(int, self.read(f"{group}/tasks").split()))

    def seen(self) -> dict[str, dict[str, Any]]:
        """What the daemon says of each slot."""
        return {device["id"]: device for daemon in self.daemon.devices() for resource in daemon["resources"] for device in resource["devices"]}

    def wait_enforced(self, enforced: bool, *ids: str) -> str:
        """Waits until the daemon says so of all these slots; what it says of the first."""

        def said() -> bool:
            seen = self.seen()
            return all(seen[id_]["enforced"] is enforced for id_ in ids)

        wait_for(said, SOON, f"{', '.join(ids)} to be seen {'enforced' if enforced else 'not enforced'}", (self.daemon.log,), self.seen)
        return str(self.seen()[ids[0]]["enforcementDetail"])

    def stop(self) -> None:
        status = self.daemon.end()
        self.node.clear()
        self.unmount()
        assert status == 0, self.daemon.log.read_text()[-4000:]

    def unmount(self) -> None:
        self.served.communicate(timeout=20)
        assert self.served.returncode == 0, self.log.read_text()


@pytest.fixture
def machine(cdi_node: Node) -> Iterator[Machine]:
    if lack := fuse.missing():
        pytest.skip(lack)
    one = Machine(cdi_node)
    yield one
    one.stop()


def test_runtime_that_knows_no_cdi_is_noticed_and_mended(node: Node) -> None:
    if lack := fuse.missing():
        pytest.skip(lack)
    machine = Machine(node)
    try:
        with node.pod(Pod.single("old", limits={LLC: 1})):
            assert "intelRdt" not in node.oci_spec("old")["linux"]
            group = node.pod_env("old")["KDP_LLC_GROUP"]
            (held,) = node.pod_devices("old")[LLC]
            assert "it runs outside its group" in machine.wait_enforced(False, held)
            machine.wait_enforced(True, held)
            assert machine.tasks(group) == {node.container_pid("old")}
    finally:
        machine.stop()


def group_of(node: Node, pod: str, container: str = "main") -> str:
    """The group that containerd told the runtime to start the container in."""
    return str(node.oci_spec(pod, container)["linux"]["intelRdt"]["closID"])


def test_container_is_told_its_group_and_one_outside_it_is_noticed_and_moved(cdi_node: Node, machine: Machine) -> None:
    assert machine.mask() == 0x780
    with cdi_node.pod(Pod.single("cache", limits={LLC: 2})):
        held = cdi_node.pod_devices("cache")[LLC]
        group = group_of(cdi_node, "cache")
        assert cdi_node.oci_spec("cache")["linux"]["intelRdt"] == {"closID": group}
        assert cdi_node.pod_env("cache")["KDP_LLC_GROUP"] == group
        assert machine.mask(group).bit_count() == 2
        pid = cdi_node.container_pid("cache")
        detail = machine.wait_enforced(False, *held)
        assert f"it runs outside its group {group}" in detail
        assert pid in machine.tasks(group)
        machine.wait_enforced(True, *held)

        for name in machine.groups():  # as containerd does when it has a configuration for RDT of its own
            machine.inside("rmdir", str(machine.at / name))
        machine.daemon.wait_log(f"somebody has removed group {group}")
        wait_for(lambda: pid in machine.tasks(group), SOON, "the process to be in its group again", (machine.daemon.log,))
        machine.wait_enforced(True, *held)
        assert machine.mask(group).bit_count() == 2
    wait_for(lambda: not machine.groups(), 2 * SOON, "the group to be removed", (machine.daemon.log,), machine.groups)
    assert not (cdi_node.cdi_dir / "k8s.device-plugin.devices.local-llc.json").exists()


def test_each_container_is_in_its_own_group_and_a_restart_of_the_daemon_changes_nothing(cdi_node: Node, machine: Machine) -> None:
    with (
        cdi_node.pod(Pod("two", [Container("a", limits={LLC: 2}), Container("b", limits={LLC: 3})])),
        cdi_node.pod(Pod.single("three", limits={LLC: 1})),
    ):
        groups = {group_of(cdi_node, "two", "a"), group_of(cdi_node, "two", "b"), group_of(cdi_node, "three")}
        assert machine.groups() == groups
        masks = [machine.mask(group) for group in groups]
        assert sorted(mask.bit_count() for mask in masks) == [1, 2, 3]
        assert sum(masks).bit_count() == 6
        pids = {group_of(cdi_node, pod, name): cdi_node.container_pid(pod, name) for pod, name in (("two", "a"), ("two", "b"), ("three", "main"))}
        wait_for(
            lambda: all(machine.tasks(group) >= {pid} for group, pid in pids.items()),
            SOON,
            "each process to be in its own group",
            (machine.daemon.log,),
        )
        machine.daemon.restart()
        wait_for(lambda: cdi_node.pod_resources.allocatable().get(LLC) and len(cdi_node.pod_resources.allocatable()[LLC]) == SLOTS, SOON, "the slots")
        assert machine.groups() == groups
        assert all(machine.tasks(group) == {pid} for group, pid in pids.items())
