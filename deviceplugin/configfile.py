# SPDX-License-Identifier: Apache-2.0
"""The configuration file: read, made into what this node runs, and checked as a whole, also what is meant for other nodes.

Flags come before ``DEVICEPLUGIN_*`` variables, these before the entry of ``nodes`` that matches, and that before the rest of the file.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field

from deviceplugin.config import ConfigError, NodeSettings, Settings, convert, load_class, plugin_config, plugin_label
from deviceplugin.plugin import Plugin
from deviceplugin.source import SourceMapping, SourceSequence, fingerprint, line_of, parse, read_bytes

_VARIABLES: Mapping[str, str] = {
    f"DEVICEPLUGIN_{name}": key
    for name, key in {
        "LISTEN": "listen",
        "LOG_FORMAT": "logFormat",
        "LOG_LEVEL": "logLevel",
        "REGISTRATION": "registration",
        "NODE_NAME": "nodeName",
    }.items()
}

_SAME_EVERYWHERE = ("version", "nodeName", "labelFiles", "nodes")
"""Keys that say which node this is, and so cannot depend on it."""


class Variant(Struct, frozen=True):
    """The settings of some nodes: those of one entry of ``nodes``, or those of all nodes that none matches."""

    name: str
    """Empty for the latter."""
    settings: Settings
    raw: Any = None
    """What the settings were made of."""


class Configuration(Struct, frozen=True):
    """What this node is to run, and where that comes from."""

    settings: Settings
    source: str = ""
    """The file, empty without one."""
    variant: str = ""
    """The entry of ``nodes`` that it took, empty if none matched."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What was read, with the fingerprint of what was in it: the configuration file first, then the label files."""
    variants: tuple[Variant, ...] = ()
    """All that the file says, for other nodes too: the common part first."""

    @property
    def hash(self) -> str:
        """The SHA-256 sum of the file, empty without one."""
        return self.files.get(self.source, "")


def load(path: str | None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, hostname: str = "") -> Configuration:
    """The configuration for this node. Raises ConfigError if anything in the file is wrong, also in what is meant for other nodes.

    ``hostname`` stands in where nothing says the node's name and ``nodes`` are matched by it; without one that is an error.
    """
    given = _given(flags or {}, os.environ if environ is None else environ)
    by_hand = convert({"version": "v1", **given}, Settings, "the command line")
    if path is None:
        return Configuration(by_hand)
    content = read_bytes(path)
    raw = parse(content, path)
    if not isinstance(raw, SourceMapping):
        raise ConfigError(f"{path}: the file must hold a mapping that starts with 'version: v1', not {_kind(raw)}")
    common = Variant("", convert(_with(raw, given), Settings, _where(path, raw)), raw)
    others, mistakes = [], []
    for i, node in enumerate(common.settings.nodes):
        try:
            others.append(_variant(path, raw, i, node, given))
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    files = {path: fingerprint(content)}
    labels: dict[str, str] = {}
    for file in common.settings.label_files:
        found, files[file] = read_labels(file)
        labels |= found
    names = common.settings.node_name or hostname
    if not names and any(node.match.names for node in common.settings.nodes):
        raise ConfigError(
            f"{path}: nodes are matched by name, but this node's is not known: set DEVICEPLUGIN_NODE_NAME (in a pod from the field spec.nodeName), "
            "nodeName or --node-name"
        )
    chosen = next((one for one, node in zip(others, common.settings.nodes, strict=True) if matches(node, names, labels)), common)
    return Configuration(chosen.settings, path, chosen.name, files, (common, *others))


def check_plugins(configuration: Configuration, classes: Mapping[str, type[Plugin]] | None = None) -> dict[str, type[Plugin]]:
    """Loads every plugin that any node would run and checks its options. The classes for this node, by label. Raises ConfigError.

    ``classes`` are plugins given as such, by label.
    """
    loaded: dict[str, type[Plugin]] = {}
    chosen: dict[str, type[Plugin]] = {}
    mistakes: dict[str, None] = {}
    for variant in configuration.variants or (Variant("", configuration.settings),):
        mine = variant.name == configuration.variant
        for i, one in enumerate((configuration if mine else variant).settings.plugins):
            begin = _where(configuration.source, variant.raw, f"plugins[{i}]", variant.name)
            try:
                cls = (classes or {}).get(one.label) or loaded.get(one.plugin)
                if cls is None:
                    cls = loaded[one.plugin] = _loaded(one.plugin, begin(".plugin"))
                plugin_config(cls, one.config, one.label, functools.partial(_options, begin))
            except ConfigError as error:
                mistakes |= dict.fromkeys(str(error).splitlines())
            else:
                if mine:
                    chosen[one.label] = cls
        if mistakes and not variant.name:
            break  # the others would say most of it again
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return chosen


