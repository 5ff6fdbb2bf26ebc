# SPDX-License-Identifier: Apache-2.0
"""Notices that configuration files are not what they were: by inotify at once, and by a look at what is in them every half minute.

A ConfigMap mount is a directory in which ``..data`` is a link to a directory of its own for each version; the kubelet renames a new link over it
(AtomicWriter, pkg/volume/util/atomic_writer.go). So what has to be watched is every directory and link on the way to a file, not the file alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from deviceplugin._native import inotify
from deviceplugin.config import ConfigError
from deviceplugin.source import fingerprint, read_bytes

log = logging.getLogger(__name__)

LOOK = 30.0
"""Seconds between two looks at the files without an event: some file systems tell of none."""

SETTLE = 0.5
"""Seconds without a further change after which a file counts as written."""

PATIENCE = 10.0
"""Seconds after which one that keeps changing is taken as it is."""

_ON_THE_WAY = (
    inotify.CREATE
    | inotify.DELETE
    | inotify.MOVED_TO
    | inotify.MOVED_FROM
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
    | inotify.ATTRIB
    | inotify.ONLYDIR
)
_FILE = inotify.MODIFY | inotify.CLOSE_WRITE | inotify.ATTRIB | inotify.DELETE_SELF | inotify.MOVE_SELF

_MAX_LINKS = 40
"""As the kernel follows at most (MAXSYMLINKS, include/linux/namei.h)."""


class ConfigWatch:
    """Calls ``on_change`` once what is in one of the files has changed and settled. ``files`` are those read, with their fingerprints then."""

    def __init__(
        self, files: Mapping[str, str], on_change: Callable[[], None], *, look: float = LOOK, settle: float = SETTLE, patience: float = PATIENCE
    ) -> None:
        self._seen = dict(files)
        self._on_change = on_change
        self._look, self._settle, self._patience = look, settle, patience
        self._lock = threading.Lock()
        self._other_files = False
        self._stopping = threading.Event()
        self._wds: dict[int, set[str]] = {}
        self._inotify: inotify.Inotify | None = None
        self._thread = threading.Thread(target=self._run, name="watch-config", daemon=True)

    def start(self) -> None:
        try:
            self._inotify = inotify.Inotify()
        except OSError as error:
            log.warning("configuration files are only looked at every %g s: %s", self._look, error.strerror)
        self._thread.start()

    def follow(self, files: Mapping[str, str]) -> None:
        """These are the files from now on, and what was in them when they were read."""
        with self._lock:
            self._seen = dict(files)
            self._other_files = True
        if self._inotify is not None:
            self._inotify.wake()

    def stop(self) -> None:
        self._stopping.set()
        if self._inotify is not None:
            self._inotify.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._arm()  # before the look: what happens after it will be told
            if self._changed():
                now = self._settled()
                with self._lock:
                    same_files = now.keys() == self._seen.keys()
                    changed = same_files and now != self._seen
                    if changed:
                        self._seen = now
                if not same_files:
                    continue
                if changed and not self._stopping.is_set():
                    self._on_change()
            self._wait(self._look)

    def _changed(self) -> bool:
        with self._lock:
            seen = self._seen
        return _fingerprints(seen) != seen

    def _settled(self) -> dict[str, str]:
        """What is in the files once nothing has happened to them for a while."""
        end = time.monotonic() + self._patience
        with self._lock:
            last = _fingerprints(self._seen)
        while not self._stopping.is_set():
            quiet = not self._wait(self._settle)
            now = _fingerprints(last)
            if (quiet and now == last) or time.monotonic() > end:
                return now
            last = now
        return last

    def _wait(self, seconds: float) -> bool:
        """Whether something happened to one of the files, or to the way to one, within so many seconds."""
        if self._inotify is None:
            self._stopping.wait(seconds)
            return False
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            events = self._inotify.read(left)
            if events is None:
                return False
            with self._lock:
                other_files, self._other_files = self._other_files, False
            touched = any(mask & inotify.Q_OVERFLOW or name in self._wds.get(wd, ()) for wd, mask, _, name in events)
            if touched or other_files:
                self._arm()
                return touched
        return False

    def _arm(self) -> None:
        """Watches the files and the way to each, as it leads now."""
        if self._inotify is None:
            return
        with self._lock:
            files = list(self._seen)
        wds: dict[int, set[str]] = {}
        for directory, names in ways_to(files).items():
            self._add(wds, directory, _ON_THE_WAY, {*names, ""})
        for file in files:
            self._add(wds, file, _FILE, {""})
        for wd in self._wds.keys() - wds.keys():
            try:
                self._inotify.remove(wd)
            except (OSError, ValueError) as error:  # it went with its inode, or all is over
                log.debug("%s", error)
        self._wds = wds

    def _add(self, wds: dict[int, set[str]], path: str, mask: int, names: set[str]) -> None:
        assert self._inotify is not None
        try:
            wds.setdefault(self._inotify.add(path, mask), set()).update(names)
        except (OSError, ValueError) as error:
            log.debug("%s: %s", path, error)


def ways_to(files: Sequence[str]) -> dict[str, set[str]]:
    """Each directory that leads to one of the files, through links too, and which of its entries do."""
    found: dict[str, set[str]] = {}
    for file in files:
        at, links = "/", 0
        steps = deque(os.path.abspath(file).split("/"))
        while steps:
            step = steps.popleft()
            if step in ("", "."):
                continue
            if step == "..":
                at = os.path.dirname(at)
                continue
            found.setdefault(at, set()).add(step)
            entry = os.path.join(at, step)
            try:
                target = os.readlink(entry)
            except OSError:  # not a link, or not there
                at = entry
                continue
            links += 1
            if links > _MAX_LINKS:
                break
            steps.extendleft(reversed(target.split("/")))
            at = "/" if target.startswith("/") else at
    return found


def _fingerprints(files: Mapping[str, str]) -> dict[str, str]:
    """What is in each file now; for one that cannot be read, why."""
    return {file: _fingerprint(file) for file in files}


def _fingerprint(file: str) -> str:
    try:
        return fingerprint(read_bytes(file))
    except ConfigError as error:
        return str(error) if os.path.lexists(file) else fingerprint(None)
