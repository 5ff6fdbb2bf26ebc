# SPDX-License-Identifier: Apache-2.0
"""What other FPGA plugins get wrong, one test for each."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from deviceplugin import Health
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import INTERFACE, NLB0, NLB3, Fpgas, put_bitstream, xrt_tree
from tests.unit.fpga.bench import Bench


def test_intel_every_port_of_a_region_is_offered(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    """Intel's getRegions appends ports to a copy of the region."""
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB3, NLB0, NLB3])
    assert len(bench().look()) == 4
    (card,) = bench(mode="regiondevel", stateDirectory="/other").look().values()
    assert [node.path for node in card.nodes] == [f"/dev/dfl-port.{n}" for n in range(4)] + ["/dev/dfl-fme.0"]


def test_intel_later_ports_are_programmed_when_the_first_one_is_already(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost) -> None:
    """Intel's hook returns at the first port that needs nothing."""
    fpgas.dfl("0000:3b:00.0", [NLB3, NLB0, NLB0])
    put_bitstream(machine, INTERFACE, NLB3)
    plugin = bench(functions=[{"afu": NLB3}])
    plugin.plugin.prepare(list(plugin.look().values()))
    assert [port.afu for port in fpgas.cards[0].ports] == [NLB3, NLB3, NLB3]


def test_intel_a_port_in_reset_does_not_end_the_scan(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    """Intel's readFiles takes EBUSY for an error, and one error ends the scan of all cards."""
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    plugin = bench()
    assert len(plugin.well()) == 2
    plugin.source.wrong = {"dfl-port.0/afu_id": errno.EBUSY}
    assert len(plugin.well()) == 2


def test_intel_ids_do_not_follow_the_order_of_discovery(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    """Intel's ids are the kernel's numbers: after a reboot a pod may hold another card."""
    fpgas.dfl("0000:3b:00.0", [NLB0])
    fpgas.dfl("0000:5e:00.0", [NLB3])
    plugin = bench()
    before = {one.id: one.attributes["afu"] for one in plugin.look().values()}
    fpgas.reboot(reverse=True)
    plugin.restart()
    assert {one.id: one.attributes["afu"] for one in plugin.look().values()} == before


def test_xilinx_health_is_looked_at(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost) -> None:
    """Xilinx's plugin says Healthy, always."""
    user = fpgas.xrt("0000:af:00.0")
    plugin = bench()
    assert plugin.one().health is Health.HEALTHY
    machine.write(f"/sys/devices/pci0000:3a/0000:3a:00.0/{user}/dev_offline", "1\n")
    assert plugin.one().health is Health.UNHEALTHY
    machine.write(f"/sys/devices/pci0000:3a/0000:3a:00.0/{user}/dev_offline", "0\n")
    assert plugin.one().health is Health.HEALTHY


def test_xilinx_the_management_function_stays_with_the_host(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    """Xilinx's plugin gives xclmgmt to containers, with permission to make device files."""
    fpgas.xrt("0000:af:00.0")
    plugin = bench()
    edits = plugin.plugin.allocate([plugin.one()])
    assert [(node.path, node.permissions) for node in edits.nodes] == [("/dev/dri/renderD128", "rw"), ("/dev/xfpga/dma.qdma.u44801.0", "rw")]
    assert edits.mounts == ()  # nor are the device files mounted as well


def test_xilinx_another_device_that_cannot_be_read_hides_no_card(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost) -> None:
    """Xilinx's scan ends at the first PCI device whose vendor cannot be read."""
    fpgas.xrt("0000:af:00.0")
    machine.populate({"/sys/bus/pci/devices/0000:00:02.0": {"link": "/sys/devices/pci0000:00/0000:00:02.0"}})
    plugin = bench()
    plugin.source.wrong = {"0000:00:02.0/vendor": errno.EIO}
    assert len(plugin.well()) == 1


def test_xilinx_a_card_that_is_not_ready_does_not_hold_up_the_others(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost) -> None:
    """Xilinx's scan sleeps for minutes until a card has a rom."""
    fpgas.xrt("0000:af:00.0")
    late = xrt_tree("0000:d8:00.1", "0000:d8:00.0", 129, "late", "1", 0)
    machine.populate({path: value for path, value in late.items() if "/rom.u" not in path})
    plugin = bench()
    began = time.monotonic()
    assert set(plugin.look()) == {"0000-af-00.1-p0"}
    assert time.monotonic() - began < 10.0
    machine.populate(late)
    assert set(plugin.look()) == {"0000-af-00.1-p0", "0000-d8-00.1-p0"}


def test_xilinx_numa_nodes_are_told(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    """Xilinx's plugin tells none."""
    fpgas.xrt("0000:af:00.0", numa_node=1)
    assert bench().one().numa_nodes == (1,)
