# SPDX-License-Identifier: Apache-2.0
"""One advertised resource: its lock, its handlers and its registration."""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections.abc import Callable

from deviceplugin.cell import Cell
from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet.handlers import Handlers
from deviceplugin.kubelet.lock import LockError, Owner, ResourceLock
from deviceplugin.kubelet.paths import Paths
from deviceplugin.kubelet.registration import Registrar
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

LOCK_RETRY = 10.0


class Role(enum.Enum):
    """What this process is for a resource."""

    ACTIVE = "active"
    STANDBY = "standby"
    """Ready, and waiting for the instance that holds the lock to go."""
    BLOCKED = "blocked"
    """The lock itself cannot be used."""


class Service:
    """Serves one resource as soon as no other instance on the node does."""

    def __init__(
        self, snapshot: Snapshot, paths: Paths, tally: Tally, *, policy: Callable[[], str], watcher: bool, on_change: Callable[[], None]
    ) -> None:
        self.resource = snapshot.resource
        self.role = Role.STANDBY
        self.error = ""
        self.watcher = watcher
        self.cell = Cell(snapshot)
        self.lock = ResourceLock(paths.locks, self.resource)
        self.registrar = Registrar(Handlers(self.resource, self.cell, tally, policy), paths, tally, watcher=watcher)
        self._on_change = on_change
        self._stopping = threading.Event()

    def start(self) -> None:
        """Takes the lock and registers; or waits for it on another thread."""
        try:
            self.lock.acquire(Owner(os.getpid(), os.environ.get("HOSTNAME", ""), time.time()), self._active, self._standby)
        except LockError as error:
            self.role, self.error = Role.BLOCKED, str(error)
            log.error("%s; trying again every %g s", error, LOCK_RETRY)
            threading.Thread(target=self._retry, name=f"lock-{self.resource}", daemon=True).start()

    def stop(self) -> None:
        """Ends the streams, then frees the lock: the standby must not register before our streams are gone."""
        self._stopping.set()
        self.registrar.stop()
        self.lock.release()

    def update(self, snapshot: Snapshot) -> None:
        if snapshot is not self.cell.get():
            self.cell.set(snapshot)

    def _active(self) -> None:
        waited = self.role is Role.STANDBY and self.error
        self.role, self.error = Role.ACTIVE, ""
        self.registrar.start()
        if waited:
            log.info("%s: the other instance is gone; this one takes over", self.resource)
        self._on_change()

    def _standby(self) -> None:
        owner = self.lock.owner()
        who = f"pid {owner.pid}" + (f" on {owner.host}" if owner.host else "") if owner else "another instance"
        self.role, self.error = Role.STANDBY, f"waits for {who}"
        self.registrar.prepare()
        log.info("%s: %s serves it; ready to take over", self.resource, who)
        self._on_change()

    def _retry(self) -> None:
        while not self._stopping.wait(LOCK_RETRY):
            try:
                os.close(self.lock.open())
            except LockError as error:
                self.error = str(error)
                continue
            self.start()
            return
