# SPDX-License-Identifier: Apache-2.0
"""What the plugin must know after a restart: one small file, replaced as a whole."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from deviceplugin import Host, files, sysfs

log = logging.getLogger("deviceplugin.plugins.Fpga")

_BOOT = "/proc/sys/kernel/random/boot_id"


class Place(msgspec.Struct, frozen=True):
    """What a device is offered as, and the ports that it is made of."""

    resource: str
    ports: tuple[str, ...]


class Record(msgspec.Struct):
    """All of it. Ids are those of devices (``places``, ``given``) and of ports (``known``)."""

    version: int = 1
    boot: str = ""
    """The boot that ``baselines`` are of: the errors of the one before are gone."""
    known: dict[str, tuple[str, str]] = {}
    """The interface and function that a port last told."""
    places: dict[str, Place] = {}
    given: dict[str, tuple[str, ...]] = {}
    """The device files that the last container was given a device as. The kubelet passes the same ones at each start, also after a reboot."""
    baselines: dict[str, int] = {}
    """What an error register or counter had before the plugin knew of it: ``<card or port>/<name>``."""


class Memory:
    """Keeps the record. Whoever reads or changes it does so inside :meth:`held`. Where the file cannot be written, memory lasts for this process.

    Another instance may write the file meanwhile, as during an update: what it wrote counts.
    """

    def __init__(self, host: Host, path: str) -> None:
        self._host = host
        self._path = path
        self._lock = threading.RLock()
        self._record = Record()
        self._seen: object = None
        self._kept = b""
        self._said = ""
        self._aside = False

    @contextmanager
    def held(self) -> Iterator[Record]:
        with self._lock:
            yield self._record

    def refresh(self) -> None:
        """Takes what is in the file, if somebody else wrote it, and forgets what was true of the boot before."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._load()
                self._seen = state
            try:
                boot = sysfs.read(self._host, _BOOT) or ""
            except sysfs.SysfsError:
                boot = ""
            if boot != self._record.boot:
                self._record.boot = boot
                self._record.baselines = {}

    def save(self) -> None:
        """Writes the record if it has changed."""
        with self._lock:
            content = msgspec.json.format(msgspec.json.encode(self._record), indent=1)
            if content == self._kept:
                return
            at = self._host.path(self._path)
            try:
                if self._aside:
                    os.replace(at, f"{at}.unusable")
                    self._aside = False
                files.replace(at, content, 0o600)
            except OSError as error:
                self._say(f"{self._path} cannot be written: {error.strerror}; what ports are offered as and held as is forgotten at the next restart")
                return
            self._kept, self._seen, self._said = content, self._state(), ""

    def _load(self) -> None:
        try:
            with open(self._host.path(self._path), "rb") as file:
                content = file.read(64 << 20)
            self._record = msgspec.json.decode(content, type=Record)
            self._kept = content
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._say(f"{self._path} cannot be used: {error}; it is written anew, and the old one is kept beside it")
            self._aside = True

    def _state(self) -> object:
        try:
            status = os.stat(self._host.path(self._path))
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _say(self, text: str) -> None:
        if text != self._said:  # once per reason
            log.warning("%s", text)
        self._said = text
