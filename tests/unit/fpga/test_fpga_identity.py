# SPDX-License-Identifier: Apache-2.0
"""An id stays with its hardware, whatever the kernel calls it."""

from __future__ import annotations

from collections.abc import Callable

from deviceplugin import Health, Host
from deviceplugin.plugins.fpga import probe
from deviceplugin.testing.fpga import NLB0, NLB3, Fpgas
from tests.unit.fpga.bench import AF_NLB0, AF_NLB3, Bench


def test_ids_survive_a_reboot_that_numbers_everything_anew(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])
    fpgas.dfl("0000:5e:00.0", [NLB3])
    plugin = bench()
    before = plugin.look()
    assert {one.id: (one.resource, one.nodes[0].path) for one in before.values()} == {
        "0000-3b-00.0-p0": (AF_NLB0, "/dev/dfl-port.0"),
        "0000-3b-00.0-p1": (AF_NLB3, "/dev/dfl-port.1"),
        "0000-5e-00.0-p0": (AF_NLB3, "/dev/dfl-port.2"),
    }
    fpgas.reboot(reverse=True)
    plugin.restart()
    after = plugin.look()
    assert {one.id: (one.resource, one.nodes[0].path) for one in after.values()} == {
        "0000-3b-00.0-p0": (AF_NLB0, "/dev/dfl-port.1"),
        "0000-3b-00.0-p1": (AF_NLB3, "/dev/dfl-port.2"),
        "0000-5e-00.0-p0": (AF_NLB3, "/dev/dfl-port.0"),
    }
    assert {one.health for one in after.values()} == {Health.HEALTHY}


def test_card_that_is_pulled_out_and_put_back(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    other = fpgas.dfl("0000:5e:00.0")
    plugin = bench()
    assert plugin.well() == {"0000-3b-00.0-p0", "0000-5e-00.0-p0"}
    card.unplug()
    assert plugin.well() == {"0000-5e-00.0-p0"}
    card.plug()
    other.unplug()
    assert plugin.well() == {"0000-3b-00.0-p0"}


def test_port_between_functions(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])
    card.to_function(1, "0000:3b:00.1")
    assert [port.id for port in probe.look(host).ports] == ["0000-3b-00.0-p0", "0000-3b-00.1-p1"]
    card.to_function(1, "")
    assert [port.id for port in probe.look(host).ports] == ["0000-3b-00.0-p0", "0000-3b-00.0-p1"]


def test_numa_node_is_told_only_where_the_kernel_knows(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", numa_node=1)
    fpgas.dfl("0000:5e:00.0", numa_node=-1)
    assert {one.id: one.numa_nodes for one in bench().look().values()} == {"0000-3b-00.0-p0": (1,), "0000-5e-00.0-p0": ()}


def test_numa_node_of_a_virtual_function_is_its_physical_ones(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.dfl("0000:3b:00.0", [NLB0], numa_node=1)
    card.to_function(0, "0000:3b:00.1")
    fpgas.host.write(f"{card.pci('0000:3b:00.1')}/numa_node", "-1\n")
    assert [port.numa for port in probe.look(host).ports] == [1]
