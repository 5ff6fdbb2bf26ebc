# SPDX-License-Identifier: Apache-2.0
"""What a configuration may say: strict and typed.

An unknown key is an error that names its place and the nearest known key. Nothing is applied unless all of it is valid.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
import msgspec.inspect

from deviceplugin.checks import resource_name_error
from deviceplugin.health import Damping
from deviceplugin.hooks import DEADLINES
from deviceplugin.model import Recovery, Rule
from deviceplugin.plugin import Plugin


class ConfigError(Exception):
    """The configuration cannot be used. The text is one line per mistake, each with its place and what to do."""


Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400 * 30)]
NonNegativeSeconds = Annotated[float, msgspec.Meta(ge=0, le=86400 * 30)]
Policy = Literal["spread", "pack", "any"]
Registration = Literal["socket", "watcher"]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A part of the file: unknown keys are refused, keys are camelCase."""


class ResourceSettings(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """How one resource is advertised, whichever plugin has it."""

    replicas: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    """Containers that may share one device. Each gets the whole device: nothing limits what one takes from the others."""
    rename: str = ""
    """Another name for the resource, the domain included; empty keeps it."""
    rename_by_default: bool = False
    """With replicas, advertises ``<name>.shared``, so that a pod cannot take a share for a whole device."""
    fail_requests_greater_than_one: bool = False
    """Refuses a container that asks for several shares: they may be shares of one device and so give it nothing more."""
    policy: Policy = "spread"
    """Which of the free devices a container gets: over as many units as possible, on as few as possible, or the first."""
    registration: Registration | None = None
    """How the resource is announced, if not as the top of the file says."""

    def __post_init__(self) -> None:
        if self.rename and (error := resource_name_error(self.rename)):
            raise ValueError(error)
        if self.rename and self.rename_by_default:
            raise ValueError("rename and renameByDefault exclude each other: keep one")


class RecoveryRule(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """When a unit may be healthy again after its probe stopped seeing a cause."""

    after: Literal["quiet", "reset", "never"] = "quiet"
    seconds: NonNegativeSeconds = 0.0


class HealthSettings(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Recovery by cause (``default`` for the rest), and how flapping is damped."""

    recovery: dict[str, RecoveryRule] = {}
    flaps: Annotated[int, msgspec.Meta(ge=1)] = 5
    flap_window: Seconds = 300.0
    flap_hold: NonNegativeSeconds = 60.0

    def rules(self) -> dict[str, Rule]:
        return {cause: Rule(Recovery(rule.after), rule.seconds) for cause, rule in self.recovery.items()}

    def damping(self) -> Damping:
        return Damping(self.flaps, self.flap_window, self.flap_hold)


class Deadlines(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Seconds that each hook of a plugin may take. The kubelet waits for allocate and prefer without limit, and for prepare 30 s."""

    discover: Seconds = DEADLINES["discover"]
    allocate: Annotated[float, msgspec.Meta(gt=0, le=30)] = DEADLINES["allocate"]
    measure: Seconds = DEADLINES["measure"]
    prefer: Annotated[float, msgspec.Meta(gt=0, le=30)] = DEADLINES["prefer"]
    prepare: Annotated[float, msgspec.Meta(gt=0, le=29)] = DEADLINES["prepare"]
    reconcile: Seconds = DEADLINES["reconcile"]
    start: Seconds = DEADLINES["start"]

    def by_hook(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__struct_fields__}


class PluginSettings(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One plugin to run."""

    plugin: str
    """The name of an installed plugin, or ``module:Class``, or ``path/file.py:Class``."""
    name: str = ""
    """What it is called in logs and metrics, by default the part of ``plugin`` before the colon."""
    enabled: bool = True
    """Whether it runs: so that some nodes can do without it, or with it, where the others do not."""
    config: dict[str, Any] = {}
    """The plugin's own options, checked against its Config."""
    interval: Seconds | None = None
    """Seconds between two looks at the hardware, if not what the plugin says."""
    unknown_after: Seconds = 120.0
    """Seconds of failing discovery after which its devices are no longer advertised as healthy."""
    deadlines: Deadlines = Deadlines()
    health: HealthSettings = HealthSettings()

    @property
    def label(self) -> str:
        return plugin_label(self.plugin, self.name)


def plugin_label(plugin: str, name: str) -> str:
    """What a plugin is called: by its name, or by where it comes from."""
    return name or os.path.basename(plugin.partition(":")[0]).removesuffix(".py")


class Match(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Which nodes are meant. With names and labels, both must fit."""

    names: list[str] = []
    """Patterns of node names as in a shell (``gpu-*``, ``node-[0-9]?``); one must fit."""
    labels: dict[str, str] = {}
    """Labels from ``labelFiles``, each with a pattern for its value; all must fit."""

    def __post_init__(self) -> None:
        if not self.names and not self.labels:
            raise ValueError("match needs names or labels: what is meant for every node stands outside of nodes")


class NodeSettings(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What some nodes have otherwise."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    """What it is called in logs and metrics."""
    match: Match
    settings: dict[str, Any] = {}
    """As the top of the file, over which it is laid; checked in the result."""


class Settings(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The whole file."""

    version: Literal["v1"]
    plugins: list[PluginSettings] = []
    resources: dict[str, ResourceSettings] = {}
    """By the name that the plugin gives the resource."""
    registration: Registration = "socket"
    """``socket``: announce on kubelet.sock. ``watcher``: put a socket into plugins_registry and be found."""
    listen: str = "127.0.0.1:9808"
    """Address of /metrics, /healthz and /readyz; empty for none."""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tombstone_limit: Seconds = 3600.0
    """Seconds that a vanished device stays listed where podresources cannot tell whether a pod holds it."""
    state_directory: str = ""
    """Where faults are remembered across restarts, if not in /var/lib/deviceplugin below the root."""
    kubernetes_events: bool = False
    """Whether changes of health and refused configurations become Events of the node in the cluster: needs a service account that may make them."""
    node_name: str = ""
    label_files: list[str] = []
    """Files with labels of this node, for ``nodes`` to match: lines of ``key=value``. One that is not there has none; the last has the last word."""
    nodes: list[NodeSettings] = []
    """Settings for some nodes. The first that matches counts."""

    def __post_init__(self) -> None:
        for path in self.label_files:
            if not os.path.isabs(path):
                raise ValueError(f"labelFiles: {path!r} must be an absolute path")
        names = [one.name for one in self.nodes]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"nodes: two entries are called {twice[0]!r}: each needs a name of its own")
        labels: dict[str, int] = {}
        for i, plugin in enumerate(self.plugins):
            if plugin.label in labels:
                raise ValueError(f"plugins {labels[plugin.label]} and {i} are both called {plugin.label!r}: give one a name of its own")
            labels[plugin.label] = i
        taken: dict[str, str] = {}
        for resource, settings in self.resources.items():
            if error := resource_name_error(resource):
                raise ValueError(error)
            name = advertised_name(resource, settings)
            if error := resource_name_error(name):
                raise ValueError(error)
            if name in taken:
                raise ValueError(f"resources {taken[name]} and {resource} would both be advertised as {name}: rename one")
            taken[name] = resource
        if self.listen:
            listen_address(self.listen)


def advertised_name(resource: str, settings: ResourceSettings | None) -> str:
    """The name under which the kubelet hears of a resource."""
    if settings is None:
        return resource
    return settings.rename or (f"{resource}.shared" if settings.rename_by_default and settings.replicas > 1 else resource)


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port`` or ``:port``. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"listen: {text!r} is not an address: write host:port, as in 127.0.0.1:9808, or nothing for no server")
    return host.strip("[]"), int(port)


T = typing.TypeVar("T")


def convert(raw: Any, kind: type[T], source: str | Callable[[str], str]) -> T:
    """Checks ``raw`` against a Struct or dataclass. Raises ConfigError that names the place and, for an unknown key, the nearest known one.

    Each message begins with ``source``, or with what it answers for the place that the message is about.
    """
    begin = source if callable(source) else lambda _place: source
    mistakes = [f"{begin(place)}: {text}" for place, text in _unknown_keys(raw, _type_info(typing.cast(Any, kind)), "")]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message, at, path = str(error).partition(" - at `")
        place, meant = _locate(raw, kind, path.rstrip("`")) if at else ("", kind)
        if message.startswith("Invalid enum value") and (allowed := typing.get_args(_struct_of(meant))):
            message += f", allowed: {', '.join(map(str, allowed))}"
        raise ConfigError(f"{begin(place)}: {place}: {message}" if place else f"{begin(place)}: {message}") from error


@functools.lru_cache(maxsize=32)
def _type_info(kind: type) -> msgspec.inspect.Type:
    """It takes 2 ms to find out, and every entry of ``nodes`` asks."""
    return msgspec.inspect.type_info(kind)


def _unknown_keys(raw: Any, kind: msgspec.inspect.Type, place: str) -> Iterator[tuple[str, str]]:
    """Every key that nothing reads, at any depth, with its place.

    Left to itself, msgspec lets them pass in dataclasses and in Structs that do not forbid them.
    """
    match kind:
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType() if isinstance(raw, dict):
            known = {field.encode_name: field.type for field in kind.fields}
            for key, value in raw.items():
                if key in known:
                    yield from _unknown_keys(value, known[key], f"{place}.{key}" if place else key)
                elif key != getattr(kind, "tag_field", None):
                    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known)) or 'none'}"
                    yield f"{place}.{key}" if place else str(key), f"{place or 'top level'}: unknown key {key!r}, {hint}"
        case msgspec.inspect.DictType() if isinstance(raw, dict):
            for key, value in raw.items():
                yield from _unknown_keys(value, kind.value_type, f"{place}[{key}]")
        case msgspec.inspect.CollectionType() if isinstance(raw, list):
            for i, value in enumerate(raw):
                yield from _unknown_keys(value, kind.item_type, f"{place}[{i}]")
        case msgspec.inspect.UnionType():
            # msgspec allows several Structs in one union only where a tag tells them apart; then the tagged one forbids for itself.
            inner = [one for one in kind.types if isinstance(one, (msgspec.inspect.StructType, msgspec.inspect.DataclassType))]
            if len(inner) == 1:
                yield from _unknown_keys(raw, inner[0], place)


