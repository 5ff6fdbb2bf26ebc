# SPDX-License-Identifier: Apache-2.0
"""One gRPC server on one socket, for one resource: the only file that knows the server side of gRPC.

An endpoint is never restarted and its path never used again: grpcio removes whatever is at the path when it binds and once more when it is torn down,
so a successor on the same path would lose its socket (https://github.com/grpc/grpc/issues/17122).
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet import pluginregistration_v1_pb2 as reg
from deviceplugin.kubelet.handlers import Handlers, Refused
from deviceplugin.kubelet.paths import NAME_MAX, SOCKET_NAME, SUN_PATH_MAX, SocketId, abandoned, identify, listening, socket_stem
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

WORKERS = 48
"""Threads of one server, made when needed. A stream holds one for its whole life, so streams get :data:`MAX_STREAMS` of them and calls keep the rest:
with fewer, leaked streams could starve Allocate, and with it the kubelet."""

MAX_STREAMS = 24

COALESCE = 0.1
"""Seconds between two lists on one stream. The first change goes out at once; each costs the kubelet a checkpoint written and synced to disk."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # No limit on the age or idleness of a connection: its end is final for the kubelet.
    ("grpc.max_connection_age_ms", 2**31 - 1),
    ("grpc.max_connection_idle_ms", 2**31 - 1),
    ("grpc.so_reuseport", 0),
)

_nonce = os.urandom(4).hex()
_numbers = itertools.count(1)


class EndpointError(Exception):
    """The socket cannot be served; the text says which and why."""


def _encode(message: Any) -> bytes:
    # The kubelet keeps the answer to Allocate: one question gives the same bytes each time. Maps would else be in another order in each process.
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def socket_name(resource: str, directory: str = "") -> str:
    """A name that no process ever used: in a container the process id is the same after every restart, hence the random part.

    It fits into ``directory``, with a dot before it too, unless that leaves no room for a name at all.
    """
    tail = f"-{_nonce}-{next(_numbers)}.sock"
    room = min(NAME_MAX, SUN_PATH_MAX - len(os.fsencode(directory)) - 1) - 1
    return socket_stem(resource, max(room - len(tail), 12)) + tail


def clear_leftovers(directory: str, resource: str) -> None:
    """Removes the sockets of instances that were killed. Only the holder of the resource's lock may call it. The kubelet does so in device-plugins
    when it starts, and never in plugins_registry, where its plugin watcher would dial them for ever.
    """
    try:
        for name in os.listdir(directory):
            match = SOCKET_NAME.fullmatch(name)
            path = os.path.join(directory, name)
            if match and match[1] == socket_stem(resource, len(match[1])) and abandoned(path):
                os.unlink(path)
    except OSError as error:
        log.debug("%s: sockets of dead instances stay in %s: %s", resource, directory, error.strerror)


