# SPDX-License-Identifier: Apache-2.0
"""Every layout that drivers show, from trees that are data."""

from __future__ import annotations

from pathlib import Path

import pytest

from deviceplugin import Host
from deviceplugin.plugins.fpga import probe
from deviceplugin.plugins.fpga.config import ManagerFiles
from deviceplugin.plugins.fpga.hardware import DEAD, Driver
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import INTERFACE, NLB0, NLB3, OTHER_INTERFACE, Fpgas, xrt_tree

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures/fpga"


def look(tmp_path: Path, name: str, *files: ManagerFiles) -> probe.Found:
    machine = SimulatedHost(tmp_path)
    machine.populate(FIXTURES / f"{name}.yaml")
    return probe.look(Host(machine.root), files)


def test_one_port(tmp_path: Path) -> None:
    found = look(tmp_path, "dfl-one-port")
    (port,) = found.ports
    assert (port.id, port.number, port.name, port.nodes, port.afu, port.numa) == ("0000-3b-00.0-p0", 0, "dfl-port.0", ("/dev/dfl-port.0",), NLB0, 0)
    assert (port.busy, port.faults, port.unread, dict(port.registers)) == (False, (), (), {"errors": 0})
    card = port.card
    assert (card.id, card.driver, card.management, card.unmanaged) == ("0000:3b:00.0", Driver.DFL, "/dev/dfl-fme.0", "")
    assert (card.interface, card.state, card.faults, card.unread) == (INTERFACE, "operating", (), ())
    assert (dict(card.registers), dict(card.counters)) == ({"fme_errors": 0}, {"aer_fatal": 0})
    assert found.skipped == ()


def test_two_ports_of_one_engine(tmp_path: Path) -> None:
    found = look(tmp_path, "dfl-two-ports")
    assert [(port.id, port.afu, port.numa) for port in found.ports] == [("0000-3b-00.0-p0", NLB0, 1), ("0000-3b-00.0-p1", NLB3, 1)]
    assert found.ports[0].card == found.ports[1].card


def test_port_of_a_virtual_function_has_its_physical_functions_engine(tmp_path: Path) -> None:
    found = look(tmp_path, "dfl-virtual-function")
    assert [(port.id, port.address, port.card.id, port.card.interface) for port in found.ports] == [
        ("0000-3b-00.0-p0", "0000:3b:00.0", "0000:3b:00.0", INTERFACE),
        ("0000-3b-00.1-p1", "0000:3b:00.1", "0000:3b:00.0", INTERFACE),
    ]


def test_virtual_function_without_its_engine_is_told_and_not_offered(tmp_path: Path) -> None:
    found = look(tmp_path, "dfl-function-in-a-guest")
    assert found.ports == ()
    assert [one.what for one in found.skipped] == ["dfl-port.1"]
    assert "no management engine" in found.skipped[0].reason


def test_dead_card(tmp_path: Path) -> None:
    (port,) = look(tmp_path, "dfl-dead").ports
    assert (port.afu, port.card.interface) == (DEAD, DEAD)
    assert [fault.partition(":")[0] for fault in (*port.card.faults, *port.faults)] == ["dead", "dead"]


def test_opae(tmp_path: Path) -> None:
    found = look(tmp_path, "opae-one-port")
    (port,) = found.ports
    assert (port.id, port.name, port.nodes, port.afu) == ("0000-5e-00.0-p0", "intel-fpga-port.0", ("/dev/intel-fpga-port.0",), NLB0)
    assert (port.card.driver, port.card.interface, port.card.management) == (Driver.OPAE, OTHER_INTERFACE, "/dev/intel-fpga-fme.0")
    assert (port.unread, port.card.unread, port.faults, port.card.faults) == ((), (), (), ())


def test_both_drivers_on_one_machine(tmp_path: Path) -> None:
    assert [port.card.driver for port in look(tmp_path, "dfl-and-opae").ports] == [Driver.DFL, Driver.OPAE]


def test_xrt(tmp_path: Path) -> None:
    found = look(tmp_path, "xrt-u200")
    (port,) = found.ports
    assert (port.id, port.kind, port.numa) == ("0000-af-00.1-p0", "xilinx_u200_xdma_201830_2-1561465320", 1)
    assert port.nodes == ("/dev/dri/renderD128", "/dev/xfpga/dma.qdma.u44801.0")
    assert port.card.management == ""  # whoever has that may reprogram the whole card
    assert found.skipped == ()


