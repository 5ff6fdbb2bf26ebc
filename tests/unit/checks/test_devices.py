# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.checks import MAX_ID_BYTES, device_errors, device_warnings, id_error
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet.handlers import sum_edits, to_response
from deviceplugin.model import Device, DeviceNode, Health, Mount


@pytest.mark.parametrize("device_id", ["fuse", "GPU-6f1c", "0000:3b:00.0", "a:b", "ü" * 127, "x" * MAX_ID_BYTES, "a b", "a,b", "😀"])
def test_an_id_that_the_kubelet_can_hold_is_listed(device_id: str) -> None:
    assert id_error(device_id) == ""


@pytest.mark.parametrize(
    ("device_id", "reason"),
    [
        ("", "empty"),
        (7, "int, not a string"),
        (None, "NoneType, not a string"),
        (b"gpu", "bytes, not a string"),
        ("x" * 300, "300 bytes"),
        ("ü" * 128, "256 bytes"),
        ("a\ud800", "UTF-8"),
        ("a\nb", "control"),
        ("a\0", "control"),
        ("a\x7f", "control"),
        ("a::b", "replica"),
        ("::", "replica"),
    ],
)
def test_an_id_that_would_do_harm_is_refused_with_the_reason(device_id: Any, reason: str) -> None:
    error = id_error(device_id)
    assert reason in error
    assert len(error) < 200
    error.encode()  # a log must be able to take it


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"nodes": ["dev/x"]}, "absolute"),
        ({"nodes": [DeviceNode("/dev/x", "x")]}, "absolute"),
        ({"nodes": ["/dev/\0"]}, "absolute"),
        ({"nodes": ["/dev/\udcff"]}, "UTF-8"),
        ({"nodes": [""]}, "absolute"),
        ({"nodes": [DeviceNode("/dev/x", permissions="rx")]}, "permissions"),
        ({"nodes": [DeviceNode("/dev/x", permissions="rr")]}, "permissions"),
        ({"nodes": [DeviceNode("/dev/x", permissions="")]}, "permissions"),
        ({"mounts": ["lib"]}, "absolute"),
        ({"mounts": [Mount("/lib", "\udcff")]}, "absolute"),
        ({"envs": {"A=B": "1"}}, "variable"),
        ({"envs": {"": "1"}}, "variable"),
        ({"envs": {"A": "\0"}}, "variable"),
        ({"envs": {"A": "\udcff"}}, "variable"),
        ({"annotations": {"\0": "x"}}, "annotation"),
        ({"cdi": ["gpu0"]}, "vendor.example/class=name"),
        ({"cdi": ["vendor.example/gpu="]}, "vendor.example/class=name"),
        ({"attributes": {"memory-size": 1}}, "C identifier"),
        ({"attributes": {"m" * 33: 1}}, "C identifier"),
    ],
)
def test_contents_that_no_container_could_get_are_refused(fields: dict[str, Any], reason: str) -> None:
    (error,) = device_errors(Device("d", **fields))
    assert reason in error
    assert "device d" in error


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"envs": {"N": 1}}, "envs must hold str, not int"),
        ({"envs": {1: "N"}}, "envs must hold str, not int"),
        ({"annotations": {"a": None}}, "annotations must hold str, not NoneType"),
        ({"nodes": [Path("/dev/x")]}, "nodes must hold DeviceNode, not PosixPath"),
        ({"nodes": [DeviceNode(Path("/dev/x"))]}, "nodes must hold str, not PosixPath"),  # type: ignore[arg-type]
        ({"mounts": [None]}, "mounts must hold Mount, not NoneType"),
        ({"cdi": [3]}, "cdi must hold str, not int"),
        ({"numa_nodes": ["0"]}, "numa_nodes must hold int, not str"),
        ({"health": "healthy"}, "health must hold Health, not str"),
        ({"unit": 3}, "unit, resource, cause or incarnation must hold str, not int"),
        ({"unit": ["x"]}, "not list"),
        ({"resource": 3}, "not int"),
        ({"cause": ValueError("x")}, "not ValueError"),
        ({"attributes": {3: "x"}}, "attributes must hold str, not int"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_both_types(fields: dict[str, Any], what: str) -> None:
    (error,) = device_errors(Device("d", **fields))
    assert what in error


def test_a_complete_device_has_no_errors() -> None:
    device = Device(
        "GPU-1",
        nodes=["/dev/a", DeviceNode("/dev/b", "/dev/c", "rwm")],
        mounts=[Mount("/a", "/b", read_only=False)],
        envs={"A": "", "B": "x=y\nz"},
        annotations={"vendor.example/a": "1"},
        cdi=["vendor.example/gpu=0:1", "v/c=1"],
        attributes={"_model": "T4", "m" * 32: True},
        numa_nodes=[0, 1],
        health=Health.UNKNOWN,
    )
    assert list(device_errors(device)) == []


def test_what_the_kubelet_takes_and_its_users_regret_is_warned_of() -> None:
    warnings = list(device_warnings(Device("x," * 32, numa_nodes=[-1, 64, 3])))
    assert [word for word in ("63", "comma", "NUMA") if any(word in one for one in warnings)] == ["63", "comma", "NUMA"]
    assert list(device_warnings(Device("x" * 63, numa_nodes=[0, 63]))) == []


TEXT = st.text(st.sampled_from(["a", "/", "=", "\0", "\udcff", ":", "r", "w", "ü", "\n"]), max_size=4)
ANY = st.one_of(st.just("/a"), TEXT, st.none(), st.integers(-2, 2))


@given(
    st.builds(DeviceNode, ANY, st.one_of(st.just(""), TEXT), st.sampled_from(["r", "rwm"])),
    st.builds(Mount, ANY, st.one_of(st.just(""), TEXT)),
    st.dictionaries(ANY, ANY, max_size=2),
    st.lists(st.one_of(st.just("v/c=1"), ANY), max_size=1),
    ANY,
)
def test_whatever_passes_the_checks_can_be_sent(node: DeviceNode, mount: Mount, mapping: dict[Any, Any], cdi: list[Any], unit: Any) -> None:
    device = Device("d", nodes=[node], mounts=[mount], envs=mapping, annotations=mapping, cdi=cdi, unit=unit)
    if not list(device_errors(device)):
        sent = to_response(sum_edits([device]))
        assert pb.ContainerAllocateResponse.FromString(sent.SerializeToString()) == sent