class Endpoint:
    """A server bound and answering. ``on_change`` is called, from any thread, when a stream begins or ends or the plugin watcher reports."""

    def __init__(self, directory: str, handlers: Handlers, tally: Tally, on_change: Callable[[], None], *, publish: bool = False) -> None:
        """``publish`` is for the plugins_registry directory: the server is bound under a name the kubelet ignores and then renamed."""
        self.handlers = handlers
        self.name = socket_name(handlers.resource, directory)
        self.path = os.path.join(directory, self.name)
        self.streams_opened = 0
        self.notified: tuple[bool, str] | None = None
        self._bound_path = os.path.join(directory, f".{self.name}") if publish else self.path
        self._tally = tally
        self._on_change = on_change
        self._stopping = threading.Event()
        self._calm = threading.Condition()
        # By the event that is set when the call is over: the generation last sent, while a thread serves the stream; and the calls that are not over.
        self._streams: dict[threading.Event, int] = {}
        self._open: set[threading.Event] = set()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"rpc-{handlers.resource}")
        self._server = self._bind(directory, publish)
        self.identity = self._settle()

    def _bind(self, directory: str, publish: bool) -> grpc.Server:
        if len(os.fsencode(self._bound_path)) > SUN_PATH_MAX:
            raise EndpointError(f"{directory}: too long a path for a socket's name below it: {SUN_PATH_MAX} characters are all there may be")
        if not os.path.isdir(directory):
            raise EndpointError(f"{directory} is not there: the kubelet makes it when it starts; is it mounted?")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise EndpointError(f"no permission to make a socket in {directory} (uid {os.getuid()}): the kubelet's directories are root's")
        server = grpc.server(self._pool, options=_OPTIONS)
        server.add_generic_rpc_handlers(self._services(publish))
        try:
            bound = server.add_insecure_port(f"unix:{self._bound_path}")
        except RuntimeError as error:
            bound = 0
            log.debug("bind: %s", error)
        if not bound:
            # grpcio writes the reason to its own log only. The socket is not named: a text that is new each time would be logged each time.
            raise EndpointError(f"cannot bind a socket in {directory} (uid {os.getuid()})")
        os.chmod(self._bound_path, 0o600)
        server.start()
        return server

    def _settle(self) -> SocketId:
        # The kubelet dials back while it holds our Register call: it must find us answering.
        if not listening(self._bound_path):
            raise EndpointError(f"a socket was bound in {os.path.dirname(self.path)}, but nobody can connect to it")
        if self._bound_path != self.path:
            # A rename is what the plugin watcher sees as one complete new socket; names that begin with a dot it does not see.
            os.rename(self._bound_path, self.path)
        identity = identify(self.path)
        if identity is None:
            raise EndpointError(f"a socket in {os.path.dirname(self.path)} vanished while it was being made")
        return identity

    def rehearse(self, timeout: float = 2.0) -> None:
        """Calls the server once as the kubelet will. What Python and gRPC do at a first call takes milliseconds: a standby has them.

        Only before the socket is announced. Raises EndpointError.
        """
        with grpc.insecure_channel(f"unix:{self.path}", options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            options = channel.unary_unary("/v1beta1.DevicePlugin/GetDevicePluginOptions", request_serializer=_encode)
            lists = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch", request_serializer=_encode)
            try:
                options(pb.Empty(), timeout=timeout)
                stream = lists(pb.Empty(), timeout=timeout)
                next(stream)
                stream.cancel()
            except grpc.RpcError as error:
                raise EndpointError(f"{self.path}: does not answer as it should: {error.code().name}: {error.details()}") from error
        with self._calm:
            if not self._calm.wait_for(lambda: not self._streams, timeout):
                raise EndpointError(f"{self.path}: a stream that was cancelled does not end")
            self.streams_opened = 0

    @property
    def intact(self) -> bool:
        """Whether our socket is still the one at our path. The kubelet removes it when it starts; grpcio never notices."""
        return self.identity.same_file(identify(self.path))

    @property
    def streams(self) -> int:
        return len(self._streams)

    def lag(self) -> int:
        """How many generations the slowest stream is behind."""
        sent = list(self._streams.values())
        return max((self.handlers.snapshots.get().generation - one for one in sent), default=0)

    def stop(self, grace: float = 0.5) -> threading.Event:
        """Removes our socket, ends the streams and lets calls in flight finish, within ``grace`` seconds. Returns an event: all is done."""
        self._stopping.set()
        self.handlers.snapshots.wake()
        if self.intact:
            try:
                os.unlink(self.path)
            except OSError as error:  # a kubelet that starts removes it at this very moment too
                log.debug("%s: %s is not ours to remove: %s", self.handlers.resource, self.path, error.strerror)
        deadline = time.monotonic() + grace
        with self._calm:
            # The client reads the end of its streams before it is told to go away. The other way round we hang up when the last has ended, while
            # it may be answering; and a client on gRPC's core whose write fails takes its streams for broken, though their end lies there unread.
            self._calm.wait_for(lambda: not self._open, grace / 2)
        done: threading.Event = self._server.stop(max(0.0, deadline - time.monotonic()))
        # The pool may only go when no call can reach it any more.
        threading.Thread(target=self._reap, args=(done,), name="endpoint-reaper", daemon=True).start()
        return done

    def _reap(self, done: threading.Event) -> None:
        done.wait()
        self._pool.shutdown(wait=False)

    def _services(self, publish: bool) -> tuple[grpc.GenericRpcHandler, ...]:
        handlers = self.handlers
        plugin = grpc.method_handlers_generic_handler(
            "v1beta1.DevicePlugin",
            {
                "GetDevicePluginOptions": self._unary(pb.Empty, lambda _: handlers.options(), "GetDevicePluginOptions"),
                "GetPreferredAllocation": self._unary(pb.PreferredAllocationRequest, handlers.preferred, "GetPreferredAllocation"),
                "Allocate": self._unary(pb.AllocateRequest, handlers.allocate, "Allocate"),
                "PreStartContainer": self._unary(pb.PreStartContainerRequest, handlers.prestart, "PreStartContainer"),
                # The list is already encoded: it is made once for all streams.
                "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._stream, pb.Empty.FromString, None),
            },
        )
        if not publish:
            return (plugin,)
        watcher = grpc.method_handlers_generic_handler(
            "pluginregistration.Registration",
            {
                "GetInfo": self._unary(reg.InfoRequest, lambda _: self._info(), "GetInfo"),
                "NotifyRegistrationStatus": self._unary(reg.RegistrationStatus, self._notify, "NotifyRegistrationStatus"),
            },
        )
        return (plugin, watcher)

    def _unary(self, request: Any, function: Callable[[Any], Any], call: str) -> grpc.RpcMethodHandler:
        record = self._tally.timer("rpc_seconds", resource=self.handlers.resource, call=call)

        def handle(message: Any, context: grpc.ServicerContext) -> Any:
            began = time.monotonic()
            try:
                return function(message)
            except Refused as error:
                self._tally.count("rpc_failures", resource=self.handlers.resource, call=call, code=error.code)
                log.log(
                    logging.DEBUG if error.code == "UNIMPLEMENTED" else logging.WARNING, "%s: %s refused: %s", self.handlers.resource, call, error
                )
                context.abort(grpc.StatusCode[error.code], str(error))
            finally:
                record(time.monotonic() - began)

        return grpc.unary_unary_rpc_method_handler(handle, request.FromString, _encode)

    def _stream(self, _request: pb.Empty, context: grpc.ServicerContext) -> Iterator[bytes]:
        """The full list now and after each change, until the client goes or we stop.

        An older stream is never ended because a newer came: the kubelet would take it for the end of the newer one.
        """
        gone = threading.Event()
        with self._calm:
            if len(self._streams) >= MAX_STREAMS:
                log.error("%s: %d streams are open; a further one is refused", self.handlers.resource, MAX_STREAMS)
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} ListAndWatch streams are open")
            self._streams[gone] = 0
            self._open.add(gone)
            self.streams_opened += 1

        def ended() -> None:
            gone.set()
            with self._calm:
                self._open.discard(gone)
                self._calm.notify_all()
            self.handlers.snapshots.wake()

        # Called when the client has gone, and when our own end of the stream has been sent.
        if not context.add_callback(ended):
            ended()
        self._on_change()
        try:
            yield from self._lists(gone)
        finally:
            with self._calm:
                del self._streams[gone]
                self._calm.notify_all()
            self._on_change()

    def _lists(self, gone: threading.Event) -> Iterator[bytes]:
        cell = self.handlers.snapshots
        sent = 0

        def over() -> bool:
            return gone.is_set() or self._stopping.is_set()

        def news(snapshot: Snapshot) -> bool:
            return snapshot.generation != sent or over()

        while True:
            snapshot = cell.wait(news)
            if over():
                return
            first, sent = not sent, snapshot.generation
            self._tally.count("lists", resource=self.handlers.resource)
            yield snapshot.payload
            self._streams[gone] = sent
            if first:
                self._on_change()
            if self._stopping.wait(COALESCE):
                return

    def _info(self) -> reg.PluginInfo:
        # An empty endpoint is this very socket.
        return reg.PluginInfo(type="DevicePlugin", name=self.handlers.resource, endpoint="", supported_versions=["v1beta1"])

    def _notify(self, status: reg.RegistrationStatus) -> reg.RegistrationStatusResponse:
        self.notified = (status.plugin_registered, status.error)
        self._on_change()
        return reg.RegistrationStatusResponse()
