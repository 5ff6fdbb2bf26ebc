# SPDX-License-Identifier: Apache-2.0
"""Resources have the names of Intel's and Xilinx's plugins; what a container gets is exactly its port."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import DeviceNode, Edits, Enforcement
from deviceplugin.checks import device_errors, id_error, resource_name_error
from deviceplugin.kubelet.handlers import to_response
from deviceplugin.plugins.fpga.naming import af_name
from deviceplugin.testing.fpga import INTERFACE, NLB0, NLB3, OTHER_INTERFACE, Fpgas
from tests.unit.fpga.bench import AF_NLB0, REGION, Bench

UUIDS = st.text("0123456789abcdef", min_size=32, max_size=32)


@pytest.mark.parametrize(
    ("interface", "afu", "name"),
    [  # as in the tests of Intel's plugin
        (OTHER_INTERFACE, NLB0, "af-ce4.d84.zkiWk5jwXzOUbVYHCL4QithCTcSko8QT-J5DNoP5BAs"),
        ("f" * 32, "f" * 32, "af-fff.fff.__________________________________________8"),
    ],
)
def test_af_names_are_intels(interface: str, afu: str, name: str) -> None:
    assert af_name(interface, afu) == name


@given(UUIDS, UUIDS, UUIDS, UUIDS)
def test_af_names_are_names_and_differ(interface: str, afu: str, other_interface: str, other_afu: str) -> None:
    name = af_name(interface, afu)
    assert resource_name_error(f"fpga.intel.com/{name}") == ""
    assert (name == af_name(other_interface, other_afu)) == ((interface, afu) == (other_interface, other_afu))


def test_modes(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])
    listed = {
        mode: [(one.id, one.resource, [n.path for n in one.nodes]) for one in bench(mode=mode, stateDirectory=f"/{mode}").look().values()]
        for mode in ("af", "region", "regiondevel")
    }
    assert listed["region"] == [
        ("0000-3b-00.0-p0", REGION, ["/dev/dfl-port.0"]),
        ("0000-3b-00.0-p1", REGION, ["/dev/dfl-port.1"]),
    ]
    assert listed["regiondevel"] == [("0000-3b-00.0", REGION, ["/dev/dfl-port.0", "/dev/dfl-port.1", "/dev/dfl-fme.0"])]
    assert [(one, nodes) for one, _, nodes in listed["af"]] == [("0000-3b-00.0-p0", ["/dev/dfl-port.0"]), ("0000-3b-00.0-p1", ["/dev/dfl-port.1"])]
    assert len({resource for _, resource, _ in listed["af"]}) == 2


@pytest.mark.parametrize("mode", ["af", "region"])
def test_engine_is_never_given_out_but_in_regiondevel(bench: Callable[..., Bench], fpgas: Fpgas, mode: str) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB3])
    fpgas.opae("0000:5e:00.0")
    fpgas.xrt("0000:af:00.0")
    plugin = bench(mode=mode)
    devices = list(plugin.look().values())
    assert len(devices) == 4
    paths = [node.path for device in devices for node in plugin.plugin.allocate([device]).nodes]
    assert not [path for path in paths if "fme" in path or "xclmgmt" in path]
    assert len(paths) == len(set(paths)) == 5
    assert {node.permissions for device in devices for node in device.nodes} == {"rw"}


def test_answer_to_an_allocation_byte_for_byte(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0", [NLB0, NLB0])
    plugin = bench()
    devices = [plugin.look()[one] for one in ("0000-3b-00.0-p0", "0000-3b-00.0-p1")]
    edits = plugin.plugin.allocate(devices)
    assert edits == Edits(nodes=(DeviceNode("/dev/dfl-port.0", "/dev/dfl-port.0", "rw"), DeviceNode("/dev/dfl-port.1", "/dev/dfl-port.1", "rw")))
    one = b"\n\x0f/dev/dfl-port.%d\x12\x0f/dev/dfl-port.%d\x1a\x02rw"
    assert to_response(edits).SerializeToString(deterministic=True) == b"".join(b"\x1a\x26" + one % (n, n) for n in (0, 1))
    assert plugin.plugin.allocate(devices) == edits


def test_devices_say_what_they_are_and_how_they_are_enforced(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0")
    device = bench().one()
    assert dict(device.attributes) == {"driver": "dfl", "address": "0000:3b:00.0", "interface": INTERFACE, "port": 0, "afu": NLB0}
    assert (device.resource, device.unit, device.enforcement) == (AF_NLB0, device.id, Enforcement.HARD)
    assert not list(device_errors(device))
    assert id_error(device.id) == ""


def test_ports_of_one_function_are_one_pool(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    for bus in ("3b", "5e", "86"):
        fpgas.dfl(f"0000:{bus}:00.0", [NLB0, NLB0])
    assert {one.resource for one in bench().look().values()} == {AF_NLB0}


def test_platform_with_a_name_that_is_too_long_and_strange(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.xrt("0000:af:00.0", platform="xilinx u250 (gen3x16)_" + "x" * 80)
    name = bench().one().resource
    assert resource_name_error(name) == ""
    assert name.startswith("xilinx.com/fpga-xilinx-u250-gen3x16-_xxx")
