# SPDX-License-Identifier: Apache-2.0
"""The configuration: one YAML file, strict and typed, with flags and ``DEVICEPLUGIN_*`` variables before it.

An unknown key is an error that names its place and the nearest known key. Nothing is applied unless all of it is valid.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
import msgspec.inspect

from deviceplugin.checks import resource_name_error
from deviceplugin.health import Damping
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

    discover: Seconds = 30.0
    allocate: Annotated[float, msgspec.Meta(gt=0, le=30)] = 5.0
    prefer: Annotated[float, msgspec.Meta(gt=0, le=30)] = 1.0
    prepare: Annotated[float, msgspec.Meta(gt=0, le=29)] = 25.0
    reconcile: Seconds = 10.0
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
    if not colon or not port.isdecimal() or int(port) > 65535:
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
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {what}") from error


def _strict_loader() -> Any:
    """YAML's safe loader, except that a key given twice is an error instead of the last one winning in silence."""
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc,valid-type]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":  # << has no value of its own, and what it brings may be overridden
                    continue
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, (str, int)) and key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
                if isinstance(key, (str, int)):
                    seen.add(key)
            return super().construct_mapping(node, deep)

    return Loader


T = typing.TypeVar("T")


def convert(raw: Any, kind: type[T], source: str) -> T:
    """Checks ``raw`` against a Struct or dataclass. Raises ConfigError that names the place and, for an unknown key, the nearest known one."""
    mistakes = [f"{source}: {text}" for text in _unknown_keys(raw, msgspec.inspect.type_info(kind), "")]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message, at, path = str(error).partition(" - at `")
        place, meant = _locate(raw, kind, path.rstrip("`")) if at else ("", kind)
        if message.startswith("Invalid enum value") and (allowed := typing.get_args(_struct_of(meant))):
            message += f", allowed: {', '.join(map(str, allowed))}"
        raise ConfigError(f"{source}: {place}: {message}" if place else f"{source}: {message}") from error


def _unknown_keys(raw: Any, kind: msgspec.inspect.Type, place: str) -> Iterator[str]:
    """Every key that nothing reads, at any depth. Left to itself, msgspec lets them pass in dataclasses and in Structs that do not forbid them."""
    match kind:
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType() if isinstance(raw, dict):
            known = {field.encode_name: field.type for field in kind.fields}
            for key, value in raw.items():
                if key in known:
                    yield from _unknown_keys(value, known[key], f"{place}.{key}" if place else key)
                elif key != getattr(kind, "tag_field", None):
                    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known)) or 'none'}"
                    yield f"{place or 'top level'}: unknown key {key!r}, {hint}"
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
                hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(sorted(found)) or 'none'}."
                raise ConfigError(f"plugin {spec!r} is not installed; {hint} A class is named as module:Class or file.py:Class")
            module, attribute = importlib.import_module(found[spec].module), found[spec].attr
        elif target.endswith(".py"):
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


def plugin_config(cls: type[Plugin], raw: Mapping[str, Any], label: str) -> Any:
    """The plugin's typed options. Raises ConfigError."""
    if cls.Config is None:
        if raw:
            raise ConfigError(f"plugin {label}: takes no options, but config has {', '.join(sorted(map(str, raw)))}")
        return None
    try:
        return convert(dict(raw), cls.Config, f"plugin {label}: config")
    except (TypeError, NameError) as error:
        raise ConfigError(f"plugin {label}: its Config is not usable: {error}") from error
