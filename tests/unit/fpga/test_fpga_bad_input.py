# SPDX-License-Identifier: Apache-2.0
"""Every attribute that is read, wrong in every way: it costs what it is about, never a neighbour, and never raises."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin import Device, Health, Host
from deviceplugin.plugins.fpga import Fpga, probe
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import NLB0, Fpgas
from tests.unit.fpga.bench import Bench, Faulty

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures/fpga"
SICK = "0000-3b-00.0-p0"
SOUND = "0000-5e-00.0-p0"

PORT = "region0/dfl-port.0"
ENGINE = "region0/dfl-fme.0"
ATTRIBUTES = [
    f"{PORT}/id",
    f"{PORT}/dev",
    f"{PORT}/afu_id",
    f"{PORT}/power_state",
    f"{PORT}/errors/errors",
    f"{ENGINE}/dev",
    f"{ENGINE}/errors/fme_errors",
    f"{ENGINE}/errors/catfatal_errors",
    f"{ENGINE}/hwmon/hwmon3/temp1_crit_alarm",
    "dfl-fme-region.0/fpga_region/region1/compat_id",
    "dfl-fme-mgr.0/fpga_manager/fpga0/state",
    "0000:3b:00.0/aer_dev_fatal",
    "0000:3b:00.0/numa_node",
]
WRONG: dict[str, str | int | None] = {
    "missing": None,
    "empty": "",
    "unreadable": errno.EACCES,
    "busy": errno.EBUSY,
    "broken": errno.EIO,
    "garbage": "\ufffd\0 ~\n-1x",
    "too long": "7" * 4096,
    "hyphens": "-",
    "sign": "-1",
}
HARMLESS = {
    "missing": {
        f"{PORT}/power_state",
        f"{PORT}/errors/errors",
        f"{ENGINE}/errors/fme_errors",
        f"{ENGINE}/errors/catfatal_errors",
        "temp1_crit_alarm",
        "/state",
        "aer_dev_fatal",
    },
    "any": {f"{ENGINE}/dev", "numa_node"},
    "text": {"/state"},
    "busy": {f"{PORT}/afu_id", f"{PORT}/power_state", f"{PORT}/errors/errors", f"{ENGINE}/errors/fme_errors", f"{ENGINE}/errors/catfatal_errors"},
}
"""What a port is healthy without: what a card need not have; the engine's file, where nobody programs; where it is near; and what passes."""


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("how", WRONG)
def test_one_bad_attribute(bench: Callable[..., Bench], fpgas: Fpgas, attribute: str, how: str) -> None:
    fpgas.dfl("0000:3b:00.0")
    fpgas.dfl("0000:5e:00.0")
    plugin = bench()
    assert plugin.well() == {SICK, SOUND}
    plugin.source.wrong = {attribute: WRONG[how]}
    found = plugin.look()
    assert found[SOUND].health is Health.HEALTHY
    if attribute.endswith("/id"):
        assert SICK not in found  # whose port it is cannot be told: the framework keeps it as one that has gone
        assert "dfl-port.0" in plugin.skipped()
        return
    harmless = [one for kind in (how, "any", *(("text",) if how not in ("unreadable", "broken") else ())) for one in HARMLESS.get(kind, ())]
    well = any(attribute.endswith(one) for one in harmless) or (how == "busy" and not attribute.endswith(("/dev", "aer_dev_fatal")))
    assert (found[SICK].health is Health.HEALTHY) == well, found[SICK].cause
    assert well or attribute.rpartition("/")[2] in found[SICK].cause or found[SICK].cause.startswith("node: ")
    plugin.source.wrong = {}
    assert plugin.well() == {SICK, SOUND}


def test_a_file_of_a_megabyte_and_one_that_blocks(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    card.write("errors/fme_errors", "0x" + "f" * (1 << 20))
    fpgas.host.remove(f"{card.ports[0].directory}/afu_id")
    fpgas.host.fifo(f"{card.ports[0].directory}/afu_id")
    (port,) = probe.look(host).ports
    assert any("fme_errors" in text for text in port.card.unread)
    assert port.afu == ""


@pytest.mark.parametrize("top", ["/sys/class/fpga_region", "/sys/class/fpga", "/sys/class/fpga_manager", "/sys/bus/pci/devices"])
def test_class_directory_that_is_a_file_or_a_loop(fpgas: Fpgas, host: Host, top: str) -> None:
    fpgas.opae("0000:5e:00.0") if top != "/sys/class/fpga" else fpgas.dfl("0000:3b:00.0")
    if (Path(host.root) / top.lstrip("/")).exists():
        fpgas.host.remove(top)
    fpgas.host.link(top, top)
    found = probe.look(host)
    assert len(found.ports) == 1
    fpgas.host.remove(top)
    fpgas.host.write(top, "a file")
    assert len(probe.look(host).ports) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_anywhere(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    name = data.draw(st.sampled_from(sorted(path.stem for path in FIXTURES.glob("*.yaml"))))
    machine = SimulatedHost(tmp_path_factory.mktemp("machine"))
    machine.populate(FIXTURES / f"{name}.yaml")
    files = sorted(str(path.relative_to(machine.root)) for path in Path(machine.root).rglob("*") if path.is_file() and not path.is_symlink())
    value = st.one_of(
        st.none(), st.text(max_size=50), st.sampled_from([errno.EIO, errno.EBUSY, errno.EACCES]), st.sampled_from(["0x1", "f" * 32, "0", NLB0])
    )
    wrong = data.draw(st.dictionaries(st.sampled_from(files), value, max_size=6))
    plugin = Fpga(host=Host(machine.root), source=Faulty(wrong))
    found = [one for one in plugin.discover() if isinstance(one, Device)]
    assert len({one.id for one in found}) == len(found)
    assert all(one.cause for one in found if one.health is not Health.HEALTHY)
