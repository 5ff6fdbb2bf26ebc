# SPDX-License-Identifier: Apache-2.0
"""YAML files that people write, with the line of each part. What a reader could stumble over is refused before it is built."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import Any

from deviceplugin.config import ConfigError

MAX_BYTES = 1 << 20
"""What a ConfigMap can hold (MaxSecretSize, pkg/apis/core/validation)."""

MAX_DEPTH = 64
"""Of lists and mappings in each other. The C loader takes stack for each and would overflow it at some ten thousand, which ends the process."""

MAX_NODES = 200_000
"""With all aliases written out: a few lines of aliases to lists of aliases could stand for more than any memory holds."""


class SourceMapping(dict[Any, Any]):
    """A mapping with the line of each key, from 1."""

    def __init__(self, content: dict[Any, Any] | None = None) -> None:
        super().__init__(content or {})
        self.lines: dict[Any, int] = dict(getattr(content, "lines", {}))


class SourceSequence(list[Any]):
    """A list with the line of each item, from 1."""

    def __init__(self, content: list[Any] | None = None) -> None:
        super().__init__(content or [])
        self.lines: list[int] = list(getattr(content, "lines", []))


def read_bytes(path: str) -> bytes:
    """What is in a file or comes through a pipe. Raises ConfigError: also for what is longer than a configuration can be, and for devices."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # to open a pipe may wait for ever
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISFIFO(mode):
                os.set_blocking(file.fileno(), True)
            elif not stat.S_ISREG(mode):
                raise ConfigError(f"{path}: cannot be read: {os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else 'it is not a file'}")
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: is longer than {MAX_BYTES} bytes, the most that a ConfigMap can hold: it is not a configuration")
    return content


def is_pipe(path: str) -> bool:
    """Whether what is read there is gone then."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def fingerprint(content: bytes | None) -> str:
    """The SHA-256 sum of what is in a file, as ``sha256sum`` prints it; empty where there is no file."""
    return "" if content is None else hashlib.sha256(content).hexdigest()


def parse(content: bytes, path: str) -> Any:
    """The YAML document, with SourceMapping and SourceSequence for dict and list. Raises ConfigError with the line of a mistake."""
    import yaml  # 14 ms that a plugin without a file need not spend

    try:
        text = content.decode()
        _check_shape(text)
        return yaml.load(text, Loader=_loader())  # noqa: S506 - a subclass of the safe loader
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: cannot be read: byte {content[error.start]:#04x} is not UTF-8: it is not a text file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {what}") from error


def line_of(raw: Any, place: str) -> int:
    """The line of a place such as ``plugins[0].config`` or ``resources[example.com/gpu].policy``, or of the last part of it that is there; or 0."""
    line = 0
    while place:
        keys: Any = raw if isinstance(raw, SourceMapping) else range(len(raw)) if isinstance(raw, SourceSequence) else ()
        spelled = {form: key for key in keys for form in (f".{key}", f"[{key}]", str(key))}
        here = [form for form in spelled if place.startswith(form) and place[len(form) :][:1] in ("", ".", "[")]
        if not here:
            break
        form = max(here, key=len)
        key = spelled[form]
        line = (raw.lines.get(key) if isinstance(raw, SourceMapping) else raw.lines[key]) or line
        raw, place = raw[key], place[len(form) :]
    return line


def _check_shape(text: str) -> None:
    """Refuses what is nested too deeply, refers to itself, or stands for too much. Reads events only, which need no stack."""
    import yaml

    open_nodes: list[tuple[str | None, int]] = []
    sizes: dict[str | None, int] = {}
    total = 0
    for event in yaml.parse(text, Loader=_base()):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise _refused(f"*{event.anchor} refers to what it is a part of", event.start_mark)
            total += sizes.get(event.anchor, 0)
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if len(open_nodes) > MAX_DEPTH or total > MAX_NODES:
            what = f"more than {MAX_DEPTH} lists and mappings in each other" if len(open_nodes) > MAX_DEPTH else f"more than {MAX_NODES} values"
            raise _refused(f"{what}: it is not a configuration", event.start_mark)


def _refused(problem: str, mark: Any) -> Exception:
    import yaml

    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _base() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _loader() -> Any:
    """YAML's safe loader, except that it notes lines, and that a key given twice is an error instead of the last one winning in silence."""
    import yaml

    class Loader(_base()):  # type: ignore[misc]
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of what only looks like a date or a number
                raise yaml.constructor.ConstructorError(None, None, f"not a value: {error}", node.start_mark) from error

        def mapping(self, node: Any) -> Any:
            made = SourceMapping()
            yield made
            seen = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":  # << has no value of its own, and what it brings may be overridden
                    continue
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, (str, int)) and key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
                if isinstance(key, (str, int)):
                    seen.add(key)
            made.update(self.construct_mapping(node))
            made.lines.update((self.construct_object(key_node, deep=True), key_node.start_mark.line + 1) for key_node, _ in node.value)

        def sequence(self, node: Any) -> Any:
            made = SourceSequence()
            yield made
            made.extend(self.construct_sequence(node))
            made.lines.extend(item.start_mark.line + 1 for item in node.value)

    Loader.add_constructor("tag:yaml.org,2002:map", Loader.mapping)
    Loader.add_constructor("tag:yaml.org,2002:seq", Loader.sequence)
    return Loader
