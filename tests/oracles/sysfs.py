# SPDX-License-Identifier: Apache-2.0
"""deviceplugin._native.sysfs one path after the other, with the os module."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

PATH_MAX = 4096  # with the NUL at its end, as the kernel counts
LINKS = 40

T = TypeVar("T")


def read(root: str, paths: Iterable[str], limit: int) -> list[str | int]:
    return [_errno_of(read_one, _located(root, path), limit) for path in paths]


def names(root: str, paths: Iterable[str]) -> list[list[str] | int]:
    return [_errno_of(lambda at: sorted(os.listdir(at), key=by_number), _located(root, path)) for path in paths]


def resolve(root: str, paths: Iterable[str]) -> list[str | int]:
    return [_errno_of(resolve_one, root.removesuffix("/"), path) for path in paths]


def read_one(path: str, limit: int) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return os.read(fd, limit).decode("utf-8", "replace").rstrip("\0 \t\r\n")
    finally:
        os.close(fd)


def resolve_one(root: str, path: str) -> str:
    done, rest, links = "", path.split("/")[::-1], 0
    os.fsencode(path)
    if "\0" in path:
        raise ValueError("embedded null byte")
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        at = f"{root}{done}/{part}"
        if len(os.fsencode(at)) >= PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, "too long")
        try:
            target = os.readlink(at)
        except OSError:  # not a link, or nothing there
            done = f"{done}/{part}"
            continue
        links += 1
        if links > LINKS:
            raise OSError(errno.ELOOP, "a loop")
        if target.startswith("/"):
            done = ""
        rest.extend(reversed(target.split("/")))
    return done or "/"


def by_number(name: str) -> tuple[list[tuple[bool, int, bytes]], bytes]:
    """What names are ordered by. Where runs of digits differ in their zeros alone, the bytes decide."""
    text = os.fsencode(name)
    return [(not digits, int(digits or 0), other) for digits, other in re.findall(rb"(\d+)|(\D+)", text)], text


def _located(root: str, path: str) -> str:
    return root + path.lstrip("/") if root else path


def _errno_of(look: Callable[..., T], *arguments: object) -> T | int:
    try:
        return look(*arguments)
    except OSError as error:
        return error.errno or 0
    except UnicodeEncodeError:
        return errno.EILSEQ
    except ValueError:  # a NUL
        return errno.EINVAL
