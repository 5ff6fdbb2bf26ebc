# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: from its settings to its exit status, with signals, reload and the status server."""

from __future__ import annotations

import gc
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
from deviceplugin._native import memory
from deviceplugin.config import ConfigError
from deviceplugin.configfile import Configuration
from deviceplugin.daemon import Daemon, plan_for
from deviceplugin.kubelet.paths import Paths, identify
from deviceplugin.model import Health, Host
from deviceplugin.observe import logging as formats
from deviceplugin.observe.configwatch import ConfigWatch
from deviceplugin.observe.words import count
from deviceplugin.plugin import Plugin
from deviceplugin.service import Role
from deviceplugin.signals import Signals
from deviceplugin.source import is_pipe

if TYPE_CHECKING:
    from deviceplugin.observe.http import StatusServer
    from deviceplugin.observe.kubeevents import KubeEvents

log = logging.getLogger(__name__)

EX_LOST = 75
"""Exit status when the device-plugins directory is dead in this container's mounts: only a new container sees the new one (sysexits: try again)."""

STOP_LIMIT = 1.9
"""Seconds from SIGTERM to the end of the process, whatever hangs."""

FIRST_LOOK = 1.0
"""Seconds that the status server waits for the first look at the hardware."""

HEAD_START = 0.2
"""Seconds that the registration, which is under way by then, has for itself: what the status server imports would slow it down."""