@pytest.mark.parametrize(
    ("path", "value", "cause"),
    [("ready", "0x0\n", "not-ready"), ("dev_offline", "1\n", "offline")],
)
def test_xrt_card_that_its_driver_gives_up(tmp_path: Path, path: str, value: str, cause: str) -> None:
    machine = SimulatedHost(tmp_path)
    machine.populate(FIXTURES / "xrt-u200.yaml")
    machine.write(f"/sys/devices/pci0000:3a/0000:3a:00.0/0000:af:00.1/{path}", value)
    (port,) = probe.look(Host(machine.root)).ports
    assert [fault.partition(":")[0] for fault in port.faults] == [cause]


def test_xrt_card_that_its_driver_is_not_done_with_is_told_at_once(tmp_path: Path) -> None:
    machine = SimulatedHost(tmp_path)
    tree = xrt_tree("0000:af:00.1", "0000:af:00.0", 128, "x", "1", 0)
    machine.populate({path: value for path, value in tree.items() if "/rom.u" not in path})
    found = probe.look(Host(machine.root))
    assert found.ports == ()
    assert [(one.what, "VBNV" in one.reason) for one in found.skipped] == [("0000:af:00.1", True)]


def test_manager_has_nothing_to_hold_a_container_to(tmp_path: Path) -> None:
    found = look(tmp_path, "manager-zynq")
    assert found.ports == ()
    assert [one.what for one in found.skipped] == ["fpga0"]
    assert "Xilinx Zynq FPGA Manager" in found.skipped[0].reason


def test_manager_whose_files_are_configured(tmp_path: Path) -> None:
    (port,) = look(tmp_path, "manager-zynq", ManagerFiles(resource="zynq", name="Xilinx*", nodes=["/dev/uio0"])).ports
    assert (port.id, port.kind, port.nodes, port.card.state, port.faults) == ("f8007000.devcfg-p0", "zynq", ("/dev/uio0",), "operating", ())


def test_manager_whose_file_is_missing_is_unwell(tmp_path: Path) -> None:
    (port,) = look(tmp_path, "manager-zynq", ManagerFiles(resource="zynq", nodes=["/dev/uio0", "/dev/uio1"])).ports
    assert port.faults == ("node: there is no device file /dev/uio1",)


def test_managers_of_dfl_engines_are_not_offered_twice(tmp_path: Path) -> None:
    assert len(look(tmp_path, "dfl-one-port", ManagerFiles(resource="any", nodes=["/dev/uio0"])).ports) == 1


def test_nothing_there(tmp_path: Path) -> None:
    assert probe.look(Host(str(tmp_path))) == probe.Found((), ())


@pytest.mark.parametrize(
    ("name", "afus", "driver"),
    [("dfl-one-port", [NLB0], "dfl"), ("opae-one-port", [NLB0], "opae")],
)
def test_builder_makes_what_the_fixtures_hold(tmp_path: Path, name: str, afus: list[str], driver: str) -> None:
    built = Fpgas(SimulatedHost(tmp_path / "built"))
    built.dfl("0000:3b:00.0", afus) if driver == "dfl" else built.opae("0000:5e:00.0", afus)
    assert probe.look(Host(built.host.root)) == look(tmp_path / "held", name)


def test_device_file_of_another_number_is_not_given_out(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    fpgas.host.populate({card.ports[0].node: {"device": "c 238:7"}})
    (port,) = probe.look(host).ports
    assert port.faults == ("node: /dev/dfl-port.0 is the device 238:7, and the driver's is 238:0",)


def test_missing_device_file(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    fpgas.host.remove(card.ports[0].node)
    assert probe.look(host).ports[0].faults == ("node: there is no device file /dev/dfl-port.0",)


def test_two_ports_that_say_they_are_the_same_one(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])
    card.ports[1].write("id", "0")
    found = probe.look(host)
    assert [port.name for port in found.ports] == ["dfl-port.0"]
    assert [one.what for one in found.skipped] == ["dfl-port.1"]
