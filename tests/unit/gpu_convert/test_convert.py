# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's configuration files in, ours out, and a word on everything that is lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.config import Settings
from deviceplugin.config import convert as checked
from deviceplugin.plugins.gpu.config import GpuConfig
from deviceplugin.plugins.gpu.convert import Converted, ConvertError, convert

EVERYTHING = """
version: v1
flags:
  migStrategy: mixed
  failOnInitError: false
  mpsRoot: /run/nvidia/mps
  nvidiaDriverRoot: /run/nvidia/driver
  nvidiaDevRoot: /
  gdrcopyEnabled: true
  gdsEnabled: true
  mofedEnabled: false
  useNodeFeatureAPI: true
  deviceDiscoveryStrategy: tegra
  plugin:
    passDeviceSpecs: true
    deviceListStrategy: [envvar, cdi-annotations]
    deviceIDStrategy: index
    cdiAnnotationPrefix: cdi.example.com/
    nvidiaCTKPath: /opt/nvidia-ctk
    containerDriverRoot: /driver
    sharedDevicesAllocationPolicy: packed
    cdiFeatureFlags: [x]
    cdiDisableHooks: [all]
  gfd:
    oneshot: false
    noTimestamp: true
    sleepInterval: 60s
    outputFile: /x
    machineTypeFile: /y
resources:
  gpus:
  - {pattern: "*", name: gpu}
  mig:
  - {pattern: "1g*", name: small}
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - {name: nvidia.com/gpu, replicas: 10, rename: nvidia.com/part, devices: [0, 1]}
    - {name: mig-1g.10gb, replicas: 2, devices: all}
imex:
  channelIDs: [0]
  required: true
"""


def ours(converted: Converted) -> tuple[Settings, GpuConfig]:
    """What the daemon makes of it: it must take the file as it is."""
    settings = checked(yaml.safe_load(converted.yaml_text), Settings, "file")
    (plugin,) = settings.plugins
    assert plugin.plugin == "gpu"
    return settings, checked(plugin.config, GpuConfig, "config")


def test_every_key_carries_over_or_is_named() -> None:
    converted = convert(EVERYTHING)
    settings, config = ours(converted)
    assert (config.mig_strategy, config.allocation_policy) == ("mixed", "packed")
    injection = config.injection
    assert msgspec.to_builtins(injection) == {
        "deviceListStrategy": ["envvar", "cdi-annotations", "device-specs"],
        "deviceIDStrategy": "index",
        "driverRoot": "/run/nvidia/driver",
        "devRoot": "/",
        "containerDriverRoot": "/driver",
        "cdiAnnotationPrefix": "cdi.example.com/",
        "nvidiaCDIHookPath": "/opt/nvidia-ctk",
        "gdsEnabled": True,
        "mofedEnabled": False,
        "gdrcopyEnabled": True,
        "imex": {"channelIDs": [0], "required": True},
        "mpsRoot": "/run/nvidia/mps",
        "mps": {},
    }
    assert {name: (r.replicas, r.rename_by_default, r.fail_requests_greater_than_one) for name, r in settings.resources.items()} == {
        "nvidia.com/gpu": (10, True, True),
        "nvidia.com/mig-1g.10gb": (2, True, True),
    }
    assert {line.partition(":")[0] for line in converted.ignored} == {
        "flags.failOnInitError",
        "flags.useNodeFeatureAPI",
        "flags.deviceDiscoveryStrategy",
        "flags.plugin.cdiFeatureFlags",
        "flags.plugin.cdiDisableHooks",
        *(f"flags.gfd.{key}" for key in ("oneshot", "noTimestamp", "sleepInterval", "outputFile", "machineTypeFile")),
        "resources.gpus",
        "resources.mig",
        "sharing.timeSlicing.resources[0].rename",
        "sharing.timeSlicing.resources[0].devices",
    }


@pytest.mark.parametrize("text", ["", "version: v1", "{}", '{"version": "v1", "flags": {"migStrategy": null}}'])
def test_a_file_that_says_nothing_gives_nvidias_defaults(text: str) -> None:
    converted = convert(text)
    settings, config = ours(converted)
    assert config.injection.device_list_strategy == ["envvar"]  # NVIDIA's default; ours has device-specs as well
    assert (config.mig_strategy, settings.resources, converted.ignored) == ("none", {}, ())


@pytest.mark.parametrize(
    ("plugin", "strategies"),
    [
        ({"deviceListStrategy": "volume-mounts,envvar"}, ["volume-mounts", "envvar"]),
        ({"deviceListStrategy": ["envvar", "envvar"]}, ["envvar"]),
        ({"passDeviceSpecs": True}, ["envvar", "device-specs"]),
        ({"passDeviceSpecs": False}, ["envvar"]),
        ({"passDeviceSpecs": True, "deviceListStrategy": "cdi-cri"}, ["cdi-cri"]),
    ],
)
def test_strategies_mean_what_they_meant(plugin: dict[str, Any], strategies: list[str]) -> None:
    assert ours(convert(yaml.safe_dump({"flags": {"plugin": plugin}})))[1].injection.device_list_strategy == strategies