class Orders:
    """What the process is told by signals and by its own threads, in order, and the end of it if an order to stop is not carried out in time."""

    _LOST = 254

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._over = threading.Event()
        self._signals = Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._told)

    def __enter__(self) -> Orders:
        self._signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._signals.__exit__(*error)

    def next(self) -> tuple[str, int]:
        """Waits for an order: ``reload``, ``changed`` (reload if it matters), or ``stop`` with the exit status."""
        return self._orders.get()

    def changed(self) -> None:
        """The configuration file is not what it was."""
        self._orders.put(("changed", 0))

    def lost(self) -> None:
        """The device-plugins directory is dead."""
        if not self._over.is_set():
            self._signals.tell(self._LOST)

    def _told(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._orders.put(("reload", 0))
            return
        status = EX_LOST if number == self._LOST else 0
        self._orders.put(("stop", status))
        if not self._over.wait(STOP_LIMIT):
            # No lock may be taken here that whatever hangs could hold, the log's among them.
            names = ", ".join(sorted(thread.name for thread in threading.enumerate()))
            _last_words(f"stopping takes too long; leaving now. Threads: {names}")
            os._exit(status)


class Process:
    """One run of the daemon. ``read`` gives the configuration anew each time it is called; it raises ConfigError."""

    def __init__(self, read: Callable[[], Configuration], root: str, classes: Mapping[str, type[Plugin]], source: str = "") -> None:
        """``source`` is the file that the settings come from; empty when there is nothing to read again."""
        self._read = read
        self._root = root
        self._classes = classes
        self._source = source
        self._server: StatusServer | None = None
        self._teller: KubeEvents | None = None
        self._server_lock = threading.Lock()
        self._stopping = False

    def run(self) -> int:
        """Serves until told to stop. Returns the exit status. Raises ConfigError before anything has started."""
        memory.one_arena()
        configuration = self._read()
        settings = configuration.settings
        host = Host(self._root, settings.node_name or os.uname().nodename)
        formats.setup(settings.log_format, settings.log_level)
        plan = plan_for(configuration, host, self._classes)
        names = ", ".join(one.settings.label for one in plan.plugins) or "none for this node"
        log.info("deviceplugin %s, pid %d, plugins: %s (%s)", deviceplugin.__version__, os.getpid(), names, _origin(configuration))
        os.umask(0o077)
        threading.excepthook = _thread_died
        with Orders() as orders:
            try:
                daemon = Daemon(plan, Paths.below(self._root), host, on_lost=lambda directory: self._lost(orders, directory))
            except OSError as error:
                log.error("cannot start: %s", error)
                return 1
            return self._serve(daemon, orders)

    def _serve(self, daemon: Daemon, orders: Orders) -> int:
        self._tell(daemon)
        daemon.start()
        threading.Thread(target=self._settle_down, args=(daemon,), name="introduction", daemon=True).start()
        # What came through a pipe cannot be read again.
        watch = ConfigWatch(daemon.plan.configuration.files, orders.changed) if self._source and not is_pipe(self._source) else None
        if watch:
            watch.start()
        while (order := orders.next())[0] != "stop":
            self._reload(daemon, told=order[0] == "reload")
            if watch and not daemon.config_error:
                watch.follow(daemon.plan.configuration.files)
        status = order[1]
        began = time.monotonic()
        log.info("stopping")
        if watch:
            watch.stop()
        if self._teller:
            self._teller.stop()
        with self._server_lock:
            self._stopping = True
            server = self._server
        ending = threading.Thread(target=server.stop if server else _nothing, name="stop-status", daemon=True)
        ending.start()
        daemon.stop()
        ending.join(max(0.0, began + STOP_LIMIT - 0.3 - time.monotonic()))
        _leave(status, began)
        return status

    def _tell(self, daemon: Daemon) -> None:
        """Begins or ends telling the cluster of what happens, as the configuration says."""
        wanted = daemon.plan.settings.kubernetes_events
        if wanted and self._teller is None:
            from deviceplugin.observe.kubeevents import KubeEvents  # it brings an HTTP client and TLS

            self._teller = KubeEvents(daemon.host.node_name)
            daemon.on_transitions = self._teller.transitions
            self._teller.start()
        elif not wanted and self._teller is not None:
            daemon.on_transitions = _nothing
            self._teller.stop()
            self._teller = None

    def _lost(self, orders: Orders, directory: str) -> None:
        log.error("%s was removed on the host and lives on in a mount of this container; only a new container sees the new one: leaving", directory)
        orders.lost()

    def _settle_down(self, daemon: Daemon) -> None:
        """Off the path to the registration: what can wait."""
        try:
            self._introduce(daemon)
        finally:
            # What is there by now stays for good. Set aside, it no longer makes each full collection 10 ms long; changes of health wait for those.
            gc.enable()
            gc.collect()
            gc.freeze()
            memory.trim()

    def _introduce(self, daemon: Daemon) -> None:
        """Says what was found, then starts the status server."""
        complete = daemon.wait_first_scan(FIRST_LOOK)
        for name, service in daemon.services.items():
            counts = service.cell.get().counts()
            total, healthy = sum(counts.values()), counts[Health.HEALTHY]
            log.info("%s: %s, %s", name, count(total, "device"), "all healthy" if healthy == total else f"{healthy} healthy")
        for label, scanner in daemon.scanners.items():
            if not scanner.report.error and scanner.report.succeeded_at and not any(one.rows for one in scanner.inventory.snapshots.values()):
                left_out = len(scanner.inventory.skipped)
                why = f"; {left_out} left out, `deviceplugin devices` says why" if left_out else ""
                log.info("plugin %s: no devices on this node%s", label, why)
        if not complete:
            log.info("some plugins are still looking at their hardware")
        if identify(daemon.paths.kubelet_socket) is None:
            log.info("no kubelet at %s yet: waiting for it", daemon.paths.kubelet_socket)
        elif any(service.role is Role.ACTIVE for service in daemon.services.values()):
            time.sleep(HEAD_START)
        from deviceplugin.observe.http import StatusServer

        with self._server_lock:
            if not self._stopping:
                self._server = StatusServer(daemon)
                self._server.start()

    def _reload(self, daemon: Daemon, *, told: bool) -> None:
        """All of the new settings or none of them. Unless ``told`` to, it does nothing and says nothing where the outcome is as before."""
        if not self._source:
            log.warning("SIGHUP: there is no configuration file to read again")
            return
        try:
            plan = plan_for(self._read(), daemon.host, self._classes)
        except ConfigError as error:
            if told or str(error) != daemon.config_error:
                daemon.tally.count("config_reloads", result="refused")
                log.error("%s; nothing was changed", error)
                if self._teller:
                    self._teller.refused(str(error))
            daemon.config_error = str(error)
            return
        if not told and not daemon.config_error and plan.configuration == daemon.plan.configuration:
            return
        settings = plan.settings
        formats.setup(settings.log_format, settings.log_level)
        if settings.node_name != daemon.plan.settings.node_name:
            log.warning("nodeName: a change takes effect at the next start")
        daemon.apply(plan)
        self._tell(daemon)
        with self._server_lock:
            if self._server is not None:
                self._server.listen(settings.listen)
        daemon.tally.count("config_reloads", result="applied")
        log.info("%s: applied", _origin(plan.configuration))


def _origin(configuration: Configuration) -> str:
    variant = f", {configuration.variant!r} of its nodes" if configuration.variant else ""
    return f"{configuration.source}{variant}" if configuration.source else "from the command line"


def _leave(status: int, began: float) -> None:
    """Lets the interpreter end by itself, unless a thread that it would wait for does not."""
    for thread in _lingering():
        thread.join(max(0.0, began + STOP_LIMIT - 0.2 - time.monotonic()))
    if lingering := _lingering():
        log.warning("leaving without waiting for threads that hang: %s", ", ".join(sorted(thread.name for thread in lingering)))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    log.info("stopped after %.0f ms", (time.monotonic() - began) * 1000)


def _lingering() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


def _nothing(*_arguments: object) -> None:
    """Nobody is there for it."""


def _thread_died(died: threading.ExceptHookArgs) -> None:
    """In the log's own format. What cannot do without the thread is shown by /healthz."""
    if died.exc_value is not None:
        where = died.thread.name if died.thread else "?"
        log.critical("thread %s ended: %r", where, died.exc_value, exc_info=(died.exc_type, died.exc_value, died.exc_traceback))


def _last_words(text: str) -> None:
    formatter = next((one.formatter for one in logging.getLogger().handlers if getattr(one, "deviceplugin", False)), None) or formats.TextFormatter()
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
    # A reader that stopped reading must not keep us either.
    if select.select([], [2], [], 0)[1]:
        os.write(2, (formatter.format(record) + "\n").encode())
