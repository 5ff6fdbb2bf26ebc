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
from deviceplugin.kubelet.handover import Heir, offer
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


def _ourselves() -> Owner:
    return Owner(os.getpid(), os.environ.get("HOSTNAME", ""), time.time())


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
        self._locks = paths.locks
        self.registrar = Registrar(Handlers(self.resource, self.cell, tally, policy, on_change), paths, tally, watcher=watcher)
        self._heir = Heir(paths.locks, self.resource, self._inherit)
        self._on_change = on_change
        self._stopping = threading.Event()

    def start(self) -> None:
        """Takes the lock and registers; or waits for it on another thread."""
        try:
            self.lock.acquire(_ourselves(), self._active, self._standby)
        except LockError as error:
            self.role, self.error = Role.BLOCKED, str(error)
            log.error("%s; trying again every %g s", error, LOCK_RETRY)
            threading.Thread(target=self._retry, name=f"lock-{self.resource}", daemon=True).start()

    def stop(self, hand_over: bool = False) -> None:
        """Ends the streams, then frees the lock: a standby must not register before our streams are gone, unless we hand over to it."""
        self._stopping.set()
        self._heir.close()
        if hand_over and not self.watcher and self.role is Role.ACTIVE and offer(self._locks, self.resource, self.lock.descriptor):
            log.info("%s: handed over to the standby", self.resource)
        self.registrar.stop()
        self.lock.release()

    def update(self, snapshot: Snapshot) -> None:
        if snapshot is not self.cell.get():
            self.cell.set(snapshot)

    def _active(self) -> None:
        waited = self.role is Role.STANDBY and self.error
        self.role, self.error = Role.ACTIVE, ""
        self._heir.close()
        self.registrar.start()
        if waited:
            log.info("%s: the other instance is gone; this one takes over", self.resource)
        self._on_change()

    def _standby(self) -> None:
        owner = self.lock.owner()
        who = f"pid {owner.pid}" + (f" on {owner.host}" if owner.host else "") if owner else "another instance"
        self.role, self.error = Role.STANDBY, f"waits for {who}"
        self.registrar.prepare()
        if not self.watcher:
            self._heir.listen()
        log.info("%s: %s serves it; ready to take over", self.resource, who)
        self._on_change()

    def _inherit(self, lock: int) -> bool:
        """The instance that serves asks us to take over while it still does. Whether the kubelet reads from us."""
        if self._stopping.is_set():
            os.close(lock)
            return False
        self.lock.adopt(lock, _ourselves())
        self.role, self.error = Role.ACTIVE, ""
        taken = self.registrar.start_beside()
        log.info("%s: the other instance goes; this one took over %s", self.resource, "while it still served" if taken else "after it")
        self._heir.close()
        self._on_change()
        return taken

    def _retry(self) -> None:
        while not self._stopping.wait(LOCK_RETRY):
            try:
                os.close(self.lock.open())
            except LockError as error:
                self.error = str(error)
                continue
            self.start()
            return
