# SPDX-License-Identifier: Apache-2.0
"""Calling a plugin as the kubelet does: Go's error texts, its limits, its way of dialling.

Messages cross grpcio as bytes and are parsed here, so that what Go refuses (4 MiB, invalid UTF-8) ends a call with a reason instead of a traceback.
"""

from __future__ import annotations

import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc._cython import cygrpc

R = TypeVar("R", bound=Message)

MAX_RECEIVE = 4 * 1024 * 1024
"""Bytes of one message that grpc-go receives by default; the kubelet sets nothing else."""

_CLIENT_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_RECEIVE),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # two clients of one socket are two connections, as in Go
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)


class RpcFailed(Exception):
    """A call failed. The text is grpc-go's, because the kubelet puts it into pod statuses."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        name = "Canceled" if code is grpc.StatusCode.CANCELLED else "".join(word.capitalize() for word in code.name.split("_"))
        super().__init__(f"rpc error: code = {name} desc = {details}")
        self.code = code
        self.details = details


class DialFailed(Exception):
    """The plugin's socket did not become a working connection in time."""


class Caller:
    """On whose behalf the kubelet works: how long is left, and whether the caller has gone (Go's context)."""

    def __init__(self, seconds: float | None = None) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._lock = threading.Lock()
        self._actions: list[Callable[[], object]] = []
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        with self._lock:
            self.cancelled.set()
            actions, self._actions = self._actions, []
        for action in actions:
            action()

    def on_cancel(self, action: Callable[[], object]) -> None:
        with self._lock:
            if not self.cancelled.is_set():
                self._actions.append(action)
                return
        action()

    def remaining(self, most: float | None = None) -> float | None:
        """Seconds left, at most ``most``; None for no limit."""
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        return most if left is None else left if most is None else min(left, most)


class Pending(Generic[R]):
    """A unary call under way."""

    def __init__(self, future: Any, response: type[R]) -> None:
        self._future = future
        self._response = response

    def cancel(self) -> None:
        self._future.cancel()

    def result(self, timeout: float | None = None) -> R:
        """:raises RpcFailed: the call failed. :raises TimeoutError: nothing came within ``timeout`` seconds; the call goes on."""
        try:
            data = self._future.result(timeout)
        except grpc.FutureTimeoutError:
            raise TimeoutError from None
        except grpc.FutureCancelledError:
            raise RpcFailed(grpc.StatusCode.CANCELLED, "context canceled") from None
        except grpc.RpcError as error:
            raise _failure(error) from None
        return _parse(self._response, data)


class Connection:
    """One connection to a plugin's socket. ``authority`` is what HTTP/2 calls the host."""

    def __init__(self, path: str, authority: str | None) -> None:
        options = _CLIENT_OPTIONS + ((("grpc.default_authority", authority),) if authority else ())
        self._channel = grpc.insecure_channel("unix:" + urllib.parse.quote(path), options)

    def ready(self, timeout: float, caller: Caller) -> None:
        """Waits until connected; grpc tries again meanwhile, so a refused connection is not the end. :raises DialFailed: in Go's words."""
        # Channel.subscribe polls on a thread of its own, which dies of a ValueError if the channel is closed at the wrong moment; so we poll here.
        channel = self._channel._channel
        limit = caller.remaining(timeout)
        deadline = time.monotonic() + (timeout if limit is None else limit)
        while (state := channel.check_connectivity_state(True)) != cygrpc.ConnectivityState.ready:
            left = deadline - time.monotonic()
            if caller.cancelled.is_set() or left <= 0:
                raise DialFailed("context canceled" if caller.cancelled.is_set() else "context deadline exceeded")
            channel.watch_connectivity_state(state, time.time() + min(left, 0.05))

    def start(self, method: str, request: Message, response: type[R], timeout: float | None = None) -> Pending[R]:
        try:
            return Pending(self._channel.unary_unary(method).future(request.SerializeToString(), timeout), response)
        except ValueError:  # grpcio: "Cannot invoke RPC on closed channel!"
            raise RpcFailed(grpc.StatusCode.CANCELLED, "grpc: the client connection is closing") from None

    def call(self, method: str, request: Message, response: type[R], caller: Caller | None = None, timeout: float | None = None) -> R:
        """One call, waited for as long as the caller and ``timeout`` (seconds; None for ever) allow. :raises RpcFailed: it failed."""
        pending = self.start(method, request, response, caller.remaining(timeout) if caller else timeout)
        if caller:
            caller.on_cancel(pending.cancel)
        return pending.result()

    def stream(self, method: str, request: Message, response: type[R]) -> Iterator[R]:
        """The messages of a server stream. Ends at its OK. :raises RpcFailed: it ended otherwise."""
        try:
            messages = self._channel.unary_stream(method)(request.SerializeToString())
        except ValueError:
            raise RpcFailed(grpc.StatusCode.CANCELLED, "grpc: the client connection is closing") from None
        try:
            for data in messages:
                yield _parse(response, data)
        except grpc.RpcError as error:
            raise _failure(error) from None
        finally:
            messages.cancel()

    def close(self) -> None:
        self._channel.close()


def dial(path: str, *, authority: str | None, timeout: float, caller: Caller) -> Connection:
    """Connects and waits for it, as grpc.DialContext does with WithBlock. :raises DialFailed: not within ``timeout`` seconds."""
    connection = Connection(_go_target(path), authority)
    try:
        connection.ready(timeout, caller)
    except DialFailed:
        connection.close()
        raise
    return connection


def _go_target(path: str) -> str:
    """What is left of a path that grpc-go parses as a URL: it loses all from ``?`` or ``#`` on, and ``%41`` becomes ``A``."""
    plain = path.split("#", 1)[0].split("?", 1)[0]
    for at, char in enumerate(plain):
        escape = plain[at : at + 3]
        if char == "%" and not (len(escape) == 3 and all(c in "0123456789abcdefABCDEF" for c in escape[1:])):
            raise DialFailed(f'parse "passthrough:///{path}": invalid URL escape "{escape}"')
    return urllib.parse.unquote(plain)


def _parse(response: type[R], data: bytes) -> R:
    try:
        return response.FromString(data)
    except DecodeError as error:
        raise RpcFailed(grpc.StatusCode.INTERNAL, f"grpc: failed to unmarshal the received message: {error}") from None


def _failure(error: Any) -> RpcFailed:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = "context deadline exceeded"
    too_large = re.search(r"Received message larger than max \(\d+ vs\. \d+\)", details)
    return RpcFailed(code, f"grpc: r{too_large[0][1:]}" if too_large else details)
