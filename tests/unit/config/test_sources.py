# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.config import ConfigError
from deviceplugin.configfile import load
from deviceplugin.source import is_pipe, parse


def written(directory: Path, text: str | bytes) -> str:
    path = directory / "node.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def mistake(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    text = str(caught.value)
    assert text.startswith(path)
    assert "\n" not in text
    return text.removeprefix(path)


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("version: v1\nplugins: [1\nb: 2\n", ":3:2: ", "expected ',' or ']'"),
        ("version: v1\nlisten: @x\n", ":2:9: ", "cannot start any token"),
        ("version: v1\nlisten: ''\nversion: v1\n", ":3:1: ", "the key 'version' is there twice"),
        ("version: v1\nresources:\n  a.b/c: {replicas: 2, replicas: 3}\n", ":3:24: ", "the key 'replicas' is there twice"),
        ("version: v1\nresources: {1: {}, 1: {}}\n", ":2:20: ", "the key 1 is there twice"),
        ("? [a]\n: b\n", ":1:3: ", "unhashable"),
        ("version: !!python/object:os.system {}\n", ":1:10: ", "python/object"),
        ("version: *nowhere\n", ":1:10: ", "undefined alias"),
        ("version: 2026-13-01\n", ":1:10: ", "month must be in 1..12"),
        ("a:\n- !!bool maybe\n", ":2:3: ", "not a value"),
        ("a: !!timestamp x\n", ":1:4: ", "not a value"),
        pytest.param("a: " + "1" * 5000, ":1:4: ", "not a value", id="number"),
        pytest.param("a: " + "[" * 100_000, ":1:67: ", "more than 64 lists and mappings in each other", id="lists"),
        pytest.param("a: " + "{a: " * 100_000, ":1:256: ", "more than 64 lists and mappings in each other", id="mappings"),
        pytest.param("- " * 100_000, ":1:129: ", "more than 64 lists and mappings in each other", id="items"),
        ("a: &x {b: [*x]}\n", ":1:12: ", "*x refers to what it is a part of"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
            ":6:",
            "values",
        ),
    ],
)
def test_malformed_yaml_is_told_with_line_and_column(tmp_path: Path, text: str, place: str, what: str) -> None:
    error = mistake(written(tmp_path, text))
    assert error.startswith(place)
    assert what in error


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not nothing"),
        ("- version: v1\n", "not a list"),
        ("version\n", "not text"),
        ("7\n", "not int"),
        (b"version: v1 # \xff\n", "cannot be read"),
        ("version: \0\n", "not valid YAML"),
        (b"\x7fELF\x02\x01\x01\0\xfe", ":1: cannot be read: byte 0xfe is not UTF-8: it is not a text file"),
        (b"a: 1\nb: \xff", ":2: cannot be read: byte 0xff"),
        pytest.param(b"version: v1\n" * 1_000_000, "is longer than 1048576 bytes, the most that a ConfigMap can hold", id="11 MB"),
    ],
)
def test_a_file_that_holds_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str | bytes, what: str) -> None:
    assert what in mistake(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_told_with_the_reason(tmp_path: Path) -> None:
    assert mistake(str(tmp_path / "none.yaml")) == ": cannot be read: No such file or directory"
    assert mistake(str(tmp_path)) == ": cannot be read: Is a directory"
    assert mistake("/dev/zero") == ": cannot be read: it is not a file"
    (tmp_path / "loop").symlink_to("loop")
    assert mistake(str(tmp_path / "loop")) == ": cannot be read: Too many levels of symbolic links"
    assert mistake(f"{tmp_path}/a\0b") == ": cannot be read: embedded null byte"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told_so(tmp_path: Path) -> None:
    path = written(tmp_path, "version: v1")
    os.chmod(path, 0)
    assert mistake(path) == ": cannot be read: Permission denied"


def test_a_configuration_may_come_through_a_pipe() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as file:
        file.write("version: v1\nlogLevel: debug\n")
        file.close()
        assert load(f"/dev/fd/{reader}", environ={}).settings.log_level == "debug"
        assert is_pipe(f"/dev/fd/{reader}")


@given(st.one_of(st.binary(max_size=60), st.text(alphabet="a1:-[]{}&*!?|>#%@`'\" \n,.<~=", max_size=60).map(str.encode)))
def test_whatever_the_bytes_are_the_answer_is_a_document_or_one_line(content: bytes) -> None:
    said = ""
    try:
        parse(content, "f")
    except ConfigError as error:
        said = str(error)
    assert said.startswith("f:") or not said
    assert "\n" not in said


def test_flags_come_before_variables_and_variables_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "{version: v1, listen: 'file:1', logLevel: error, nodeName: file, logFormat: json}")
    environ = {"DEVICEPLUGIN_LISTEN": "variable:2", "DEVICEPLUGIN_LOG_LEVEL": "debug", "UNRELATED": "x"}
    settings = load(path, {"listen": "flag:3", "logLevel": None, "registration": "watcher"}, environ).settings
    assert settings.listen == "flag:3"
    assert settings.log_level == "debug"
    assert settings.node_name == "file"
    assert (settings.log_format, settings.registration) == ("json", "watcher")


def test_every_variable_has_its_key() -> None:
    environ = {
        "DEVICEPLUGIN_LISTEN": "",
        "DEVICEPLUGIN_LOG_FORMAT": "json",
        "DEVICEPLUGIN_LOG_LEVEL": "warning",
        "DEVICEPLUGIN_REGISTRATION": "watcher",
        "DEVICEPLUGIN_NODE_NAME": "node-7",
    }
    settings = load(None, environ=environ).settings
    found = (settings.listen, settings.log_format, settings.log_level, settings.registration, settings.node_name)
    assert found == ("", "json", "warning", "watcher", "node-7")


def test_a_bad_variable_or_flag_is_refused_like_a_bad_file() -> None:
    with pytest.raises(ConfigError, match="the command line: logLevel: Invalid enum value 'loud'"):
        load(None, environ={"DEVICEPLUGIN_LOG_LEVEL": "loud"})
    with pytest.raises(ConfigError, match="the command line: listen: 'x' is not an address"):
        load(None, {"listen": "x"}, {})


def test_a_merge_key_brings_what_it_merges(tmp_path: Path) -> None:
    path = written(tmp_path, "version: v1\nresources:\n  a.b/c: &all {replicas: 2, policy: pack}\n  a.b/d: {<<: *all, policy: any}\n")
    found = load(path, environ={}).settings.resources["a.b/d"]
    assert (found.replicas, found.policy) == (2, "any")