def test_mps_wins_over_time_slicing_and_fails_large_requests_unless_told_otherwise() -> None:
    sharing: dict[str, Any] = {"mps": {"resources": [{"name": "gpu", "replicas": 4}]}, "timeSlicing": {"resources": [{"name": "gpu", "replicas": 9}]}}
    text = yaml.safe_dump({"flags": {"mpsRoot": "/mps"}, "sharing": sharing})
    settings, config = ours(convert(text))
    assert config.injection.mps == {"nvidia.com/gpu": 4}
    assert settings.resources["nvidia.com/gpu"].replicas == 4
    assert settings.resources["nvidia.com/gpu"].fail_requests_greater_than_one
    assert [line.partition(":")[0] for line in convert(text).ignored] == ["sharing.timeSlicing"]
    sharing["mps"]["failRequestsGreaterThanOne"] = False
    settings, _ = ours(convert(yaml.safe_dump({"flags": {"mpsRoot": "/mps"}, "sharing": sharing})))
    assert not settings.resources["nvidia.com/gpu"].fail_requests_greater_than_one


def test_mps_without_a_root_gets_the_one_of_nvidias_chart() -> None:
    converted = convert("sharing: {mps: {resources: [{name: gpu, replicas: 4}]}}")
    assert ours(converted)[1].injection.mps_root == "/run/nvidia/mps"
    assert [line.partition(":")[0] for line in converted.ignored] == ["flags.mpsRoot"]


def test_ten_unknown_keys_are_named_with_their_places() -> None:
    text = """
version: v1
flag: {}
flags:
  migStratgy: single
  driverRoot: /
  plugin:
    passDeviceSpec: true
    deviceList: envvar
  gfd:
    sleep: 1
sharing:
  timeSlicing:
    rename: true
    resources:
    - {name: gpu, replicas: 2, replica: 3}
    - {name: mig-1g.5gb, replicas: 2, device: all}
  mpss: {}
imex:
  channels: [0]
"""
    ignored = convert(text).ignored
    assert [line.partition(":")[0] for line in ignored] == [
        "flag",
        "flags.migStratgy",
        "flags.driverRoot",
        "flags.plugin.passDeviceSpec",
        "flags.plugin.deviceList",
        "flags.gfd.sleep",
        "imex.channels",
        "sharing.mpss",
        "sharing.timeSlicing.rename",
        "sharing.timeSlicing.resources[0].replica",
        "sharing.timeSlicing.resources[1].device",
    ]
    assert "did you mean 'migStrategy'?" in ignored[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: v2", "version: 'v2'"),
        ("- a", "the file must hold a mapping"),
        ("flags: 3", "flags must hold a mapping"),
        ("a: [", "line 1"),
        ("flags: {gdsEnabled: 'yes'}", "flags.gdsEnabled must be bool"),
        ("flags: {migStrategy: all}", "none, single, mixed"),
        ("flags: {plugin: {deviceListStrategy: env}}", "'env'"),
        ("flags: {plugin: {deviceListStrategy: []}}", "[]"),
        ("sharing: {timeSlicing: {resources: []}}", "sharing.timeSlicing.resources must name"),
        ("sharing: {timeSlicing: {}}", "sharing.timeSlicing.resources must name"),
        ("sharing: {timeSlicing: {resources: [{name: gpu, replicas: 1}]}}", "2 or more, not 1"),
        ("sharing: {timeSlicing: {resources: [{name: gpu, replicas: true}]}}", "must be int"),
        ("sharing: {timeSlicing: {resources: [{name: gpu}]}}", "not None"),
        ("sharing: {timeSlicing: {resources: [{replicas: 2}]}}", "resources[0].name is missing"),
        ("sharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}, {name: nvidia.com/gpu, replicas: 3}]}}", "there twice"),
        ("sharing: {timeSlicing: {resources: [{name: example.com/gpu, replicas: 2}]}}", "no name of a resource"),
        ("sharing: {mps: {resources: [{name: gpu, replicas: 49}]}}", "<= 48"),
        ("flags: {plugin: {deviceIDStrategy: name}}", "'name'"),
        ("imex: {channelIDs: [1]}", "[] or [0]"),
    ],
)
def test_what_nvidias_plugin_refuses_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConvertError) as caught:
        convert(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


_KEYS = ["version", "flags", "plugin", "gfd", "sharing", "mps", "timeSlicing", "resources", "name", "replicas", "imex", "mpsRoot", "odd"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.sampled_from(["gpu", "none", "envvar", "all", "/x", "v1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    max_leaves=20,
)
_SHARED = st.fixed_dictionaries({"name": st.text("gpu-./", max_size=5), "replicas": st.integers(0, 60)})
_BLOCK = st.fixed_dictionaries({"resources": st.lists(_SHARED)})
_SHARING = st.fixed_dictionaries({"sharing": st.dictionaries(st.sampled_from(["mps", "timeSlicing"]), _BLOCK)})


@given(_JSON | _SHARING)
def test_any_document_is_refused_or_converted_into_one_that_we_take(document: Any) -> None:
    try:
        converted = convert(yaml.safe_dump(document))
    except ConvertError:
        return
    ours(converted)


@given(st.sets(st.text("abcxyz", min_size=3, max_size=8), max_size=10))
def test_no_unknown_key_is_passed_over(keys: set[str]) -> None:
    unknown = {f"x{key}" for key in keys}
    ignored = convert(yaml.safe_dump({"version": "v1", "flags": dict.fromkeys(unknown, 1)})).ignored
    assert {line.partition(":")[0] for line in ignored} == {f"flags.{key}" for key in unknown}