def matches(node: NodeSettings, name: str, labels: Mapping[str, str]) -> bool:
    """Whether an entry of ``nodes`` is meant for a node."""
    named = not node.match.names or any(fnmatch.fnmatchcase(name, pattern) for pattern in node.match.names)
    return named and all(key in labels and fnmatch.fnmatchcase(labels[key], pattern) for key, pattern in node.match.labels.items())


def read_labels(path: str) -> tuple[dict[str, str], str]:
    """The labels in a file, and its fingerprint; none if it is not there. Raises ConfigError.

    One line each: ``key=value``, as in feature files of Node Feature Discovery (without a value it is ``true``; ``#`` begins a comment), or with the
    value in quotes, as the downward API writes a pod's labels (FormatMap, pkg/fieldpath/fieldpath.go). No label has a value that would be escaped.
    """
    if not os.path.lexists(path):
        return {}, fingerprint(None)
    content = read_bytes(path)
    labels = {}
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: labels cannot be read: {error}") from error
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            quoted = len(value) > 1 and value[0] == value[-1] == '"'
            labels[key] = (value[1:-1] if quoted else value) if equals else "true"
    return labels, fingerprint(content)


def merged(common: Any, over: Any) -> Any:
    """``over`` laid over ``common``, as JSON Merge Patch has it (RFC 7386): mappings merge, null takes a key out, all else replaces."""
    if not isinstance(over, SourceMapping):
        return over
    result = SourceMapping(common) if isinstance(common, SourceMapping) else SourceMapping()
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
            result.lines[key] = over.lines.get(key, 0)
    return result


def _variant(path: str, raw: SourceMapping, index: int, node: NodeSettings, given: Mapping[str, Any]) -> Variant:
    place = f"nodes[{index}].settings"
    over = raw["nodes"][index].get("settings") or SourceMapping()
    for key in over:
        if key in _SAME_EVERYWHERE:
            raise ConfigError(f"{_where(path, raw)(f'{place}.{key}')}: {place}: {key} is the same for all nodes: it belongs to the top of the file")
    plugins = over.get("plugins")
    whole = merged(raw, over)
    if isinstance(plugins, SourceSequence) and isinstance(raw.get("plugins"), SourceSequence):
        whole["plugins"] = _merged_plugins(raw["plugins"], plugins)
    whole.pop("nodes")
    return Variant(node.name, convert(_with(whole, given), Settings, _where(path, whole, "", node.name)), whole)


def _merged_plugins(common: SourceSequence, over: SourceSequence) -> SourceSequence:
    """Entries for the same plugin merge, by what it is called; others are added."""
    result = SourceSequence(common)
    places = {_label(one): i for i, one in enumerate(common)}
    for one, line in zip(over, over.lines, strict=True):
        place = places.pop(_label(one), None) if isinstance(one, SourceMapping) else None
        if place is None:
            result.append(one)
            result.lines.append(line)
        else:
            result[place] = merged(result[place], one)
            result.lines[place] = line
    return result


def _label(raw: Any) -> str:
    plugin, name = (raw.get(key) for key in ("plugin", "name")) if isinstance(raw, SourceMapping) else ("", "")
    return plugin_label(plugin if isinstance(plugin, str) else "", name if isinstance(name, str) else "")


def _given(flags: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """What comes before the file."""
    variables = {key: environ[variable] for variable, key in _VARIABLES.items() if variable in environ}
    return variables | {key: value for key, value in flags.items() if value is not None}


def _with(raw: SourceMapping, given: Mapping[str, Any]) -> dict[Any, Any]:
    return {**raw, **given}


def _where(path: str, raw: Any, below: str = "", variant: str = "") -> Callable[[str], str]:
    """What messages begin with for a place: the file, the line, and the entry of ``nodes``."""

    def where(place: str) -> str:
        if not path:
            return ""
        line = line_of(raw, below + place)
        return f"{path}{f':{line}' if line else ''}" + (f": nodes {variant!r}" if variant else "")

    return where


def _options(begin: Callable[[str], str], place: str) -> str:
    where = begin(f".config.{place}")
    return f"{where}: " if where else ""


def _loaded(spec: str, begin: str) -> type[Plugin]:
    try:
        return load_class(spec)
    except ConfigError as error:
        raise ConfigError(f"{begin}: {error}" if begin else str(error)) from error


def _kind(value: Any) -> str:
    return {"NoneType": "nothing", "SourceSequence": "a list", "str": "text"}.get(type(value).__name__, type(value).__name__)
