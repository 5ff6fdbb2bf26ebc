# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import queue
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from deviceplugin.config import ConfigError, load_class, plugin_config
from deviceplugin.plugin import Plugin

SOURCE = """
from __future__ import annotations
import msgspec
from deviceplugin import Device, Plugin

class Part(msgspec.Struct, frozen=True):
    size: int = {size}

class Options(msgspec.Struct):
    part: Part = Part()

class Vendor(Plugin):
    resource = "vendor.example/thing"
    Config = Options
    def discover(self):
        yield Device("a")

other = 7
"""


def refused(spec: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_class(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_installed_plugin_is_found_by_its_name() -> None:
    assert load_class("generic").__name__ == "Generic"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("generc", ["plugin 'generc' is not installed", "did you mean 'generic'?", "module:Class or file.py:Class"]),
        ("zzz", ["plugin 'zzz' is not installed", "installed: ", "generic"]),
        ("", ["plugin '' is not installed"]),
        ("no.such.module:Class", ["cannot be loaded", "No module named"]),
        ("json:Decoder", ["json", "has no class 'Decoder'"]),
        ("sys:Class", ["sys has no class 'Class'"]),
        ("json:JSONDecoder", ["not a subclass of deviceplugin.Plugin"]),
        ("json:dumps", ["not a subclass of deviceplugin.Plugin"]),
        (".relative:Class", ["cannot be loaded"]),
        ("missing.py:Class", ["there is no file missing.py"]),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(spec: str, words: list[str]) -> None:
    text = refused(spec)
    assert [word for word in words if word in text] == words


def test_a_class_is_loaded_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vendor.py"
    path.write_text(SOURCE.format(size=1))
    cls = load_class(f"{path}:Vendor")
    assert cls.resource == "vendor.example/thing"
    assert "has no class 'Vender'" in refused(f"{path}:Vender")
    assert "not a subclass" in refused(f"{path}:other")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import nothing_like_that", "ModuleNotFoundError"),
        ("import os; os.nothing_like_that", "AttributeError"),  # not to be taken for a class that is missing
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('a\\nb')", "ValueError: a b"),
    ],
)
def test_a_file_that_fails_when_it_is_run_is_refused_with_its_error(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert f"cannot be loaded: {error}" in refused(f"{path}:Vendor")


def test_a_file_named_like_a_module_takes_nothing_from_that_module(tmp_path: Path) -> None:
    path = tmp_path / "queue.py"
    path.write_text(SOURCE.format(size=1))
    cls = load_class(f"{path}:Vendor")
    assert sys.modules["queue"] is queue
    assert plugin_config(cls, {}, "q").part.size == 1


def test_a_file_that_was_changed_is_loaded_anew_with_its_own_types(tmp_path: Path) -> None:
    path = tmp_path / "vendor.py"
    path.write_text(SOURCE.format(size=1))
    load_class(f"{path}:Vendor")
    path.write_text(SOURCE.replace("Part", "Piece").format(size=22))
    assert plugin_config(load_class(f"{path}:Vendor"), {}, "v").part.size == 22


class Port(msgspec.Struct, rename="camel"):
    number: int
    bus_name: str = "usb"


class Options(msgspec.Struct, rename="camel"):
    ports: list[Port] = []
    by_name: dict[str, Port] = {}
    fallback: Port | None = None


@dataclass
class Plain:
    size: int = 1
    inner: dict[str, int] = field(default_factory=dict)


class WithStruct(Plugin):
    Config = Options


class WithDataclass(Plugin):
    Config = Plain


class Unfinished(msgspec.Struct):
    size: Nothing  # type: ignore[name-defined]  # noqa: F821


class WithBroken(Plugin):
    Config = Unfinished


def test_options_become_what_the_plugin_declares() -> None:
    options = plugin_config(WithStruct, {"ports": [{"number": 1}], "byName": {"a": {"number": 2, "busName": "pci"}}}, "p")
    assert options == Options([Port(1)], {"a": Port(2, "pci")})
    assert plugin_config(WithDataclass, {"size": 3}, "p") == Plain(3)
    assert plugin_config(WithStruct, {}, "p") == Options()


@pytest.mark.parametrize(
    ("cls", "raw", "message"),
    [
        (WithStruct, {"port": []}, "plugin p: config: top level: unknown key 'port', did you mean 'ports'?"),
        (WithStruct, {"by_name": {}}, "plugin p: config: top level: unknown key 'by_name', did you mean 'byName'?"),
        (WithStruct, {"ports": [{"number": 1}, {"nummer": 1}]}, "plugin p: config: ports[1]: unknown key 'nummer', did you mean 'number'?"),
        (WithStruct, {"byName": {"x": {"number": 1, "busname": ""}}}, "plugin p: config: byName[x]: unknown key 'busname', did you mean 'busName'?"),
        (WithStruct, {"fallback": {"number": 1, "zzz": 1}}, "plugin p: config: fallback: unknown key 'zzz', known here: busName, number"),
        (WithStruct, {"ports": [{"number": "1"}]}, "plugin p: config: ports[0].number: Expected `int`, got `str`"),
        (WithStruct, {"byName": {"x": {"number": 1}, "y": {}}}, "plugin p: config: byName[y]: Object missing required field `number`"),
        (WithStruct, {"fallback": {"number": None}}, "plugin p: config: fallback.number: Expected `int`, got `null`"),
        (WithDataclass, {"sise": 2}, "plugin p: config: top level: unknown key 'sise', did you mean 'size'?"),
        (WithDataclass, {"inner": {"a": 1, "b": "x"}}, "plugin p: config: inner[b]: Expected `int`, got `str`"),
        (Plugin, {"a": 1, "b": 2}, "plugin p: takes no options, but config has a, b"),
    ],
)
def test_wrong_options_are_refused_with_their_place(cls: type[Plugin], raw: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin_config(cls, raw, "p")
    assert str(caught.value) == message


def test_a_plugin_whose_config_class_is_of_no_use_is_told_so() -> None:
    with pytest.raises(ConfigError, match="plugin p: its Config is not usable"):
        plugin_config(WithBroken, {}, "p")
