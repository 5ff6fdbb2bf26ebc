# SPDX-License-Identifier: Apache-2.0
"""Pods request FPGA ports on a real kubelet; the cards are simulated.

The daemon sees our sysfs in the place of the machine's. The device files are real, with numbers that no driver of this machine has: one that the
device cgroup lets through says ENXIO, one that it refuses says EPERM.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import DEAD, INTERFACE, NLB0, NLB3, Fpgas
from tests.e2e.daemon import Daemon
from tests.e2e.harness import Node, Pod, probe

AF_NLB0 = "fpga.intel.com/af-695.d84.aVKNtusxV3qMNmj5-qCB9thCTcSko8QT-J5DNoP5BAs"
AF_NLB3 = "fpga.intel.com/af-695.f7d.aVKNtusxV3qMNmj5-qCB9vffQFy9es9yIvFEsLk6zRg"
REGION = f"fpga.intel.com/region-{INTERFACE}"
PORTS = ("/dev/dfl-port.0", "/dev/dfl-port.1")
ENGINE = "/dev/dfl-fme.0"
NUMBERS = {PORTS[0]: "c:238:0", PORTS[1]: "c:238:1", ENGINE: "c:239:0"}


class Enclosed(Daemon):
    """The daemon, for which a folder is /sys."""

    def __init__(self, node: Node, sysfs: Path, config: dict[str, Any]) -> None:
        plugin = {"plugin": "deviceplugin.plugins.fpga:Fpga", "name": "fpga", "config": config}
        super().__init__(node, {"version": "v1", "listen": "", "plugins": [plugin]}, f"fpga-{time.monotonic_ns()}")
        self._sysfs = sysfs

    def start(self) -> None:
        swap = 'mount --bind "$1" /sys && shift && exec "$@"'
        daemon = [sys.executable, "-m", "deviceplugin", "run", "--config", str(self.config)]
        self.process = self.node.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", swap, "sh", str(self._sysfs), *daemon], self.name)


class Machine:
    """A node with one card that has two ports."""

    def __init__(self, node: Node, **config: Any) -> None:
        self.node = node
        self.folder = node.work / f"fpga-{time.monotonic_ns()}"
        self.fpgas = Fpgas(SimulatedHost(self.folder))
        self.card = self.fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])
        for path, number in NUMBERS.items():
            _, major, minor = number.split(":")
            node.make_device(path, int(major), int(minor))
        self.state = str(node.work / f"state-{self.folder.name}")
        self.config = {"stateDirectory": self.state, "bitstreams": str(self.folder / "bitstreams"), **config}
        self.daemon = Enclosed(node, self.folder / "sys", self.config)
        self.daemon.start()

    def stop(self) -> None:
        status = self.daemon.end()
        self.node.clear()
        assert status == 0, self.daemon.log.read_text()[-4000:]


@pytest.fixture
def machine(node: Node) -> Iterator[Machine]:
    if taken := [path for path in NUMBERS if Path(path).exists()]:
        pytest.skip(f"this machine has an FPGA of its own: {', '.join(taken)}")
    machine = Machine(node)
    try:
        node.wait_resource(AF_NLB0, 1)
        node.wait_resource(AF_NLB3, 1)
        yield machine
    finally:
        for path in NUMBERS:
            Path(path).unlink(missing_ok=True)
        machine.stop()


def test_a_pod_gets_its_port_and_neither_the_engine_nor_a_sibling(node: Node, machine: Machine) -> None:
    command = probe(*NUMBERS, mknod=list(NUMBERS.values()))
    with (
        node.pod(Pod.single("nlb0", command=command, limits={AF_NLB0: 1})),
        node.pod(Pod.single("nlb3", command=command, limits={AF_NLB3: 1})),
        node.pod(Pod.single("none", command=command)),
    ):
        for pod, port in (("nlb0", 0), ("nlb3", 1), ("none", None)):
            seen = node.probe(pod).devices
            for i, path in enumerate((*PORTS, ENGINE)):
                mine = i == port
                assert seen[path] == ("ENXIO" if mine else "ENOENT"), (pod, path, seen)
                assert seen[NUMBERS[path]] == ("ENXIO" if mine else "EPERM"), (pod, path, seen)
        assert node.pod_devices("nlb0") == {AF_NLB0: ["0000-3b-00.0-p0"]}
        assert node.pod_devices("nlb3") == {AF_NLB3: ["0000-3b-00.0-p1"]}


def test_a_port_that_dies_and_comes_back(node: Node, machine: Machine) -> None:
    with node.pod(Pod.single("holder", limits={AF_NLB0: 1})):
        machine.card.ports[0].afu = DEAD
        node.wait_resource(AF_NLB0, 0, 10)
        node.wait_health("holder", AF_NLB0, {"0000-3b-00.0-p0": "Unhealthy"})
        machine.card.ports[0].afu = NLB0
        node.wait_resource(AF_NLB0, 1, 10)


def test_a_function_that_changes_under_a_pod_is_seen_and_not_given_to_another(node: Node, machine: Machine) -> None:
    with node.pod(Pod.single("holder", limits={AF_NLB0: 1})):
        machine.card.ports[0].afu = NLB3
        node.wait_resource(AF_NLB0, 0, 10)
        node.wait_resource(AF_NLB3, 1)  # the other port, and not this one
        machine.daemon.wait_log("should have the function", 20)


def test_regiondevel_gives_the_whole_card_to_one_pod(node: Node, machine: Machine) -> None:
    machine.daemon.end()
    machine.daemon = Enclosed(node, machine.folder / "sys", {**machine.config, "mode": "regiondevel", "stateDirectory": f"{machine.state}-devel"})
    machine.daemon.start()
    node.wait_resource(REGION, 1)
    with node.pod(Pod.single("developer", command=probe(*NUMBERS), limits={REGION: 1})):
        assert dict(node.probe("developer").devices) == dict.fromkeys(NUMBERS, "ENXIO")
