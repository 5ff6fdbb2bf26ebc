# SPDX-License-Identifier: Apache-2.0
"""What containers were told of the devices that they hold, kept on disk.

The kubelet stores the answer to Allocate and replays it for as long as the pod is there, after a reboot too. It holds the number of a card or of an
IOMMU group, and those change from boot to boot: a container that starts again would then use somebody else's card. Only a comparison shows it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping

from deviceplugin import Host, files

log = logging.getLogger(__name__)


class Told:
    """The handle (``mic0``, ``/dev/vfio/12``) that was last handed out for each device. Any thread may call.

    The file is read again when another process has replaced it, as the instance does that hands over to this one.
    """

    def __init__(self, host: Host, path: str) -> None:
        self._path = path
        self._at = host.path(path)
        self._lock = threading.Lock()
        self._handles: dict[str, str] = {}
        self._read: tuple[int, int] | None = None
        """Which file that is from."""
        self._complaints: set[str] = set()

    def tell(self, handles: Mapping[str, str]) -> None:
        """Containers are told these from now on. What cannot be written is logged, and forgotten with this process."""
        with self._lock:
            self._load()
            if all(self._handles.get(device) == handle for device, handle in handles.items()):
                return
            self._handles.update(handles)
            try:
                files.replace(self._at, json.dumps(self._handles, indent=1, sort_keys=True).encode() + b"\n", 0o600)
                self._complaints.clear()
            except OSError as error:
                self._complain(f"cannot be written: {error.strerror or error}; after a restart, renumbered cards would not be noticed")

    def handle(self, device: str) -> str:
        """What the holder of a device was told, empty if that is not known."""
        with self._lock:
            self._load()
            return self._handles.get(device, "")

    def leftovers(self, remove: bool) -> Iterator[str]:
        """For :meth:`deviceplugin.Plugin.uninstall`: a line for the file if it is there, removed if so wished. Raises OSError."""
        if os.path.exists(self._at):
            if remove:
                os.unlink(self._at)
            yield f"file {self._path}"

    def _load(self) -> None:
        try:
            with open(self._at, encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                which = (status.st_ino, status.st_mtime_ns)
                if which == self._read:
                    return
                self._read = which
                said = json.load(file)
            self._handles = {str(device): handle for device, handle in said.items() if isinstance(handle, str)}
        except FileNotFoundError:
            return  # nothing was ever told
        except (OSError, ValueError, AttributeError) as error:
            self._complain(f"cannot be read ({error}): cards that were renumbered since are not noticed")

    def _complain(self, text: str) -> None:
        if text not in self._complaints:  # once per reason
            log.warning("%s %s", self._path, text)
        self._complaints.add(text)
