# SPDX-License-Identifier: Apache-2.0
"""Pods request Xeon Phi cards on a real kubelet; sysfs is a simulated driver's, which only the daemon sees.

The device files are real ones, with numbers that no driver has: one that the device cgroup lets through says ENXIO, one that it refuses says EPERM.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.mic import SimulatedMics
from tests.e2e.daemon import Daemon
from tests.e2e.harness import Node, Pod, probe

MIC, VFIO = "intel.com/mic", "intel.com/mic-vfio"
FREE = next(major for major in range(234, 255) if f"\n{major:3} " not in Path("/proc/devices").read_text())
CTRL, SCIF, POWER = (f"c:{FREE}:{minor}" for minor in range(3))
GROUP = f"c:{FREE}:105"


class Phis(Daemon):
    """The daemon in a mount namespace of its own, in which /sys is a simulated host's."""

    def __init__(self, node: Node, **options: Any) -> None:
        self.machine = SimulatedHost(node.work / f"mic-{uuid.uuid4().hex[:8]}")
        self.mics = SimulatedMics(self.machine, "mpss3")
        self.made: list[Path] = []
        for path, minor in {"/dev/mic/ctrl": 0, "/dev/mic/scif": 1, "/dev/mic/mic0": 2, "/dev/vfio/vfio": 104, "/dev/vfio/5": 105}.items():
            at = Path(path)
            if not at.parent.exists():
                at.parent.mkdir()
                self.made.append(at.parent)
            node.make_device(at, FREE, minor)
            self.made.append(at)
        config = {"record": str(node.work / f"{Path(self.machine.root).name}.json"), "prepareTimeout": 1, **options}
        settings = {"version": "v1", "listen": "", "plugins": [{"plugin": "deviceplugin.plugins.mic:Mic", "config": config}]}
        super().__init__(node, settings, Path(self.machine.root).name)

    def start(self) -> None:
        enter = f'mount --rbind "{self.machine.root}/sys" /sys; exec "$@"'
        ours: list[str | Path] = [sys.executable, "-m", "deviceplugin", "run", "--config", self.config]
        self.process = self.node.run(["unshare", "-m", "--propagation", "private", "sh", "-ec", enter, "sh", *ours], self.name)

    def stop(self) -> None:
        status = self.end()
        self.node.clear()
        for path in reversed(self.made):
            path.rmdir() if path.is_dir() else path.unlink()
        assert status == 0, self.log.read_text()[-4000:]

    def seen(self) -> dict[str, tuple[str, bool | None]]:
        """Of each device that is held: how it is enforced, and whether it is."""
        (status,) = self.devices()
        return {one["id"]: (one["enforcement"], one["enforced"]) for resource in status["resources"] for one in resource["devices"] if one["heldBy"]}


@pytest.fixture
def phis(node: Node) -> Iterator[Phis]:
    """Two cards, and a third that is bound to vfio-pci."""
    phis = Phis(node)
    try:
        passed = phis.mics.add("0000:05:00.0", number=9)
        for address in ("0000:06:00.0", "0000:07:00.0"):
            phis.mics.add(address)
        phis.mics.give_to_vfio(passed)
        phis.start()
        node.wait_resource(MIC, 2)
        node.wait_resource(VFIO, 1)
        yield phis
    finally:
        phis.stop()


def test_a_pod_gets_the_scif_node_and_its_cards_number_and_never_ctrl(node: Node, phis: Phis) -> None:
    files = ("/dev/mic/scif", "/dev/mic/ctrl", "/dev/mic/mic0", "/dev/vfio/5")
    command = probe(*files, mknod=[SCIF, CTRL, POWER, GROUP])
    with node.pod(Pod.single("one", command=command, limits={MIC: 1})), node.pod(Pod.single("none", command=command)):
        (held,) = node.pod_devices("one")[MIC]
        number = next(card.number for card in phis.mics.cards if held == f"mic-{card.serial.lower()}")
        seen = node.probe("one").devices
        assert seen == {
            "/dev/mic/scif": "ENXIO", SCIF: "ENXIO", "/dev/mic/ctrl": "ENOENT", CTRL: "EPERM", "/dev/mic/mic0": "ENOENT", POWER: "EPERM",
            "/dev/vfio/5": "ENOENT", GROUP: "EPERM",
        }  # fmt: skip
        assert node.pod_env("one")["OFFLOAD_DEVICES"] == str(number)
        assert number is not None
        assert node.pod_env("one")["XEON_PHI_SCIF_NODES"] == str(number + 1)
        assert set(node.probe("none").devices.values()) == {"ENOENT", "EPERM"}
        assert node.probe("none").devices[SCIF] == "EPERM"
        assert "OFFLOAD_DEVICES" not in node.pod_env("none")
        phis.wait_view(lambda: phis.seen() == {held: ("advisory", None)})


def test_a_card_is_passed_through_to_one_pod(node: Node, phis: Phis) -> None:
    command = probe("/dev/vfio/vfio", "/dev/vfio/5", "/dev/mic/scif", mknod=[GROUP, SCIF])
    with node.pod(Pod.single("vm", command=command, limits={VFIO: 1})), node.pod(Pod.single("other", command=command, limits={MIC: 2})):
        assert node.probe("vm").devices == {
            "/dev/vfio/vfio": "ENXIO", "/dev/vfio/5": "ENXIO", GROUP: "ENXIO", "/dev/mic/scif": "ENOENT", SCIF: "EPERM",
        }  # fmt: skip
        assert node.pod_env("vm")["PCI_RESOURCE_INTEL_COM_MIC_VFIO"] == "0000:05:00.0"
        assert node.probe("other").devices[GROUP] == "EPERM"
        assert node.pod_env("other")["OFFLOAD_DEVICES"] == "0,1"
        phis.wait_view(lambda: phis.seen().get("mic-vfio-0000-05-00-0") == ("hard", True))


def test_a_card_that_fails_is_not_given_and_comes_back(node: Node, phis: Phis) -> None:
    card = phis.mics.cards[1]
    phis.mics.set(card, "lost")
    node.wait_resource(MIC, 1, 10)
    with node.pod(Pod.single("rest", limits={MIC: 1})):
        assert f"mic-{card.serial.lower()}" not in node.pod_devices("rest")[MIC]
    phis.mics.set(card, "online")
    node.wait_resource(MIC, 2, 10)


def test_a_container_that_was_told_of_another_card_does_not_start_again(node: Node, phis: Phis) -> None:
    with node.pod(Pod.single("led-astray", limits={MIC: 1})):
        pid = node.container_pid("led-astray")
        phis.mics.renumber(1, 0)
        phis.wait_view(lambda: [enforced for _, enforced in phis.seen().values()] == [False])
        os.kill(pid, signal.SIGKILL)
        phis.wait_log("PreStartContainer refused")
        phis.wait_log("its container was told of mic", 30)  # at the latest at the kubelet's second try
        assert not node.container("led-astray").running
    with node.pod(Pod.single("new", limits={MIC: 1})):
        (held,) = node.pod_devices("new")[MIC]
        number = next(card.number for card in phis.mics.cards if held == f"mic-{card.serial.lower()}")
        assert node.pod_env("new")["OFFLOAD_DEVICES"] == str(number)
