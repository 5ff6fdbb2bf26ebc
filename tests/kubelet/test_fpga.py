# SPDX-License-Identifier: Apache-2.0
"""FPGAs through a daemon and a kubelet: what pods are given, over restarts, reboots and hot plug."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from deviceplugin import Host
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, Plan, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.plugins.fpga import Fpga, FpgaConfig
from deviceplugin.testing import CreateContainerConfigError, Kubelet, PluginConformance, Pod, SimulatedHost
from deviceplugin.testing.fpga import INTERFACE, NLB0, NLB3, Fpgas, RecordedIoctls, SimulatedPort, put_bitstream

AF_NLB0 = "fpga.intel.com/af-695.d84.aVKNtusxV3qMNmj5-qCB9thCTcSko8QT-J5DNoP5BAs"
AF_NLB3 = "fpga.intel.com/af-695.f7d.aVKNtusxV3qMNmj5-qCB9vffQFy9es9yIvFEsLk6zRg"
REGION = f"fpga.intel.com/region-{INTERFACE}"


class Machine:
    """A node with FPGAs, below a kubelet's root."""

    def __init__(self, kubelet: Kubelet, **config: Any) -> None:
        self.kubelet = kubelet
        self.fpgas = Fpgas(SimulatedHost(kubelet.root))
        self.ioctls = ioctls = RecordedIoctls(self.fpgas)
        self.config = config

        class Simulated(Fpga):
            def __init__(self, config: FpgaConfig | None = None, host: Host | None = None) -> None:
                super().__init__(config, host, ioctls=ioctls)

        self.classes = {"fpga": Simulated}
        self.daemon: Daemon | None = None

    def plan(self, **config: Any) -> Plan:
        settings = Settings(version="v1", plugins=[PluginSettings(plugin="fpga", config={"settle": 0, **config})], listen="")
        return make_plan(settings, Host(self.kubelet.root), self.classes)

    def start(self) -> Daemon:
        self.daemon = Daemon(self.plan(**self.config), Paths.below(self.kubelet.root), Host(self.kubelet.root))
        self.daemon.start()
        return self.daemon

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None

    @contextmanager
    def serving(self) -> Iterator[Daemon]:
        try:
            yield self.start()
        finally:
            self.ioctls.gate.set()
            self.stop()


class TestFpga(PluginConformance):
    resource = AF_NLB0

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        machine = Machine(kubelet)
        machine.fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
        machine.fpgas.dfl("0000:5e:00.0", [NLB0], numa_node=1)
        return machine.serving()


def test_a_container_gets_its_port_and_no_other_file(kubelet: Kubelet) -> None:
    machine = Machine(kubelet)
    machine.fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])
    with machine.serving():
        kubelet.wait_for(AF_NLB3, healthy=1)
        pod = Pod.requesting(AF_NLB3)
        assert kubelet.admit(pod)
        config = kubelet.start_container(pod)
        assert [(one.host_path, one.container_path, one.permissions) for one in config.devices] == [("/dev/dfl-port.1", "/dev/dfl-port.1", "rw")]
        assert (config.envs, config.mounts, config.cdi_devices) == ((), (), ())
        assert all(key.startswith("io.kubernetes.") for key in config.annotations)


