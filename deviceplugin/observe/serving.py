# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: from its settings to its exit status, with signals, reload and the status server."""

from __future__ import annotations

import logging
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import deviceplugin
from deviceplugin.config import ConfigError, Settings
from deviceplugin.daemon import Daemon, Plan, make_plan
from deviceplugin.kubelet.paths import Paths, identify
from deviceplugin.model import Health, Host
from deviceplugin.observe import logging as formats
from deviceplugin.observe.words import count
from deviceplugin.plugin import Plugin

if TYPE_CHECKING:
    from deviceplugin.observe.http import StatusServer

log = logging.getLogger(__name__)

EX_LOST = 75
"""Exit status when the device-plugins directory is dead in this container's mounts: only a new container sees the new one (sysexits: try again)."""

STOP_LIMIT = 1.9
"""Seconds from SIGTERM to the end of the process, whatever hangs."""

FIRST_LOOK = 1.0
"""Seconds that the status server waits for the first registration: what it imports would slow that down."""


class Process:
    """One run of the daemon. ``read`` gives the settings anew each time it is called; it raises ConfigError."""

    def __init__(self, read: Callable[[], Settings], root: str, classes: Mapping[str, type[Plugin]], source: str = "") -> None:
        """``source`` is the file that the settings come from; empty when there is nothing to read again."""
        self._read = read
        self._root = root
        self._classes = classes
        self._source = source
        # Written by signal handlers: SimpleQueue.put is reentrant, a Condition or a Thread.start there could deadlock.
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._alarm: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._server: StatusServer | None = None
        self._server_lock = threading.Lock()
        self._stopping = False

    def run(self) -> int:
        """Serves until told to stop. Returns the exit status. Raises ConfigError before anything has started."""
        settings = self._read()
        host = Host(self._root, settings.node_name or os.uname().nodename)
        formats.setup(settings.log_format, settings.log_level)
        plan = make_plan(settings, host, self._classes)
        if not plan.plugins:
            raise ConfigError(f"{self._source or 'the command line'}: names no plugin: there is nothing to serve")
        names = ", ".join(one.settings.label for one in plan.plugins)
        log.info("deviceplugin %s, pid %d, plugins: %s (%s)", deviceplugin.__version__, os.getpid(), names, self._source or "from the command line")
        os.umask(0o077)
        try:
            daemon = Daemon(plan, Paths.below(self._root), host, on_lost=self._lost)
        except OSError as error:
            log.error("cannot start: %s", error)
            return 1
        return self._serve(daemon)

    def _serve(self, daemon: Daemon) -> int:
        handled = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        threading.Thread(target=self._watchdog, name="watchdog", daemon=True).start()
        try:
            daemon.start()
            threading.Thread(target=self._introduce, args=(daemon,), name="introduction", daemon=True).start()
            while (order := self._orders.get()) == "reload":
                self._reload(daemon)
            status = EX_LOST if order == "lost" else 0
            began = time.monotonic()
            if not status:
                log.info("stopping")
            with self._server_lock:
                self._stopping = True
                server = self._server
            if server is not None:
                server.stop()
            daemon.stop()
            self._leave(status, began)
            return status
        finally:
            self._alarm.put(None)
            for number, handler in handled.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._orders.put("reload")
            return
        self._alarm.put(0)
        self._orders.put("stop")

    def _lost(self, directory: str) -> None:
        log.error(
            "%s was removed on the host and lives on in a mount of this container: only a new container can see the new one; leaving", directory
        )
        self._alarm.put(EX_LOST)
        self._orders.put("lost")

    def _watchdog(self) -> None:
        """Ends the process if an orderly end takes too long. It takes no lock that whatever hangs could hold, the log's among them."""
        status = self._alarm.get()
        if status is None:
            return
        deadline = time.monotonic() + STOP_LIMIT
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._alarm.get(timeout=left) is None:
                    return
            except queue.Empty:
                break
        _last_words("stopping takes too long; leaving now. Threads: " + ", ".join(sorted(thread.name for thread in threading.enumerate())))
        os._exit(status)

    def _leave(self, status: int, began: float) -> None:
        """Lets the interpreter end by itself, unless a thread that it would wait for does not."""
        for thread in _lingering():
            thread.join(max(0.0, began + STOP_LIMIT - 0.2 - time.monotonic()))
        if lingering := _lingering():
            log.warning("leaving without waiting for threads that hang: %s", ", ".join(sorted(thread.name for thread in lingering)))
            logging.shutdown()
            sys.stdout.flush()
            os._exit(status)
        log.info("stopped after %.0f ms", (time.monotonic() - began) * 1000)

    def _introduce(self, daemon: Daemon) -> None:
        """Off the path to the registration: says what was found, then starts the status server."""
        complete = daemon.wait_first_scan(FIRST_LOOK)
        for name, service in daemon.services.items():
            counts = service.cell.get().counts()
            total, healthy = sum(counts.values()), counts[Health.HEALTHY]
            log.info("%s: %s, %s", name, count(total, "device"), "all healthy" if healthy == total else f"{healthy} healthy")
        for label, scanner in daemon.scanners.items():
            if not scanner.report.error and scanner.report.succeeded_at and not any(one.rows for one in scanner.inventory.snapshots.values()):
                log.info("plugin %s: no devices on this node%s", label, _skips(len(scanner.inventory.skipped)))
        if not complete:
            log.info("some plugins are still looking at their hardware")
        if identify(daemon.paths.kubelet_socket) is None:
            log.info("no kubelet at %s yet: waiting for it", daemon.paths.kubelet_socket)
        from deviceplugin.observe.http import StatusServer

        with self._server_lock:
            if not self._stopping:
                self._server = StatusServer(daemon)
                self._server.start()

    def _reload(self, daemon: Daemon) -> None:
        """All of the new settings or none of them."""
        if not self._source:
            log.warning("SIGHUP: there is no configuration file to read again")
            return
        try:
            settings = self._read()
            plan = make_plan(settings, daemon.host, self._classes)
            if not plan.plugins:
                raise ConfigError(f"{self._source}: names no plugin")
        except ConfigError as error:
            daemon.config_error = str(error)
            log.error("%s; nothing was changed", error)
            return
        formats.setup(settings.log_format, settings.log_level)
        _say_ignored(daemon.plan, plan)
        daemon.apply(plan)
        with self._server_lock:
            if self._server is not None:
                self._server.listen(settings.listen)
        log.info("%s: applied", self._source)


def _say_ignored(old: Plan, new: Plan) -> None:
    if old.settings.node_name != new.settings.node_name:
        log.warning("nodeName: a change takes effect at the next start")


def _skips(number: int) -> str:
    return f"; {number} left out, see `deviceplugin devices`" if number else ""


def _lingering() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


def _last_words(text: str) -> None:
    formatter = next((one.formatter for one in logging.getLogger().handlers if getattr(one, "deviceplugin", False)), None) or formats.TextFormatter()
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
    # A reader that stopped reading must not keep us either.
    if select.select([], [2], [], 0)[1]:
        os.write(2, (formatter.format(record) + "\n").encode())
