# SPDX-License-Identifier: Apache-2.0
"""Changes to directories and files, through inotify."""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import os
from collections.abc import Iterable, Iterator

from msgspec import Struct

from deviceplugin._native import inotify

log = logging.getLogger("deviceplugin.events")

_SELF = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED
_MASK = (
    inotify.CREATE
    | inotify.DELETE
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.ATTRIB
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
    | inotify.ONLYDIR
)


class Kind(enum.Enum):
    """What became of a directory entry. Entries that are moved in are created, those moved out are deleted."""

    CREATED = "created"
    DELETED = "deleted"
    CHANGED = "changed"
    """Its mode, owner, times or link count did."""
    LOST = "lost"
    """Anything may have happened: the kernel dropped events, or the directory itself came, went or was replaced. Look at all of it."""


class Change(Struct, frozen=True):
    """Something happened to the entry ``name`` of ``directory``, or to the directory itself where the name is empty."""

    directory: str
    name: str
    kind: Kind


class Watch:
    """Directories and files, whether or not they are there yet.

    Of a directory every entry is watched, but nothing below; of anything else its coming, going and attributes. Every directory on the way to a path
    is watched as well for the entry that leads on, so that a path may vanish and return, or have a parent renamed, and is still watched. A new mount
    over one of them goes unseen. One thread waits; any may call :meth:`wake` and :meth:`close`. Raises OSError when a limit of the kernel is reached.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._targets = tuple(dict.fromkeys(os.path.abspath(path) for path in paths))
        self._leads: dict[str, set[str]] = {target: set() for target in self._targets}
        for target in self._targets:
            parent, name = os.path.split(target)
            while name:
                self._leads.setdefault(parent, set()).add(name)
                parent, name = os.path.split(parent)
        self._directories = sorted(self._leads)  # every directory comes before those below it
        self._wds: dict[str, int] = {}
        self._refused: set[str] = set()
        self._inotify = inotify.Inotify()
        try:
            self._arm()
        except BaseException:
            self._inotify.close()
            raise

    def __iter__(self) -> Iterator[Change]:
        while (changes := self.wait()) is not None:
            yield from changes

    @property
    def closed(self) -> bool:
        return self._inotify.closed

    def wait(self, timeout: float | None = None, also: int = -1) -> list[Change] | None:
        """What has changed; waits up to ``timeout`` seconds (None: for ever) for it. None once closed.

        May be empty before the time is up: after :meth:`wake`, after changes to what is not watched, and when the descriptor ``also`` is readable.
        """
        events = self._inotify.read(timeout, also)
        if events is None:
            return None
        changes: list[Change] = []
        moved = False
        directories: dict[int, list[str]] = {}
        for directory, wd in self._wds.items():
            directories.setdefault(wd, []).append(directory)
        for wd, mask, _, name in events:
            if mask & inotify.Q_OVERFLOW:
                changes += [Change(target, "", Kind.LOST) for target in self._targets]
                moved = True
            for directory in directories.get(wd, ()):
                if mask & inotify.IGNORED and self._wds.get(directory) == wd:
                    del self._wds[directory]
                on_the_way = name in self._leads[directory]
                moved |= on_the_way or bool(mask & _SELF)
                if on_the_way or directory in self._targets:
                    changes.append(Change(directory, name, _kind(mask)))
        if moved:
            try:
                changes += [Change(directory, "", Kind.LOST) for directory in self._arm() if directory in self._targets]
            except ValueError:
                if not self.closed:  # by another thread, meanwhile
                    raise
                return None
        return changes

    def wake(self) -> None:
        """Ends a :meth:`wait` early."""
        self._inotify.wake()

    def close(self) -> None:
        """Ends every :meth:`wait` and the iteration. Idempotent."""
        self._inotify.close()

    def _arm(self) -> list[str]:
        """Watches every directory that is there, from the top down: one that appears in between is seen by the watch on its parent.

        Returns those that were not there, or were another directory, before.
        """
        before = dict(self._wds)
        for directory in self._directories:
            self._wds.pop(directory, None)
            try:
                self._wds[directory] = self._inotify.add(directory, _MASK)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENOMEM):
                    raise
                if directory not in self._refused:
                    log.warning("cannot watch %s, so changes there go unseen: %s", directory, error.strerror)
                    self._refused.add(directory)
        for wd in set(before.values()) - set(self._wds.values()):
            with contextlib.suppress(OSError):  # EINVAL: the watch went with its inode
                self._inotify.remove(wd)
        return [directory for directory, wd in self._wds.items() if before.get(directory) != wd]


def _kind(mask: int) -> Kind:
    if mask & _SELF:
        return Kind.LOST
    if mask & (inotify.CREATE | inotify.MOVED_TO):
        return Kind.CREATED
    return Kind.DELETED if mask & (inotify.DELETE | inotify.MOVED_FROM) else Kind.CHANGED
