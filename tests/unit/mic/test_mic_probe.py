# SPDX-License-Identifier: Apache-2.0
"""What is found in each driver's tree, and of broken ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin import Device, Edits, Enforcement, Health, Host, Skipped, sysfs
from deviceplugin.checks import device_errors
from deviceplugin.model import DeviceNode
from deviceplugin.plugins.mic import Mic, cards
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.mic import SimulatedMics
from tests.unit.mic.conftest import Make

FLAVOURS = ("mpss3", "kernel", "mpss4")


def test_the_tree_of_mpss3(make: Make) -> None:
    rig = make(fixture="mpss3")
    facts: dict[str, Any] = {"driver": "mpss3", "family": "x100", "stepping": "C0", "sku": "C0-7120 P/A/X/D", "cores": 61}
    common: dict[str, Any] = {"resource": "intel.com/mic", "nodes": ["/dev/mic/scif"], "enforcement": Enforcement.ADVISORY}
    failed: dict[str, Any] = {"health": Health.UNHEALTHY, "cause": "state: reset failed"}
    upper: dict[str, Any] = {"pci_address": "0000:82:00.0", "number": 0}
    lower: dict[str, Any] = {"pci_address": "0000:05:00.0", "number": 1}
    assert rig.devices() == [
        Device("mic-adkc32800512", numa_nodes=[1], attributes={**facts, **upper}, incarnation="4", **failed, **common),
        Device("mic-adkc32800437", numa_nodes=[0], attributes={**facts, **lower}, incarnation="1", **common),
    ]
    assert rig.skipped() == {}


def test_the_tree_of_the_kernel(make: Make) -> None:
    rig = make(fixture="kernel")
    assert rig.health() == {"mic-0000-05-00-0": "healthy", "mic-0000-08-00-0": "unhealthy:shutdown: crashed"}
    well = rig.by_id()["mic-0000-05-00-0"]
    assert well.nodes == (DeviceNode("/dev/scif"),)
    assert well.numa_nodes == ()  # the firmware did not say
    assert well.attributes == {"driver": "kernel", "family": "x100", "stepping": "C0", "pci_address": "0000:05:00.0", "number": 0}


def test_the_tree_of_mpss4(make: Make) -> None:
    rig = make(fixture="mpss4")
    (card,) = rig.devices()
    assert card.id == "mic-8d2a1e44-6b1f-e611-906e-0012795d96dd"
    assert card.attributes == {
        "driver": "mpss4", "family": "x200", "stepping": "B0", "sku": "7220A", "pci_address": "0000:03:00.0", "number": 0,
    }  # fmt: skip
    assert rig.skipped() == {"mic1": "its serial number cannot be had now (it is '<empty>'); identity: slot goes by its PCI address"}
    rig.configure(identity="slot")
    assert rig.health() == {"mic-0000-03-00-0": "healthy", "mic-0000-06-00-0": "unhealthy:state: error: coprocessor not responding"}


def test_the_early_tree_of_mpss4_tells_the_uuid_elsewhere(make: Make) -> None:
    rig = make("mpss4")
    card = rig.mics.add()
    rig.machine.remove(f"{card.directory}/info")
    rig.machine.write(f"{card.pci}/dmi/sys_uuid", "8D2A1E44-6B1F-E611-906E-0012795D96DD\n")
    assert list(rig.by_id()) == ["mic-8d2a1e44-6b1f-e611-906e-0012795d96dd"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_a_container_gets(make: Make, flavour: str) -> None:
    rig = make(flavour, envPrefix="MIC", libraries=[{"path": "/usr/lib64", "containerPath": "/opt/mpss/lib64"}])
    rig.machine.write("/usr/lib64/libcoi_host.so.0")
    for number in (2, 10, 0):
        rig.mics.add(number=number)
    three = sorted(rig.devices(), key=lambda device: device.id)
    node = {"mpss3": "/dev/mic/scif"}.get(flavour, "/dev/scif")
    edits = rig.plugin.allocate(three)
    assert edits == Edits(
        nodes=(DeviceNode(node, node, "rw"),),
        mounts=three[0].mounts,
        envs={"OFFLOAD_DEVICES": "0,2,10", "XEON_PHI_SCIF_NODES": "1,3,11", "MIC_ENV_PREFIX": "MIC"},
    )
    assert [(mount.path, mount.container_path, mount.read_only) for mount in edits.mounts] == [("/usr/lib64", "/opt/mpss/lib64", True)]
    assert rig.plugin.allocate(three[::-1]).envs == edits.envs
    assert not list(rig.plugin.allocate([]).envs)


def test_a_lone_card_is_kept_from_others_and_one_of_several_is_not(make: Make) -> None:
    rig = make("kernel")
    rig.mics.add()
    assert [device.enforcement for device in rig.devices()] == [Enforcement.HARD]
    other = rig.mics.add()
    assert {device.enforcement for device in rig.devices()} == {Enforcement.ADVISORY}
    rig.mics.remove(other)
    assert [device.enforcement for device in rig.devices()] == [Enforcement.HARD]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_node_and_no_library_means_no_use(make: Make, flavour: str) -> None:
    rig = make(flavour, libraries=[{"path": "/opt/intel/coi"}])
    rig.mics.add(serial="ADKC00000001")
    assert list(rig.health().values()) == ["unhealthy:library: /opt/intel/coi is not there"]
    rig.machine.write("/opt/intel/coi/lib.so")
    assert list(rig.health().values()) == ["healthy"]
    node = {"mpss3": "/dev/mic/scif"}.get(flavour, "/dev/scif")
    rig.machine.remove(node)
    assert list(rig.health().values()) == [f"unhealthy:node: {node} is not there"]
    rig.machine.write(node, "not a device")
    assert list(rig.health().values()) == [f"unhealthy:node: {node} is not there"]


def test_ids_stay_when_numbers_change_and_cards_come_and_go(make: Make) -> None:
    rig = make("mpss3")
    first, second, third = (rig.mics.add() for _ in range(3))
    numbers = {device.id: device.attributes["number"] for device in rig.devices()}
    assert sorted(numbers.values()) == [0, 1, 2]
    rig.mics.renumber(2, 0, 1)
    assert {device.id: device.attributes["number"] for device in rig.devices()} == {
        f"mic-{c.serial.lower()}": c.number for c in (first, second, third)
    }
    assert set(rig.by_id()) == set(numbers)
    rig.mics.remove(second)
    assert set(rig.by_id()) == {f"mic-{c.serial.lower()}" for c in (first, third)}
    rig.mics.add(second.address, serial=second.serial)
    assert set(rig.by_id()) == set(numbers)


def test_a_serial_number_that_cannot_be_read_for_a_while_changes_nothing(make: Make) -> None:
    rig = make("mpss4")
    card = rig.mics.add()
    (before,) = rig.by_id()
    for empty in ("<empty>\n", "", "\x00\x00", "00000000-0000-0000-0000-000000000000"):
        rig.mics.say(card, "info/system_uuid", empty)
        assert list(rig.by_id()) == [before]
    rig.mics.say(card, "info/system_uuid", "8D2A1E44-6B1F-E611-906E-0012795D96DD\n")  # another card in the slot
    assert list(rig.by_id()) == ["mic-8d2a1e44-6b1f-e611-906e-0012795d96dd"]


def test_a_slot_that_was_empty_remembers_nothing(make: Make) -> None:
    rig = make("mpss3")
    card = rig.mics.add(serial="ADKC11111111")
    rig.look()
    rig.mics.remove(card)
    rig.look()
    rig.mics.say(rig.mics.add(card.address), "serialnumber", "")
    assert rig.by_id() == {}
    assert rig.skipped() == {"mic0": "its serial number cannot be had now (it is ''); identity: slot goes by its PCI address"}


def test_two_cards_of_one_serial_number_are_told_apart_by_nothing(make: Make) -> None:
    rig = make("mpss3")
    for _ in range(2):
        rig.mics.add(serial="ADKC77777777")
    rig.mics.add(serial="ADKC88888888")
    assert list(rig.by_id()) == ["mic-adkc88888888"]
    assert set(rig.skipped()) == {"mic0", "mic1"}
    assert "identity: slot" in rig.skipped()["mic0"]
    rig.configure(identity="slot")
    assert len(rig.by_id()) == 3


def test_only_cards_count_in_the_class(make: Make) -> None:
    rig = make("mpss3")
    for name in ("mic", "micx", "mic0x", "amic0", "ctrl0", "mic-1"):
        rig.machine.write(f"/sys/class/mic/{name}/state", "online")
    rig.machine.write("/sys/class/mic/mic7/uevent", "")
    assert rig.devices() == []
    assert list(rig.skipped()) == ["mic7"]


def test_a_machine_without_any_of_it_has_nothing(tmp_path: Path) -> None:
    assert list(Mic(host=Host(str(tmp_path))).discover()) == []


JUNK = {
    "missing": None,
    "empty": "",
    "newline": "\n",
    "garbage": "\x00\xff\x1b[2J\ufffdonline",
    "long": "online" * 175_000,
    "number": "-99999999999999999999",
    "unicode": "\uff4f\uff4e\uff4c\uff49\uff4e\uff45",
}
FILES = (
    *("state", "state_msg", "shutdown_status", "scif_status", "boot_count", "crash_count", "family", "stepping", "sku", "active_cores", "mode"),
    *("serialnumber", "info/system_uuid", "info/mic_family", "spad/post_code", "device/numa_node", "device/modalias"),
)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("file", FILES)
def test_junk_in_one_file_of_one_card_harms_no_other(make: Make, flavour: str, junk: str, file: str) -> None:
    rig = make(flavour, labels=True)
    bad, good = rig.mics.add(), rig.mics.add()
    before = rig.by_id()
    path = f"{bad.directory}/{file}"
    text = JUNK[junk]
    if os.path.lexists(rig.machine.path(path)):
        rig.machine.remove(path)
    if text is not None:
        rig.machine.write(path, text)
    after = rig.by_id()
    well = next(key for key in before if before[key].attributes["pci_address"] == good.address)
    assert after[well] == before[well]
    assert [error for device in after.values() for error in device_errors(device)] == []
    assert set(after) <= set(before), "no card has another id for it"
    sick = [device for key, device in after.items() if key != well]
    if file == "state":
        assert [device.health for device in sick] == [Health.UNKNOWN]
        assert all(len(device.cause) < 100 and device.cause.isprintable() for device in sick)
    rig.configure(labels=True)  # nothing is remembered
    assert well in rig.by_id()


_PCI = ("device/numa_node", "device/modalias")
HAS = {
    "mpss3": ("state", "scif_status", "boot_count", "crash_count", "family", "stepping", "sku", "active_cores", "mode", "serialnumber", *_PCI),
    "kernel": ("state", "shutdown_status", "family", "stepping", "bootmode", *_PCI),
    "mpss4": ("state", "state_msg", "info/system_uuid", "info/mic_family", "spad/post_code", *_PCI),
}
"""Which files each driver has."""


def refuse(monkeypatch: pytest.MonkeyPatch, which: str, reason: str) -> None:
    """From now on, files whose path ends so cannot be read."""
    real = sysfs.read_many

    def read_many(host: Host, paths: list[str]) -> list[str | sysfs.SysfsError | None]:
        return [sysfs.SysfsError(path, reason) if path.endswith(which) else one for path, one in zip(paths, real(host, paths), strict=True)]

    monkeypatch.setattr(sysfs, "read_many", read_many)


@pytest.mark.parametrize("reason", ["Device or resource busy", "Input/output error", "Permission denied", "Resource temporarily unavailable"])
@pytest.mark.parametrize(("flavour", "file"), [(flavour, file) for flavour, files in HAS.items() for file in files])
def test_a_file_that_cannot_be_read_hides_no_card(make: Make, monkeypatch: pytest.MonkeyPatch, flavour: str, file: str, reason: str) -> None:
    rig = make(flavour)
    bad = rig.mics.add()
    rig.mics.add()
    before = rig.by_id()
    refuse(monkeypatch, f"mic{bad.number}/{file}" if "device/" not in file else f"{bad.address}/{file[7:]}", reason)
    after = rig.by_id()
    assert set(after) == set(before)
    sick = next(device for device in after.values() if device.attributes["pci_address"] == bad.address)
    if file == "state":
        assert (sick.health, sick.cause) == (Health.UNKNOWN, f"state: {reason}")
    elif file in ("shutdown_status", "scif_status"):
        assert sick.health is Health.UNHEALTHY
        assert reason in sick.cause
    else:
        assert sick.health is Health.HEALTHY


def test_a_serial_number_that_never_could_be_read_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make("mpss3")
    rig.mics.add()
    refuse(monkeypatch, "mic0/serialnumber", "Resource temporarily unavailable")
    assert "Resource temporarily unavailable" in rig.skipped()["mic0"]


def test_fifos_and_loops_in_sysfs_block_nobody(make: Make) -> None:
    rig = make("kernel")
    one, other = rig.mics.add(), rig.mics.add()
    rig.machine.fifo(f"{one.directory}/state")
    rig.machine.link(f"{other.directory}/state", f"{other.directory}/state")
    assert {device.health for device in rig.devices()} == {Health.UNKNOWN}


def test_a_bus_and_a_class_that_cannot_be_listed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make("kernel")
    rig.mics.add()
    real = sysfs.entries_many

    def entries_many(host: Host, paths: list[str]) -> list[list[str] | sysfs.SysfsError]:
        return [sysfs.SysfsError(path, "Input/output error") if "pci" in path else one for path, one in zip(paths, real(host, paths), strict=True)]

    monkeypatch.setattr(sysfs, "entries_many", entries_many)
    assert [device.id for device in rig.devices()] == ["mic-0000-05-00-0"]
    assert rig.skipped() == {"PCI bus": "/sys/bus/pci/devices cannot be read: Input/output error"}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(cards._READ), st.text(max_size=60).map(lambda text: text.replace("\r", "")), max_size=10))
def test_whatever_a_driver_says_a_device_can_be_listed(tmp_path_factory: pytest.TempPathFactory, said: dict[str, str]) -> None:
    machine = SimulatedHost(tmp_path_factory.mktemp("mic"))
    card = SimulatedMics(machine, "mpss3").add()
    for name, text in said.items():
        machine.write(f"{card.directory}/{name}", text.encode("utf-8", "replace").decode())
    for one in Mic(host=Host(machine.root)).discover():
        if isinstance(one, Skipped):
            assert one.reason.isprintable()
        else:
            assert list(device_errors(one)) == []
