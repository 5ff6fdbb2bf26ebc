# SPDX-License-Identifier: Apache-2.0
"""Turns a configuration file of NVIDIA's device plugin into ours, and says of everything that does not carry over why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec
import yaml

from deviceplugin.plugins.gpu.injection import InjectionOptions

DOMAIN: Final = "nvidia.com/"
MPS_ROOT: Final = "/run/nvidia/mps"
STRATEGIES: Final = ("envvar", "volume-mounts", "cdi-annotations", "cdi-cri")

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NOT_NEEDED = "not needed"
_NO_EFFECT = "without effect in NVIDIA's plugin too"
_WITHOUT_COUNTERPART = {
    "failOnInitError": f"{_NOT_NEEDED}: without a driver no GPU is advertised, and the machine is looked at again until there is one",
    "useNodeFeatureAPI": "left out: labels go through Node Feature Discovery's feature file, never through the API server",
}
_PLUGIN_WITHOUT_COUNTERPART = {
    "cdiFeatureFlags": "left out: they are options of NVIDIA's generator of CDI specs",
    "cdiDisableHooks": "left out: the only hooks in our CDI specs are create-symlinks and update-ldcache",
    "kubeletSocket": "left out: give the kubelet's directory on the command line",
}
_GFD = {
    "oneshot": f"{_NOT_NEEDED}: the plugin keeps the labels up to date for as long as it runs",
    "noTimestamp": f"{_NOT_NEEDED}: there is no timestamp, so that the file changes only with the GPUs",
    "sleepInterval": "left out: labels are written at each look at the hardware; see interval",
    "outputFile": "left out: labels go to features.d/gfd, where they replace those of GPU Feature Discovery",
    "machineTypeFile": "left out: the machine is what /sys/class/dmi/id/product_name says",
}
_SAME = {"gdsEnabled": bool, "mofedEnabled": bool, "gdrcopyEnabled": bool, "mpsRoot": str}
_PLUGIN_SAME = {"deviceIDStrategy": str, "cdiAnnotationPrefix": str, "containerDriverRoot": str}


class ConvertError(Exception):
    """The file is none of NVIDIA's device plugin, or one that NVIDIA's would refuse. One line, with the place."""


class Converted(msgspec.Struct, frozen=True):
    """Our file, and a line for each key that was left out or means something else now, with its place."""

    yaml_text: str
    ignored: tuple[str, ...]


T = TypeVar("T")


class _Section:
    """A mapping of the file. What is not taken from it is unknown."""

    def __init__(self, raw: Any, place: str) -> None:
        if not isinstance(raw, dict):
            raise ConvertError(f"{place or 'the file'} must hold a mapping, not {type(raw).__name__}")
        self._raw = {str(key): value for key, value in raw.items()}
        self._place = place
        self._known: set[str] = set()
        self._parts: list[_Section] = []

    def at(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def has(self, key: str) -> bool:
        self._known.add(key)
        return self._raw.get(key) is not None

    def take(self, key: str, kind: type[T]) -> T | None:
        """The value of a key; None where there is none, or nothing in it, which NVIDIA's plugin takes for the default."""
        if not self.has(key):
            return None
        value = self._raw[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConvertError(f"{self.at(key)} must be {kind.__name__}, not {value!r}")
        return value

    def any(self, key: str) -> Any:
        return self._raw[key] if self.has(key) else None

    def section(self, key: str) -> _Section:
        part = _Section(self._raw[key] if self.has(key) else {}, self.at(key))
        self._parts.append(part)
        return part

    def sections(self, key: str) -> Iterator[_Section]:
        for number, raw in enumerate(self.take(key, list) or []):
            part = _Section(raw, f"{self.at(key)}[{number}]")
            self._parts.append(part)
            yield part

    def unknown(self) -> Iterator[str]:
        for key in self._raw:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1, cutoff=0.7)
                yield f"{self.at(key)}: unknown, and so without effect in NVIDIA's plugin" + (f"; did you mean {near[0]!r}?" if near else "")
        for part in self._parts:
            yield from part.unknown()


def convert(text: str) -> Converted:
    """Reads NVIDIA's file, YAML or JSON, and writes ours. Raises ConvertError."""
    top = _Section(_parsed(text), "")
    notes: list[str] = []
    version = top.take("version", str) or "v1"
    if version != "v1":
        raise ConvertError(f"version: {version!r} is not known, only v1")
    flags = top.section("flags")
    plugin = flags.section("plugin")
    injection = _injection(flags, plugin, notes.append)
    if imex := _imex(top.section("imex")):
        injection["imex"] = imex
    config: dict[str, Any] = {}
    if strategy := _choice(flags, "migStrategy", ("none", "single", "mixed")):
        config["migStrategy"] = strategy
    policy = _choice(plugin, "sharedDevicesAllocationPolicy", ("distributed", "packed"))
    _discovery(flags, notes.append)
    _names(top.section("resources"), notes.append)
    resources = _sharing(top.section("sharing"), injection, notes.append)
    _check(injection)
    if policy == "packed":
        config["allocationPolicy"] = policy
    config["injection"] = injection
    ours: dict[str, Any] = {"version": "v1", "plugins": [{"plugin": "gpu", "config": config}]}
    if resources:
        ours["resources"] = resources
    return Converted(yaml.safe_dump(ours, sort_keys=False), (*notes, *dict.fromkeys(top.unknown())))


def _check(injection: dict[str, Any]) -> None:
    try:
        msgspec.convert(injection, InjectionOptions)
    except msgspec.ValidationError as error:
        raise ConvertError(f"what the file says of containers cannot be used: {error}") from error


