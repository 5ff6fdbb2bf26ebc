# SPDX-License-Identifier: Apache-2.0
"""Sees the kubelet come and go: what is created and removed in its directories, also when the directories themselves are."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from deviceplugin._native import inotify

log = logging.getLogger(__name__)

_MASK = inotify.CREATE | inotify.DELETE | inotify.MOVED_TO | inotify.MOVED_FROM | inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.ONLYDIR

RECHECK = 5.0
"""Seconds after which each directory is looked at without an event: one may have been lost, or the directory replaced by a mount."""

RETRY = 0.1
"""Seconds after which one is tried again that could not be watched: it may just have been replaced."""


class DirectoryWatch:
    """Calls ``on_event`` with the name of each thing that appeared or vanished in the directories, or "" when anything may have changed.

    A directory that is not there is awaited in the nearest one above it that is. ``on_lost`` is called when a directory is dead: removed, and still
    held at its path by a mount, so that a new one made on the host can never be seen here.
    """

    def __init__(self, directories: Sequence[str], on_event: Callable[[str], None], on_lost: Callable[[str], None]) -> None:
        self._directories = tuple(directories)
        self._on_event = on_event
        self._on_lost = on_lost
        self._inotify = inotify.Inotify()
        self._armed: dict[str, tuple[int, int, int]] = {}
        self._stopping = False
        self._arm()
        self._thread = threading.Thread(target=self._run, name="watch-kubelet", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._inotify.closed:
            return
        self._stopping = True
        self._inotify.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout=2.0)
        self._inotify.close()

    def _run(self) -> None:
        while not self._stopping:
            events = self._inotify.read(RECHECK if len(self._armed) == len(self._directories) else RETRY)
            if self._stopping or events is None:
                return
            # The kernel ended these watches. A new directory may have the inode number of the old one, so that nothing else would tell.
            ended = {wd for wd, mask, _, _ in events if mask & inotify.IGNORED}
            self._armed = {directory: armed for directory, armed in self._armed.items() if armed[0] not in ended}
            changed = self._arm()
            watched = {wd for wd, _, _ in self._armed.values()}
            names = {name for wd, mask, _, name in events if wd in watched and name and not mask & inotify.IGNORED}
            lost_events = any(mask & inotify.Q_OVERFLOW for _, mask, _, _ in events)
            if changed or lost_events:
                self._on_event("")
            else:
                for name in names:
                    self._on_event(name)

    def _arm(self) -> bool:
        """Watches what is not watched yet. Whether anything had to be."""
        changed = False
        while self._arm_nearest():  # again: what is awaited may have been made before the watch above it was
            changed = True
        return changed

    def _arm_nearest(self) -> bool:
        changed = False
        for directory in self._directories:
            target = directory
            while not os.path.isdir(target) and target != os.path.dirname(target):
                target = os.path.dirname(target)
            try:
                found = os.stat(target)
                if self._armed.get(directory, (0, 0, 0))[1:] == (found.st_dev, found.st_ino) and found.st_nlink:
                    continue
                if not found.st_nlink:
                    self._on_lost(directory)
                    continue
                wd = self._inotify.add(target, _MASK)
            except OSError as error:
                log.debug("cannot watch %s: %s", target, error)
                self._armed.pop(directory, None)
                continue
            self._armed[directory] = (wd, found.st_dev, found.st_ino)
            changed = True
        return changed
