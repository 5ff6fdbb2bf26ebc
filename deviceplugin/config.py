# SPDX-License-Identifier: Apache-2.0
"""The configuration: one YAML file, strict and typed, with flags and ``DEVICEPLUGIN_*`` variables before it.

An unknown key is an error that names its place and the nearest known key. Nothing is applied unless all of it is valid.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from deviceplugin.checks import resource_name_error
from deviceplugin.health import Damping, Recovery, Rule
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

    discover: Seconds = 30.0
    allocate: Annotated[float, msgspec.Meta(gt=0, le=30)] = 5.0
    prefer: Annotated[float, msgspec.Meta(gt=0, le=30)] = 1.0
    prepare: Annotated[float, msgspec.Meta(gt=0, le=29)] = 25.0
    start: Seconds = 30.0

    def by_hook(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__struct_fields__}


class PluginSettings(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One plugin to run."""

    plugin: str
    """The name of an installed plugin, or ``module:Class``, or ``path/file.py:Class``."""
    name: str = ""
    """What it is called in logs and metrics, by default the part of ``plugin`` before the colon."""
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
        return self.name or os.path.basename(self.plugin.partition(":")[0]).removesuffix(".py")


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
    node_name: str = ""

    def __post_init__(self) -> None:
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
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"listen: {text!r} is not an address: write host:port, as in 127.0.0.1:9808, or nothing for no server")
    return host.strip("[]"), int(port)


_VARIABLES: Mapping[str, tuple[str, ...]] = {
    f"DEVICEPLUGIN_{key}": (field,)
    for key, field in {
        "LISTEN": "listen",
        "LOG_FORMAT": "logFormat",
        "LOG_LEVEL": "logLevel",
        "REGISTRATION": "registration",
        "NODE_NAME": "nodeName",
    }.items()
}


def load(path: str | None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings from flags, then ``DEVICEPLUGIN_*`` variables, then the file at ``path``. Raises ConfigError."""
    raw: Any = {"version": "v1"} if path is None else read(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the file must hold a mapping that starts with 'version: v1', not {_kind(raw)}")
    source = path or "the command line"
    environ = os.environ if environ is None else environ
    for variable, (key,) in _VARIABLES.items():
        if variable in environ:
            raw[key] = environ[variable]
    raw.update({key: value for key, value in (flags or {}).items() if value is not None})
    return convert(raw, Settings, source)


def read(path: str) -> Any:
    """The YAML document in a file. Raises ConfigError with the line of a mistake."""
    import yaml  # 14 ms that a plugin without a file need not spend

    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, Loader=_strict_loader())  # noqa: S506 - a subclass of the safe loader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _strict_loader() -> Any:
    """YAML's safe loader, except that a key given twice is an error instead of the last one winning in silence."""
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc,valid-type]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, (str, int)) and key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
                if isinstance(key, (str, int)):
                    seen.add(key)
            return super().construct_mapping(node, deep)

    return Loader


T = typing.TypeVar("T")


def convert(raw: Any, kind: type[T], source: str) -> T:
    """Checks ``raw`` against a Struct. Raises ConfigError that names the place and, for an unknown key, the nearest known one."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), kind)}") from error


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*?)`(?: - at `(?P<path>.*)`)?$", re.DOTALL)


def _explain(text: str, kind: type) -> str:
    found = _UNKNOWN.match(text)
    if found:
        path = found["path"] or "$"
        known = _keys_at(kind, path)
        near = difflib.get_close_matches(found["field"], known, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(known))}"
        return f"{_place(path)}: unknown key {found['field']!r}{hint}"
    message, at, path = text.partition(" - at `")
    return f"{_place(path.rstrip('`'))}: {message}" if at else message


def _place(path: str) -> str:
    return path.removeprefix("$").removeprefix(".") or "top level"


def _keys_at(kind: Any, path: str) -> list[str]:
    """The keys that the Struct at a msgspec path accepts."""
    for step in re.findall(r"\[\.\.\.\]|\[\d+\]|\.[^.\[]+", path.removeprefix("$")):
        kind = _struct_of(kind)
        if step.startswith("["):
            args = list(typing.get_args(kind))
            kind = args[-1] if args else kind
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            hints = typing.get_type_hints(kind)
            names = {f.encode_name: f.name for f in msgspec.structs.fields(kind)}
            kind = hints.get(names.get(step[1:], ""), kind)
    kind = _struct_of(kind)
    return [f.encode_name for f in msgspec.structs.fields(kind)] if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else []


def _struct_of(kind: Any) -> Any:
    """``X`` of ``X | None`` and of ``Annotated[X, ...]``."""
    while True:
        args = [a for a in typing.get_args(kind) if a is not type(None)]
        if typing.get_origin(kind) is Annotated or (len(args) == 1 and type(None) in typing.get_args(kind)):
            kind = args[0]
        else:
            return kind


def _kind(value: Any) -> str:
    return {"NoneType": "nothing", "list": "a list", "str": "text"}.get(type(value).__name__, type(value).__name__)


def load_class(spec: str) -> type[Plugin]:
    """The plugin class that ``spec`` names: an installed plugin, ``module:Class``, or ``file.py:Class``. Raises ConfigError."""
    import importlib.metadata  # 20 ms with the next, which only those pay who name an installed plugin
    import importlib.util

    target, colon, attribute = spec.rpartition(":")
    try:
        if not colon:
            found = {entry.name: entry for entry in importlib.metadata.entry_points(group="deviceplugin.plugins")}
            if spec not in found:
                near = difflib.get_close_matches(spec, found, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(sorted(found)) or 'none'}"
                raise ConfigError(f"plugin {spec!r} is not installed; {hint} A class is named as module:Class or file.py:Class")
            cls = found[spec].load()
        elif target.endswith(".py"):
            module_spec = importlib.util.spec_from_file_location(os.path.basename(target).removesuffix(".py"), target)
            if module_spec is None or module_spec.loader is None or not os.path.isfile(target):
                raise ConfigError(f"plugin {spec!r}: there is no file {target}")
            module = importlib.util.module_from_spec(module_spec)
            sys.modules.setdefault(module_spec.name, module)
            module_spec.loader.exec_module(module)
            cls = getattr(module, attribute)
        else:
            cls = getattr(importlib.import_module(target), attribute)
    except ConfigError:
        raise
    except AttributeError as error:
        raise ConfigError(f"plugin {spec!r}: {target} has no class {attribute!r}") from error
    except Exception as error:
        raise ConfigError(f"plugin {spec!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise ConfigError(f"plugin {spec!r} is not a subclass of deviceplugin.Plugin")
    return cls


def plugin_config(cls: type[Plugin], raw: Mapping[str, Any], label: str) -> Any:
    """The plugin's typed options. Raises ConfigError."""
    if cls.Config is None:
        if raw:
            raise ConfigError(f"plugin {label}: takes no options, but config has {', '.join(sorted(map(str, raw)))}")
        return None
    return convert(dict(raw), cls.Config, f"plugin {label}: config")