def _locate(raw: Any, kind: Any, path: str) -> tuple[str, Any]:
    """A msgspec path as people write it, and the type that is wanted there.

    The path has ``[...]`` for any key of a mapping: the one meant is the first whose value does not fit.
    """
    if path.startswith("key` in `"):
        return f"the keys of {path.removeprefix('key` in `$').removeprefix('.') or 'the top level'}", None
    place = ""
    for step in re.findall(r"\[\.\.\.\]|\[\d+\]|\.[^.\[]+", path.removeprefix("$")):
        kind = _struct_of(kind)
        args = typing.get_args(kind)
        if step == "[...]" and isinstance(raw, dict) and args:
            key = next((key for key, value in raw.items() if not _fits(value, args[-1])), None)
            step, raw, kind = f"[{key}]", raw.get(key), args[-1]
        elif step.startswith("[") and isinstance(raw, list) and args:
            raw, kind = raw[int(step[1:-1])], args[0]
        elif step.startswith(".") and isinstance(raw, dict):
            raw = raw.get(step[1:])
            names = (
                {f.encode_name: f.name for f in msgspec.structs.fields(kind)} if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else {}
            )
            hints = typing.get_type_hints(kind, include_extras=True) if isinstance(kind, type) else {}
            kind = hints.get(names.get(step[1:], step[1:]))
        place += step
    return place.removeprefix("."), kind


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _struct_of(kind: Any) -> Any:
    """``X`` of ``X | None`` and of ``Annotated[X, ...]``."""
    while True:
        args = [a for a in typing.get_args(kind) if a is not type(None)]
        if typing.get_origin(kind) is Annotated or (len(args) == 1 and type(None) in typing.get_args(kind)):
            kind = args[0]
        else:
            return kind


