# SPDX-License-Identifier: Apache-2.0
"""Asks the daemons of this machine, each on its own socket."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from deviceplugin.observe.pardon import Answer
from deviceplugin.observe.status import Status

T = TypeVar("T")

STATUS_SUFFIX = ".status.sock"
"""How the names of the sockets end, in the directory of the locks."""

TIMEOUT = 3.0


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AskError(Exception):
    """A daemon is there and gives no usable answer; the text says which and why."""


def sockets(directory: str) -> list[str]:
    """The status sockets in the directory of the locks, those of killed daemons included. Raises AskError if it may not be read."""
    try:
        return sorted(entry.path for entry in os.scandir(directory) if entry.name.endswith(STATUS_SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AskError(f"{directory}: {error.strerror}; the daemons' sockets are there, and only their user and root may ask") from error


def fetch(path: str, target: str, timeout: float = TIMEOUT, method: str = "GET") -> bytes | None:
    """What the daemon behind a socket answers, None if there is no daemon any more. Raises AskError."""
    connection = _Connection(path, timeout)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read()
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except (OSError, http.client.HTTPException) as error:
        raise AskError(f"{path}: {getattr(error, 'strerror', None) or error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise AskError(f"{path}: {target} answered {response.status}: {body[:200].decode('utf-8', 'replace').strip()}")
    return body


def ask(path: str, timeout: float = TIMEOUT) -> Status | None:
    """The status of the daemon behind a socket, None if there is no daemon any more. Raises AskError."""
    return _decoded(path, fetch(path, "/devices", timeout), Status)


def ask_all(directory: str, timeout: float = TIMEOUT) -> tuple[tuple[Status, ...], tuple[str, ...]]:
    """Every daemon that answers, longest running first, and why others do not. Raises AskError if the directory may not be read."""
    found, errors = _each(directory, lambda path: ask(path, timeout))
    return tuple(sorted(found, key=lambda one: -one.uptime_seconds)), errors


def forgive_all(directory: str, unit: str, timeout: float = TIMEOUT) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
    """Has every daemon forgive a unit: a standby, too, remembers its fault. What they answer, and why others do not. Raises AskError."""
    target = f"/forgive?{urlencode({'unit': unit}, errors='replace')}"
    return _each(directory, lambda path: _decoded(path, fetch(path, target, timeout, "POST"), Answer))


def _each(directory: str, question: Callable[[str], T | None]) -> tuple[tuple[T, ...], tuple[str, ...]]:
    found, errors = [], []
    for path in sockets(directory):
        try:
            answer = question(path)
        except AskError as error:
            errors.append(str(error))
            continue
        if answer is not None:
            found.append(answer)
    return tuple(found), tuple(errors)


def _decoded(path: str, body: bytes | None, kind: type[T]) -> T | None:
    if body is None:
        return None
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise AskError(f"{path}: the answer is not understood, perhaps of another release: {error}") from error