def _parsed(text: str) -> Any:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConvertError(f"{where}not valid YAML: {getattr(error, 'problem', None) or ' '.join(str(error).split())}") from error
    return {} if raw is None else raw


def _injection(flags: _Section, plugin: _Section, note: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["deviceListStrategy"] = _strategies(plugin)
    for section, keys in ((plugin, _PLUGIN_SAME), (flags, _SAME)):
        for key, kind in keys.items():
            if (value := section.take(key, kind)) is not None:
                found[key] = value
    for theirs, mine in (("nvidiaDriverRoot", "driverRoot"), ("nvidiaDevRoot", "devRoot")):
        if value := flags.take(theirs, str):
            found[mine] = value
    older, newer = plugin.take("nvidiaCTKPath", str), plugin.take("nvidiaCDIHookPath", str)
    if path := newer or older:
        found["nvidiaCDIHookPath"] = path
    _without(flags, _WITHOUT_COUNTERPART, note)
    _without(plugin, _PLUGIN_WITHOUT_COUNTERPART, note)
    _without(flags.section("gfd"), _GFD, note)
    return found


def _strategies(plugin: _Section) -> list[str]:
    said = plugin.any("deviceListStrategy")
    strategies = [part.strip() for part in said.split(",")] if isinstance(said, str) else said
    strategies = ["envvar"] if strategies is None else strategies
    if not isinstance(strategies, list) or not strategies or not all(one in STRATEGIES for one in strategies):
        raise ConvertError(f"{plugin.at('deviceListStrategy')}: {said!r} must be of {', '.join(STRATEGIES)}")
    strategies = list(dict.fromkeys(strategies))
    passes = plugin.take("passDeviceSpecs", bool)
    # Device specs have no effect beside nothing but CDI strategies, where the spec has the device files.
    if passes and any(not one.startswith("cdi-") for one in strategies):
        strategies.append("device-specs")
    return strategies


def _imex(imex: _Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    channels = imex.take("channelIDs", list)
    if channels not in (None, [], [0]):
        raise ConvertError(f"{imex.at('channelIDs')}: {channels!r} must be [] or [0]")
    if channels:
        found["channelIDs"] = channels
    if (required := imex.take("required", bool)) is not None:
        found["required"] = required
    return found


def _discovery(flags: _Section, note: Callable[[str], None]) -> None:
    strategy = _choice(flags, "deviceDiscoveryStrategy", ("auto", "nvml", "tegra", "vfio"))
    if strategy in ("tegra", "vfio"):
        note(f"{flags.at('deviceDiscoveryStrategy')}: {strategy} is not supported: GPUs are found through NVML")


def _names(resources: _Section, note: Callable[[str], None]) -> None:
    for key in ("gpus", "mig"):
        if resources.has(key):
            note(f"{resources.at(key)}: {_NO_EFFECT}; for names of your own write resources in the plugin's config")


def _sharing(sharing: _Section, injection: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """What goes under resources. NVIDIA's plugin does not look at time-slicing where there is MPS."""
    slicing = _shared(sharing.section("timeSlicing"), False, note) if sharing.has("timeSlicing") else {}
    if not sharing.has("mps"):
        return slicing
    shared = _shared(sharing.section("mps"), True, note)
    injection["mps"] = {name: settings["replicas"] for name, settings in shared.items()}
    if not injection.get("mpsRoot"):
        injection["mpsRoot"] = MPS_ROOT
        note(f"flags.mpsRoot: not given; {MPS_ROOT} is assumed, where NVIDIA's Helm chart has it")
    if slicing:
        note(f"{sharing.at('timeSlicing')}: {_NO_EFFECT} where mps is there as well")
    return shared


def _shared(block: _Section, fail: bool, note: Callable[[str], None]) -> dict[str, Any]:
    rename = block.take("renameByDefault", bool) or False
    said = block.take("failRequestsGreaterThanOne", bool)
    fail = fail if said is None else said
    found: dict[str, Any] = {}
    for entry in block.sections("resources"):
        name, replicas = entry.take("name", str), entry.take("replicas", int)
        if not name:
            raise ConvertError(f"{entry.at('name')} is missing")
        name = name if name.startswith(DOMAIN) else DOMAIN + name
        if not _NAME.fullmatch(name.removeprefix(DOMAIN)):
            raise ConvertError(f"{entry.at('name')}: {name!r} is no name of a resource")
        if replicas is None or replicas < 2:
            raise ConvertError(f"{entry.at('replicas')} must be 2 or more, not {replicas!r}")
        if name in found:
            raise ConvertError(f"{entry.at('name')}: {name} is there twice")
        if new := entry.take("rename", str):
            note(f"{entry.at('rename')}: {_NO_EFFECT}; to have it, write 'rename: {new if '/' in new else DOMAIN + new}' under resources.{name}")
        if entry.any("devices") not in (None, "all"):
            note(f"{entry.at('devices')}: {_NO_EFFECT}, all GPUs are shared; to share some, give them a name of their own")
        found[name] = {"replicas": replicas, "renameByDefault": rename, "failRequestsGreaterThanOne": fail}
    if not found:
        raise ConvertError(f"{block.at('resources')} must name at least one resource")
    return found


def _choice(section: _Section, key: str, values: tuple[str, ...]) -> str:
    value = section.take(key, str)
    if value and value not in values:
        raise ConvertError(f"{section.at(key)}: {value!r} must be one of {', '.join(values)}")
    return value or ""


def _without(section: _Section, reasons: dict[str, str], note: Callable[[str], None]) -> None:
    for key, reason in reasons.items():
        if section.has(key):
            note(f"{section.at(key)}: {reason}")
