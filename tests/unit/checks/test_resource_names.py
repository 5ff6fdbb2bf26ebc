# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.checks import resource_name_error

GOOD = [
    "vendor.example/gpu",
    "v/d",
    "0/1",
    "a-b.c-d/X",
    "vendor.example/GPU_80GB.v2-x",
    "vendor.example/" + "k" * 63,
    "d" * 244 + "/gpu",  # a label may be longer than DNS allows: IsDNS1123Subdomain counts the whole alone
    ".".join(["abcd"] * 48) + ".abcd/gpu",  # 244 characters
    "kubernetes.io.example/gpu",
    "xrequests.example/gpu",
    "example.com/requests.gpu",
    "deviceclass.example/gpu",
]

BAD = [
    ("", "exactly one slash"),
    ("gpu", "exactly one slash"),
    ("a/b/c", "exactly one slash"),
    ("vendor.example/gpu/", "exactly one slash"),
    ("/gpu", "not a DNS name"),
    ("/", "not a DNS name"),
    ("vendor.example/", "0 characters"),
    ("vendor.example/" + "k" * 64, "64 characters"),
    ("d" * 245 + "/gpu", "245 characters"),
    ("Vendor.example/gpu", "not a DNS name"),
    ("vendor_x.example/gpu", "not a DNS name"),
    ("-vendor.example/gpu", "not a DNS name"),
    ("vendor-.example/gpu", "not a DNS name"),
    ("vendor..example/gpu", "not a DNS name"),
    (".vendor/gpu", "not a DNS name"),
    ("vendor./gpu", "not a DNS name"),
    ("vendor.example\n/gpu", "not a DNS name"),
    ("véndor.example/gpu", "not a DNS name"),
    ("vendor.example/-gpu", "start and end"),
    ("vendor.example/gpu_", "start and end"),
    ("vendor.example/g pu", "must be letters"),
    ("vendor.example/gpu\n", "must be letters"),
    ("vendor.example/gpü", "must be letters"),
    ("kubernetes.io/gpu", "reserved"),
    ("x.kubernetes.io/gpu", "reserved"),
    ("notkubernetes.io/gpu", "reserved"),  # the kubelet looks for the text anywhere
    ("requests.vendor.example/gpu", "requests."),
    ("requests./gpu", "requests."),
]


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_the_kubelet_takes_is_taken(name: str) -> None:
    assert resource_name_error(name) == ""


@pytest.mark.parametrize(("name", "reason"), BAD)
def test_a_name_that_the_kubelet_refuses_is_refused_with_the_reason(name: str, reason: str) -> None:
    error = resource_name_error(name)
    assert reason in error
    assert repr(name) in error
    assert "\n" not in error


LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
KEY = re.compile(rf"(?P<prefix>{LABEL}(?:\.{LABEL})*)/(?P<name>[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)")


def kubelet_takes(name: str) -> bool:
    """IsExtendedResourceName and IsQualifiedName, as they are written: the default prefix is put before the name, and the whole is a label key."""
    if "/" not in name or "kubernetes.io/" in name or name.startswith("requests."):
        return False
    found = KEY.fullmatch(f"requests.{name}")
    return found is not None and len(found["prefix"]) <= 253 and len(found["name"]) <= 63


PARTS = st.sampled_from(["a", "Z", "0", "-", "_", ".", "/", "requests.", "kubernetes.io", "\n", "ä", "vendor.example/", "x" * 62, "y" * 243])


@given(st.lists(PARTS, max_size=6).map("".join))
def test_what_is_taken_is_what_the_kubelet_takes(name: str) -> None:
    assert (resource_name_error(name) == "") == kubelet_takes(name)
