# SPDX-License-Identifier: Apache-2.0
"""What the configuration refuses, and in which words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.pfs.rig import T0, T1, T2, T3, config


def without(base: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in base.items() if key not in keys}


@pytest.mark.parametrize(
    ("filesystem", "words"),
    [
        ({**T0, "name": "Scratch"}, "name 'Scratch' must be"),
        ({**T0, "source": "x"}, "one of mountPoint and source, not mountPoint and source"),
        (without(T0, "mountPoint"), "one of mountPoint and source, not neither"),
        ({**T0, "mountPoint": "scratch"}, "mountPoint 'scratch' must be an absolute path"),
        ({**T0, "mountPoint": "/a/../b"}, "must be an absolute path without '..'"),
        ({**T0, "containerPath": "/"}, "would hide the container's own files"),
        (without(T0, "slots"), "one of slots, slotsFile and bandwidth, not none"),
        ({**T0, "slotsFile": "/etc/n"}, "not slots and slotsFile"),
        ({**without(T0, "slots"), "bandwidth": "1G"}, "bandwidth needs bandwidthPerSlot"),
        ({**without(T0, "slots"), "bandwidth": "1M", "bandwidthPerSlot": "1G"}, "less than once"),
        ({**T0, "bandwidthPerSlot": "fast"}, "'fast' is not an amount of bytes"),
        ({**T0, "slots": 1001}, "Expected `int` <= 1000"),
        ({**T1, "type": "beegfs"}, "T1 is Lustre's JobID"),
        (without(T1, "servers"), "T1 needs bandwidthPerSlot and servers"),
        (without(T1, "bandwidthPerSlot"), "T1 needs bandwidthPerSlot and servers"),
        ({**T1, "tagPrefix": "kdp2"}, "tagPrefix 'kdp2' must be 1 to 5 lower-case letters"),
        ({**T1, "tagPrefix": "toolong"}, "tagPrefix 'toolong'"),
        (without(T2, "slotDirectory"), "slotDirectory and T2 go together: name each slot's directory"),
        ({**T0, "slotDirectory": "a/{slot}"}, "slotDirectory and T2 go together"),
        ({**T2, "slotDirectory": "same"}, "must be a relative path with {slot} in it"),
        ({**T2, "slotDirectory": "../{slot}"}, "must be a relative path with {slot} in it"),
        (without(T3, "privateMount"), "privateMount and T3 go together"),
        ({**T3, "mountPoint": "/mnt/scratch"}, "mountPoint is not for T3"),
        ({**T3, "type": "gpfs"}, "T3 cannot be had with gpfs"),
        ({**T3, "type": "other"}, "privateMount.fstype and type: other go together"),
        ({**T3, "privateMount": {"source": "-o"}}, "privateMount.source '-o' must be"),
        ({**T3, "privateMount": {"source": "x", "options": "a={k}"}}, "may stand between braces is {slots}"),
        ({**T3, "privateMount": {"source": "x", "dirty": "5k"}}, "must be 1Mi or more"),
        ({**T0, "tier": "T5"}, "T5"),
        ({**T0, "solts": 3}, "unknown field `solts`"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(filesystem: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        config(filesystem)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({}, "two file systems have the name 'scratch'"),
        ({"name": "b", "resource": "example.com/pfs-scratch"}, "have the resource 'example.com/pfs-scratch'"),
        ({"name": "b"}, "have the tagPrefix 'kdp'"),
        ({"name": "b", "tagPrefix": "b", "containerPath": "/data"}, "have the container path '/data'"),
    ],
)
def test_two_file_systems_must_differ(second: dict[str, Any], words: str) -> None:
    first = {**T1, "containerPath": "/data"}
    with pytest.raises(msgspec.ValidationError) as caught:
        config(first, {**T1, **second})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"domain": "a.kubernetes.io"}, "must be a DNS name of your own"),
        ({"jobidVariable": "A_NAME_OF_21_LETTERS_"}, "at most 20 characters"),
        ({"jobidVariable": "no good"}, "must be a variable's name"),
        ({"directory": "relative"}, "directory 'relative' must be an absolute path"),
        ({"nodeProcess": "1"}, "must be a process in /proc"),
    ],
)
def test_the_options_of_the_plugin(options: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        config(T0, **options)
    assert words in str(caught.value)
