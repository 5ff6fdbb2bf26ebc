# SPDX-License-Identifier: Apache-2.0
"""The CDI spec that names a resctrl group to the container runtime.

A container has exactly one device with ``intelRdt``: of several the runtime would take only the last. It has the group's name and no masks, so that
the runtime puts the process there and leaves the group to us. Names that were handed out stay for as long as a container may be started with them,
also over a restart of ours: the file itself remembers them.
"""

from __future__ import annotations

import os
import threading

from deviceplugin import Host, cdi
from deviceplugin.plugins.llc import naming


class Catalog:
    """Keys of groups that runtimes can look up. Any thread may call. Methods raise CdiError."""

    def __init__(self, host: Host, kind: str) -> None:
        self.kind = kind
        self._directory = cdi.SpecDirectory(host)
        self._path = host.path(os.path.join(cdi.DYNAMIC, kind.replace("/", "-") + ".json"))
        self._lock = threading.Lock()
        self._keys: set[str] | None = None

    def add(self, key: str) -> str:
        """Puts a key in, and returns the name of its device for the runtime."""
        with self._lock:
            self._write(self._known() | {key})
            return self.name(key)

    def discard(self, key: str) -> None:
        with self._lock:
            self._write(self._known() - {key})

    def name(self, key: str) -> str:
        return cdi.qualified(self.kind, key)

    def keys(self) -> frozenset[str]:
        """All that are in it."""
        with self._lock:
            return frozenset(self._known())

    def clear(self) -> bool:
        """Removes the file; False if there is none."""
        with self._lock:
            self._keys = None
            return self._directory.remove(self.kind)

    def _known(self) -> set[str]:
        if self._keys is None:
            try:
                self._keys = {key for key in cdi.published(self._path, self.kind) if naming.slots_of_key(key) is not None}
            except cdi.CdiError:  # what nobody can read holds nothing worth keeping: containers that start again bring their keys with them
                self._keys = set()
        return self._keys

    def _write(self, keys: set[str]) -> None:
        if keys:
            edits = {key: cdi.ContainerEdits(intel_rdt=cdi.IntelRdt(clos_id=naming.group_of(key))) for key in keys}
            self._directory.write(cdi.Spec(kind=self.kind, devices=edits))
        else:
            self._directory.remove(self.kind)
        self._keys = keys
