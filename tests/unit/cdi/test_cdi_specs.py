# SPDX-License-Identifier: Apache-2.0
"""What spec files hold, and what is refused before a runtime would refuse it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import DeviceNode, Mount
from deviceplugin.cdi import CdiError, ContainerEdits, Hook, IntelRdt, Spec, is_device_name, qualified

FUSE = ContainerEdits(nodes=(DeviceNode("/dev/fuse"),))


def spec(name: str = "a", edits: ContainerEdits = FUSE, kind: str = "example.com/thing", common: ContainerEdits | None = None) -> Spec:
    return Spec(kind=kind, devices={name: edits}, common=common or ContainerEdits())


def content(value: Spec) -> Any:
    return json.loads(value.to_json())


def test_all_that_a_container_can_get_is_written_as_the_specification_names_it() -> None:
    edits = ContainerEdits(
        envs={"B": "2", "A": "x=1"},
        nodes=(DeviceNode("/host/dev/a", "/dev/a", "rwm"), DeviceNode("/dev/b")),
        mounts=(Mount("/lib/a.so"), Mount("/run/socket", "/run/there", read_only=False)),
        hooks=(Hook(stage="createContainer", path="/usr/bin/hook", args=("hook", "--x"), envs={"K": "v"}, timeout=3),),
        additional_gids=(44,),
        intel_rdt=IntelRdt(clos_id="group"),
    )
    assert content(spec(edits=edits)) == {
        "cdiVersion": "0.7.0",
        "kind": "example.com/thing",
        "devices": [
            {
                "name": "a",
                "containerEdits": {
                    "env": ["A=x=1", "B=2"],
                    "deviceNodes": [{"path": "/dev/a", "hostPath": "/host/dev/a", "permissions": "rwm"}, {"path": "/dev/b", "permissions": "rw"}],
                    "mounts": [
                        {"hostPath": "/lib/a.so", "containerPath": "/lib/a.so", "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]},
                        {"hostPath": "/run/socket", "containerPath": "/run/there", "options": ["rw", "nosuid", "nodev", "rbind", "rprivate"]},
                    ],
                    "hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook", "--x"], "env": ["K=v"], "timeout": 3}],
                    "additionalGids": [44],
                    "intelRdt": {"closID": "group"},
                },
            }
        ],
    }


@pytest.mark.parametrize(
    ("value", "version"),
    [
        (spec(), "0.3.0"),
        (spec("0"), "0.5.0"),
        (spec(edits=ContainerEdits(nodes=(DeviceNode("/a", "/b"),))), "0.5.0"),
        (spec(common=ContainerEdits(nodes=(DeviceNode("/a", "/b"),))), "0.5.0"),
        (spec("0", kind="example.com/a.b"), "0.6.0"),
        (spec(edits=ContainerEdits(additional_gids=(5,))), "0.7.0"),
        (spec(common=ContainerEdits(intel_rdt=IntelRdt(clos_id="a"))), "0.7.0"),
    ],
)
def test_the_version_is_the_lowest_that_has_what_is_used(value: Spec, version: str) -> None:
    assert content(value)["cdiVersion"] == version


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (spec(kind="thing"), "vendor.example/class"),
        (spec(kind="a/b/c"), "vendor.example/class"),
        (spec(kind="1example.com/thing"), "vendor.example/class"),
        (spec(kind="example.com./thing"), "vendor.example/class"),
        (spec("a/b"), "starts and ends with a letter or digit"),
        (spec("a-"), "starts and ends"),
        (spec(""), "starts and ends"),
        (spec(edits=ContainerEdits()), "changes nothing"),
        (Spec(kind="example.com/thing", devices={}), "no device"),
        (spec(edits=ContainerEdits(envs={"A=B": "c"})), "'A=B'"),
        (spec(edits=ContainerEdits(envs={"": "c"})), "variable"),
        (spec(edits=ContainerEdits(nodes=(DeviceNode("dev/a"),))), "absolute"),
        (spec(edits=ContainerEdits(nodes=(DeviceNode("/dev/a", permissions="x"),))), "permissions"),
        (spec(common=ContainerEdits(mounts=(Mount("lib"),))), "absolute"),
        (spec(edits=ContainerEdits(hooks=(Hook(stage="before", path="/x"),))), "'before'"),
        (spec(edits=ContainerEdits(hooks=(Hook(stage="poststop", path="x"),))), "absolute"),
        (spec(edits=ContainerEdits(additional_gids=(0,))), "above 0"),
        (spec(edits=ContainerEdits(intel_rdt=IntelRdt(clos_id="a/b"))), "directory"),
        (spec(edits=ContainerEdits(envs={"A": "b"}, cdi=("a.b/c=d",))), "no place"),
        (spec(edits=ContainerEdits(envs={"A": "b"}, annotations={"a": "b"})), "no place"),
    ],
)
def test_what_a_runtime_would_refuse_is_refused_with_its_place(value: Spec, words: str) -> None:
    with pytest.raises(CdiError, match="CDI") as caught:
        value.to_json()
    assert words in str(caught.value)
    assert caught.value.errno == 0


def test_a_device_is_named_by_kind_and_name() -> None:
    assert qualified("example.com/thing", "0:1") == "example.com/thing=0:1"
    assert spec().file_name == "example.com-thing.json"


@given(st.dictionaries(st.text("abc019_.:-", min_size=1, max_size=6).filter(is_device_name), st.text(max_size=5), min_size=1, max_size=6))
def test_equal_specs_are_equal_bytes_in_whatever_order_they_were_made(devices: dict[str, str]) -> None:
    there = {name: ContainerEdits(envs={"A": value, "B": "x"}) for name, value in devices.items()}
    back = {name: ContainerEdits(envs={"B": "x", "A": devices[name]}) for name in reversed(devices)}
    one, other = (Spec(kind="example.com/thing", devices=d).to_json() for d in (there, back))
    assert one == other
    assert [d["name"] for d in json.loads(one)["devices"]] == sorted(devices)