def test_a_container_starts_once_its_port_is_programmed(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deviceplugin.plugins.fpga._PREPARE", 0.0)
    machine = Machine(kubelet, functions=[{"afu": NLB3}])
    machine.fpgas.dfl("0000:3b:00.0", [NLB0])
    put_bitstream(machine.fpgas.host, INTERFACE, NLB3)
    with machine.serving():
        kubelet.wait_for(AF_NLB3, healthy=1)
        pod = Pod.requesting(AF_NLB3)
        assert kubelet.admit(pod)
        machine.ioctls.gate.clear()
        with pytest.raises(CreateContainerConfigError, match="is being programmed with"):
            kubelet.start_container(pod)
        machine.ioctls.gate.set()

        def started() -> bool:
            try:
                return bool(kubelet.start_container(pod).devices)
            except CreateContainerConfigError:
                return False

        kubelet.wait_until(started, "the container to start")
        assert [port for _, port, _ in machine.ioctls.calls] == [0]
        assert machine.fpgas.cards[0].ports[0].afu == NLB3


def test_mode_changes_under_a_running_daemon(kubelet: Kubelet) -> None:
    machine = Machine(kubelet)
    machine.fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    with machine.serving() as daemon:
        kubelet.wait_for(AF_NLB0, healthy=2)
        pod = Pod.requesting(AF_NLB0)
        assert kubelet.admit(pod)
        kubelet.start_container(pod)
        (held,) = kubelet.held(pod, resource=AF_NLB0)
        daemon.podresources.refresh()
        daemon.apply(machine.plan(mode="region"))
        kubelet.wait_for(AF_NLB0, healthy=0)

        def moved() -> bool:
            daemon.podresources.refresh()
            daemon.scanners["fpga"].wake()
            return len(kubelet.healthy(REGION)) == 1

        kubelet.wait_until(moved, "the free port to be offered as its region")
        assert held not in kubelet.healthy(REGION)
        kubelet.delete_pod(pod)
        kubelet.wait_until(lambda: moved() or len(kubelet.healthy(REGION)) == 2, "the other one to follow")


class Sequence:
    """Random events on a machine with two cards and three ports. After each, what pods hold is checked against what is offered."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self.machine = machine
        self.kubelet = machine.kubelet
        self.chance = chance
        self.pods: list[Pod] = []
        self.count = 0
        self.cards = list(machine.fpgas.cards)

    def well(self) -> int:
        """How many ports ought to be offered."""
        return sum(len(card.ports) for card in self.cards if card.present)

    def settle(self) -> None:
        self.kubelet.wait_for(AF_NLB0, healthy=self.well())

    def admit(self) -> None:
        self.count += 1
        pod = Pod.requesting(AF_NLB0, self.chance.randint(1, 2), name=f"pod-{self.count}")
        free = self.kubelet.healthy(AF_NLB0) - {one for other in self.pods for one in self.kubelet.held(other)}
        admission = self.kubelet.admit(pod)
        assert bool(admission) == (len(free) >= pod.containers[0].limits[AF_NLB0]), admission.message
        if admission:
            assert self.kubelet.held(pod) <= free
            self.kubelet.start_container(pod)
            self.pods.append(pod)
            # The kubelet takes back what pods held that are gone when the next one comes.
            assert {one for other in self.pods for one in self.kubelet.held(other)} == self.kubelet.allocated(AF_NLB0), "a port has leaked"

    def delete(self) -> None:
        if self.pods:
            self.kubelet.delete_pod(self.pods.pop(self.chance.randrange(len(self.pods))))

    def restart_kubelet(self) -> None:
        self.kubelet.restart()

    def restart_daemon(self) -> None:
        self.machine.stop()
        self.kubelet.wait_gone(AF_NLB0)
        self.machine.start()

    def reboot(self) -> None:
        """Everything is found anew, perhaps in another order. Pods that are left start again, or are refused with the reason."""
        self.machine.stop()
        self.machine.fpgas.reboot(reverse=self.chance.random() < 0.5)
        self.kubelet.reboot(readmit=False)
        self.machine.start()
        self.settle()
        self.kubelet.readmit()
        for pod in list(self.pods):
            try:
                self.kubelet.start_container(pod)
            except CreateContainerConfigError as error:
                assert "delete the pod" in str(error)  # noqa: PT017 - either is right
                self.pods.remove(pod)
                self.kubelet.delete_pod(pod)

    def plug(self) -> None:
        """Pulls a card out that nobody holds, or puts one back."""
        held = {one for pod in self.pods for one in self.kubelet.held(pod)}
        card = self.chance.choice(self.cards)
        if not card.present:
            card.plug()
        elif not any(one.startswith(card.address.replace(":", "-")) for one in held):
            card.unplug()

    def step(self) -> None:
        self.chance.choice([self.admit, self.admit, self.delete, self.restart_kubelet, self.restart_daemon, self.reboot, self.plug])()
        self.settle()
        self.check()

    def check(self) -> None:
        held = [one for pod in self.pods for one in self.kubelet.held(pod)]
        assert len(held) == len(set(held)), "a port is held twice"
        assert set(held) <= self.kubelet.healthy(AF_NLB0), "a pod holds what is not there"
        now = {self.id(port): port.node for card in self.cards if card.present for port in card.ports}
        for pod in self.pods:
            files = {device.host_path for device in self.kubelet.start_container(pod).devices}
            assert files == {now[one] for one in self.kubelet.held(pod)}, "a pod has the device file of another port"

    @staticmethod
    def id(port: SimulatedPort) -> str:
        return f"{port.card.address.replace(':', '-')}-p{port.number}"


@pytest.mark.parametrize("seed", range(50))
def test_random_sequences(kubelet: Kubelet, seed: int) -> None:
    """Four sequences each."""
    machine = Machine(kubelet)
    machine.fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    machine.fpgas.dfl("0000:5e:00.0", [NLB0])
    with machine.serving():
        for number in range(4):
            sequence = Sequence(machine, random.Random(4 * seed + number))
            sequence.settle()
            for _ in range(5):
                sequence.step()
            for pod in sequence.pods:
                kubelet.delete_pod(pod)
            for card in sequence.cards:
                if not card.present:
                    card.plug()