def load_class(spec: str) -> type[Plugin]:
    """The plugin class that ``spec`` names: an installed plugin, ``module:Class``, or ``file.py:Class``. Raises ConfigError."""
    import importlib

    target, colon, attribute = spec.rpartition(":")
    try:
        if not colon:
            import importlib.metadata  # 10 ms with the next line, which only those pay who name an installed plugin

            found = {entry.name: entry for entry in importlib.metadata.entry_points(group="deviceplugin.plugins")}
            if spec not in found:
                near = difflib.get_close_matches(spec, found, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(sorted(found)) or 'none'}."
                raise ConfigError(f"plugin {spec!r} is not installed; {hint} A class is named as module:Class or file.py:Class")
            module, attribute = importlib.import_module(found[spec].module), found[spec].attr
        elif target.endswith(".py"):
            import importlib.util

            # The name is no module's: a file called queue.py must not become the standard library's queue, nor two files of one name each other.
            module_spec = importlib.util.spec_from_file_location(f"plugin file {os.path.abspath(target)}", target)
            if module_spec is None or module_spec.loader is None or not os.path.isfile(target):
                raise ConfigError(f"plugin {spec!r}: there is no file {target}")
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[module_spec.name] = module  # annotations are resolved in the module that is found here
            module_spec.loader.exec_module(module)
        else:
            module = importlib.import_module(target)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"plugin {spec!r} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}") from error
    cls = getattr(module, attribute, None)
    if cls is None:
        raise ConfigError(f"plugin {spec!r}: {getattr(module, '__file__', None) or target} has no class {attribute!r}")
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise ConfigError(f"plugin {spec!r} is not a subclass of deviceplugin.Plugin")
    return cls


def plugin_config(cls: type[Plugin], raw: Mapping[str, Any], label: str, where: Callable[[str], str] = lambda _place: "") -> Any:
    """The plugin's typed options. Raises ConfigError; ``where`` gives what its messages begin with for a place in the options."""
    if cls.Config is None:
        if raw:
            raise ConfigError(f"{where('')}plugin {label}: takes no options, but config has {', '.join(sorted(map(str, raw)))}")
        return None
    try:
        return convert(dict(raw), cls.Config, lambda place: f"{where(place)}plugin {label}: config")
    except (TypeError, NameError) as error:
        raise ConfigError(f"{where('')}plugin {label}: its Config is not usable: {error}") from error
