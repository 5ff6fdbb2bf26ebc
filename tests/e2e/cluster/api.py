# SPDX-License-Identifier: Apache-2.0
"""A client of the API server, over the unix socket of `kubectl proxy`."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 10.0

Object = dict[str, Any]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ApiError(OSError):
    """The API server refused. status: of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """Objects by their paths in the API, as in /api/v1/nodes. Every method raises ApiError, and OSError while there is no API server."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def get(self, path: str, raw: bool = False) -> Any:
        """An object, or the text of the answer."""
        return self._ask("GET", path, raw=raw)

    def find(self, path: str) -> Object | None:
        """An object, None if there is none of that name."""
        try:
            found: Object = self.get(path)
        except ApiError as error:
            if error.status == http.client.NOT_FOUND:
                return None
            raise
        return found

    def list(self, path: str) -> list[Object]:
        """The objects of a collection; the path may select, as in ?labelSelector=app%3Dx."""
        items: list[Object] = self.get(path)["items"]
        return items

    def create(self, path: str, value: Mapping[str, Any]) -> Object:
        """Adds an object to a collection and returns it as the server keeps it."""
        made: Object = self._ask("POST", path, value)
        return made

    def patch(self, path: str, value: Mapping[str, Any]) -> None:
        """Merges a value into an object."""
        self._ask("PATCH", path, value)

    def delete(self, path: str, grace: int | None = None) -> None:
        """Deletes an object, harmless if there is none. grace: seconds that a pod has to end."""
        try:
            self._ask("DELETE", path + ("" if grace is None else f"?gracePeriodSeconds={grace}"))
        except ApiError as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def _ask(
        self, method: str, path: str, value: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, raw: bool = False
    ) -> Any:
        connection = _Connection(self.socket)
        try:
            body = None if value is None else json.dumps(value)
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            raise ApiError(response.status, f"{method} {path}: {response.status}: {text[:2000]}")
        return text if raw else json.loads(text)
