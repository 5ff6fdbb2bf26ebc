# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import threading

import pytest

from deviceplugin.cell import Cell
from deviceplugin.model import Device, DeviceNode, Edits, Health, Host, Mount
from deviceplugin.plugin import Plugin, overrides


def test_a_device_needs_an_id_alone() -> None:
    device = Device("fuse")
    assert device.unit == "fuse"
    assert device.health is Health.HEALTHY
    assert (device.nodes, device.mounts, device.numa_nodes, device.cdi) == ((), (), (), ())


def test_paths_become_device_files_and_mounts() -> None:
    device = Device("d", nodes=["/dev/a", DeviceNode("/dev/b", "/dev/c", "r")], mounts=["/lib/x"])
    assert device.nodes == (DeviceNode("/dev/a", "/dev/a", "rw"), DeviceNode("/dev/b", "/dev/c", "r"))
    assert device.mounts == (Mount("/lib/x", "/lib/x", read_only=True),)


def test_a_dict_that_its_maker_changes_later_changes_no_device() -> None:
    shared: dict[str, str] = {}
    devices = []
    for number in ("0", "1"):
        shared["NUMBER"] = number
        devices.append(Device(f"d{number}", envs=shared, annotations=shared, attributes=shared))
    shared.clear()
    assert [dict(one.envs) for one in devices] == [{"NUMBER": "0"}, {"NUMBER": "1"}]
    assert [dict(one.annotations) for one in devices] == [dict(one.attributes) for one in devices] == [{"NUMBER": "0"}, {"NUMBER": "1"}]


@pytest.mark.parametrize("value", [Device("d"), DeviceNode("/dev/x"), Mount("/x"), Edits(), Host()])
def test_values_cannot_be_changed(value: object) -> None:
    name = dataclasses.fields(value)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, "other")


def test_a_device_offers_no_way_to_change_its_mappings() -> None:
    with pytest.raises(TypeError):
        Device("d", envs={"A": "1"}).envs["A"] = "2"  # type: ignore[index]
    with pytest.raises(TypeError):
        Device("d").envs["A"] = "2"  # type: ignore[index]


def test_devices_are_equal_when_all_of_them_is() -> None:
    assert Device("d", envs={"A": "1"}, numa_nodes=[0]) == Device("d", envs={"A": "1"}, numa_nodes=(0,))
    assert Device("d", envs={"A": "1"}) != Device("d", envs={"A": "2"})
    assert Device("d", incarnation="1") != Device("d", incarnation="2")


@pytest.mark.parametrize(
    ("root", "path", "found"),
    [
        ("/", "/dev/x", "/dev/x"),
        ("/tmp/tree", "/dev/x", "/tmp/tree/dev/x"),
        ("/tmp/tree/", "/dev/x", "/tmp/tree/dev/x"),
        ("tree", "/dev/x", "tree/dev/x"),
    ],
)
def test_a_host_path_is_found_below_the_root(root: str, path: str, found: str) -> None:
    assert Host(root).path(path) == found


def test_only_what_a_plugin_overrides_is_offered() -> None:
    class Preparing(Plugin):
        def prepare(self, devices: object) -> None: ...

    class Derived(Preparing): ...

    assert [overrides(cls, "prepare") for cls in (Plugin, Preparing, Derived)] == [False, True, True]
    assert [overrides(cls(), "allocate") for cls in (Preparing, Derived)] == [False, False]


def test_a_plugin_without_discovery_says_what_it_lacks() -> None:
    with pytest.raises(NotImplementedError, match=r"Plugin must say what devices there are: override discover\(\)"):
        Plugin().discover()


def test_a_cell_answers_at_once_what_holds_already_and_gives_up_in_time() -> None:
    cell = Cell(1)
    assert cell.wait(lambda value: value == 1) == 1
    assert cell.wait(lambda value: value == 2, timeout=0) == 1
    cell.set(2)
    assert (cell.get(), cell.wait(lambda value: value == 2)) == (2, 2)


def test_a_cell_lets_its_waiters_look_again_without_a_change() -> None:
    cell = Cell(1)
    looks = []

    def until(value: int) -> bool:
        looks.append(value)
        if len(looks) == 1:
            waker.start()
        return len(looks) > 1

    waker = threading.Thread(target=cell.wake)
    assert cell.wait(until, timeout=10) == 1
    waker.join()
    assert looks == [1, 1]
