# SPDX-License-Identifier: Apache-2.0
"""What the daemon and its plugins have left on a node, once none of them runs any more: to be listed, and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator

import msgspec

from deviceplugin.daemon import Plan
from deviceplugin.hooks import HookFailed, Hooks
from deviceplugin.kubelet.lock import ResourceLock
from deviceplugin.kubelet.paths import SOCKET_NAME, Paths, abandoned
from deviceplugin.tally import Tally

DEADLINE = 60.0
"""Seconds that each plugin has."""


class Busy(Exception):
    """An instance still serves: what it uses is not left over. The text says which and what to do."""


class Cleaning(msgspec.Struct, frozen=True, rename="camel"):
    """What was found. ``deviceplugin uninstall -o json`` answers this."""

    version: str
    """Of this format: ``v1``."""
    removed: bool
    """Whether what was found has been removed, as far as there are no errors."""
    found: tuple[str, ...]
    errors: tuple[str, ...]


class _Files(msgspec.Struct, frozen=True):
    """Files of one directory that are ours, and the directory itself if nothing else is in it then."""

    directory: str
    ours: Callable[[str], bool]
    whole: bool

    def clean(self, remove: bool) -> Iterator[str]:
        """Yields what is found. Raises OSError."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return
        mine = [name for name in names if self.ours(os.path.join(self.directory, name))]
        for name in mine:
            path = os.path.join(self.directory, name)
            if remove:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            yield f"{'socket' if name.endswith(('.sock', '.heir')) else 'file'} {path}"
        # A directory that was mounted into this container cannot be removed from within: it stays, empty.
        if self.whole and len(mine) == len(names) and not os.path.ismount(self.directory):
            if remove:
                os.rmdir(self.directory)
            yield f"directory {self.directory}"


def clean(plan: Plan, paths: Paths, *, remove: bool, progress: Callable[[str], None] = lambda _text: None) -> Cleaning:
    """Lists what is left over, and removes it if ``remove``. What cannot be removed is an error that names it; the rest goes on. Raises Busy."""
    _nobody_serves(paths)
    found: list[str] = []
    errors: list[str] = []
    for one in plan.plugins:
        hooks = Hooks(one.plugin, one.settings.label, Tally(), {"uninstall": DEADLINE})
        if hooks.has("uninstall"):
            progress(f"plugin {one.settings.label} looks for what it left")
            try:
                found += [str(line) for line in hooks.call("uninstall", remove)]
            except HookFailed as error:
                errors.append(str(error))
        hooks.close()
    for part in _parts(paths, plan.settings.state_directory or paths.state):
        try:
            found += part.clean(remove)
        except OSError as error:
            errors.append(f"{error.filename or part.directory}: {error.strerror}")
    return Cleaning("v1", remove, tuple(found), tuple(errors))


def _parts(paths: Paths, state: str) -> Iterator[_Files]:
    for directory in (paths.device_plugins, paths.plugins_registry):
        yield _Files(directory, lambda path: SOCKET_NAME.fullmatch(os.path.basename(path)) is not None and abandoned(path), whole=False)
    yield _Files(paths.locks, lambda path: path.endswith((".lock", ".heir", ".status.sock")), whole=True)
    yield _Files(state, lambda path: re.fullmatch(r"\.?health-.*\.json(\..*\.tmp)?", os.path.basename(path)) is not None, whole=True)


def _nobody_serves(paths: Paths) -> None:
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.scandir(paths.locks), key=lambda one: one.name):
            if entry.name.endswith(".lock") and entry.is_file(follow_symlinks=False) and _locked(entry.path):
                resource = entry.name.removesuffix(".lock")
                owner = ResourceLock(paths.locks, resource).owner()
                who = f"pid {owner.pid}" + (f" on {owner.host}" if owner.host else "") if owner else "an instance"
                raise Busy(f"{who} still serves {resource}: stop it first (kubectl delete the DaemonSet, or end the process)")


def _locked(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
