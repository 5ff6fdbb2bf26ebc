# SPDX-License-Identifier: Apache-2.0
"""The plugin watcher: registration by a socket below ``plugins_registry`` (pkg/kubelet/pluginmanager).

What is in the directory is the desired state, what has been registered the actual one, and a loop brings the two together. Each socket has at most
one operation under way, and after a failure is left alone for a time that doubles from 0.5 s to 122 s.
"""

from __future__ import annotations

import functools
import itertools
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass

from deviceplugin.kubelet import pluginregistration_v1_pb2 as pb
from deviceplugin.testing.clients import Clients
from deviceplugin.testing.events import EventLog
from deviceplugin.testing.inotify import Watch
from deviceplugin.testing.rpc import Caller, Connection, DialFailed, RpcFailed, dial
from deviceplugin.testing.settings import Settings

DIAL_TIMEOUT = 10.0
GET_INFO_TIMEOUT = 1.0
NOTIFY_TIMEOUT = 5.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 122.0

_SERVICE = "/pluginregistration.Registration/"


@dataclass(frozen=True, slots=True)
class _Registered:
    generation: int
    name: str


class Watcher:
    """The watcher of one kubelet process. Only plugins of type ``DevicePlugin`` have a handler."""

    def __init__(self, settings: Settings, events: EventLog, clients: Clients) -> None:
        self._settings = settings
        self._events = events
        self._clients = clients
        self._stop = threading.Event()
        self._caller = Caller()
        self._lock = threading.Lock()
        self._generations = itertools.count(1)
        self._desired: dict[str, int] = {}  # a new number each time the socket appears
        self._actual: dict[str, _Registered] = {}
        self._pending: dict[str, threading.Thread] = {}
        self._pauses: dict[str, tuple[float, float]] = {}  # when it failed, how long to leave it alone
        self._thread = threading.Thread(target=self._loop, name="fake-kubelet-watcher", daemon=True)

    def start(self) -> None:
        os.makedirs(self._settings.plugins_registry, mode=0o755, exist_ok=True)
        self._watch = Watch()
        self._walk(self._settings.plugins_registry)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._caller.cancel()
        self._thread.join(5)
        with self._lock:
            pending = tuple(self._pending.values())
        for operation in pending:
            operation.join(5)
        self._watch.close()

    def _loop(self) -> None:
        while not self._stop.is_set():
            for change in self._watch.read():
                if not change.created:
                    self._desired.pop(change.path, None)
                elif not os.path.basename(change.path).startswith("."):
                    self._found(change.path, change.directory)
            self._reconcile()
            self._stop.wait(self._settings.watch_interval)

    def _walk(self, directory: str) -> None:
        self._watch.add(directory)
        with os.scandir(directory) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory or not entry.name.startswith("."):
                    self._found(entry.path, is_directory)

    def _found(self, path: str, directory: bool) -> None:
        try:
            if directory:
                self._walk(path)
            elif stat.S_ISSOCK(os.lstat(path).st_mode):
                self._desired[path] = next(self._generations)
        except FileNotFoundError:
            return  # gone again; its deletion comes as a change of its own

    def _reconcile(self) -> None:
        """Unregisters what has gone or come anew, then registers what is not registered."""
        with self._lock:
            actual = dict(self._actual)
        for path, registered in actual.items():
            if self._desired.get(path) != registered.generation:
                self._run(path, functools.partial(self._unregister, path, registered.name))
        with self._lock:
            actual = dict(self._actual)
        for path, generation in self._desired.items():
            if path not in actual or actual[path].generation != generation:
                self._run(path, functools.partial(self._register, path, generation))

    def _run(self, path: str, operation: Callable[[], None]) -> None:
        with self._lock:
            failed_at, pause = self._pauses.get(path, (0.0, 0.0))
            if path in self._pending or (pause and self._settings.clock() - failed_at <= pause):
                return

            def work() -> None:
                error = ""
                try:
                    operation()
                except (RuntimeError, RpcFailed, DialFailed) as failure:
                    error = str(failure)
                with self._lock:
                    del self._pending[path]
                    if not error:
                        self._pauses.pop(path, None)
                        return
                    previous = self._pauses.get(path, (0.0, FIRST_PAUSE / 2))[1]
                    self._pauses[path] = self._settings.clock(), min(LONGEST_PAUSE, previous * 2)
                if not self._stop.is_set():
                    self._events.record("plugin registration failed", path=path, error=error)

            self._pending[path] = threading.Thread(target=work, name="fake-kubelet-plugin", daemon=True)
            self._pending[path].start()

    def _unregister(self, path: str, name: str) -> None:
        with self._lock:
            self._actual.pop(path, None)
        self._events.record("plugin gone", name, path=path)
        self._clients.disconnect(name)

    def _register(self, path: str, generation: int) -> None:
        """:raises RuntimeError: it failed, in the kubelet's words."""
        try:
            # Without an authority of its own, as here, the kubelet sends the socket's path, percent-encoded.
            connection = dial(path, authority=None, timeout=DIAL_TIMEOUT, caller=self._caller)
        except DialFailed as error:
            raise RuntimeError(f"RegisterPlugin error -- dial failed at socket {path}, err: failed to dial socket {path}, err: {error}") from None
        try:
            self._register_on(connection, path, generation)
        finally:
            connection.close()

    def _register_on(self, connection: Connection, path: str, generation: int) -> None:
        try:
            info = connection.call(_SERVICE + "GetInfo", pb.InfoRequest(), pb.PluginInfo, self._caller, GET_INFO_TIMEOUT)
        except RpcFailed as error:
            raise RuntimeError(f"RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {path}, err: {error}") from None
        self._events.record("plugin found", info.name, path=path, type=info.type, endpoint=info.endpoint)
        if info.type != "DevicePlugin":
            self._refuse(connection, f"RegisterPlugin error -- no handler registered for plugin type: {info.type} at socket {path}")
        try:
            self._clients.validate(info.name, list(info.supported_versions))
        except RuntimeError as error:
            self._refuse(connection, f"RegisterPlugin error -- plugin validation failed with err: {error}")
        with self._lock:
            self._actual[path] = _Registered(generation, info.name)
        try:
            self._clients.connect(info.name, info.endpoint or path, self._caller)
        except RuntimeError as error:
            with self._lock:
                self._actual.pop(path, None)
            self._refuse(connection, f"RegisterPlugin error -- plugin registration failed with err: {error}")
        try:
            self._notify(connection, True, "")
        except RpcFailed as error:
            with self._lock:
                self._actual.pop(path, None)
            self._clients.disconnect(info.name)
            raise RuntimeError(f"RegisterPlugin error -- failed to send registration status at socket {path}, err: : {error}") from None

    def _refuse(self, connection: Connection, text: str) -> None:
        """Tells the plugin. :raises RuntimeError: always, with the text."""
        try:
            self._notify(connection, False, text)
        except RpcFailed as error:
            raise RuntimeError(f"RegisterPlugin error -- failed to send error, err: {text}: {error}") from None
        raise RuntimeError(text)

    def _notify(self, connection: Connection, registered: bool, error: str) -> None:
        status = pb.RegistrationStatus(plugin_registered=registered, error=error)
        connection.call(_SERVICE + "NotifyRegistrationStatus", status, pb.RegistrationStatusResponse, self._caller, NOTIFY_TIMEOUT)
