# SPDX-License-Identifier: Apache-2.0
"""What a fake kubelet is told once: where it lives, which kubelet it is, and its clock, order and time limits."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from deviceplugin.testing.sockets import SUN_PATH_MAX, check_path

T = TypeVar("T", bound="str | int | tuple[str, int]")

Semantics = Literal["v136", "post136"]
Policy = Literal["none", "best-effort", "restricted", "single-numa-node"]

_SHORTEST_NAME = 24
"""Bytes that the root must leave for the file names of plugins' sockets."""


class KubeletStopped(Exception):
    """The kubelet was stopped, or never started, while something was asked of it."""


class KubeletPanicked(Exception):
    """The real kubelet would have crashed here with a nil pointer. The fake one has stopped, its socket left behind."""


class Order:
    """The random order of Go's maps and sets, from one seed. The same calls in the same order give the same order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - nothing here is secret

    def shuffled(self, items: Iterable[T]) -> list[T]:
        ordered = sorted(items)
        self._random.shuffle(ordered)
        return ordered


@dataclass(frozen=True, slots=True)
class Settings:
    """See :class:`deviceplugin.testing.Kubelet`, which takes the same."""

    root: str
    semantics: Semantics
    seed: int
    clock: Callable[[], float]
    numa: tuple[int, ...]
    topology_policy: Policy
    dial_timeout: float
    prestart_timeout: float
    patience: float
    watch_interval: float
    order: Order

    @property
    def kubelet_dir(self) -> str:
        return os.path.join(self.root, "var/lib/kubelet")

    @property
    def device_plugins(self) -> str:
        return os.path.join(self.kubelet_dir, "device-plugins")

    @property
    def plugins_registry(self) -> str:
        return os.path.join(self.kubelet_dir, "plugins_registry")

    @property
    def kubelet_socket(self) -> str:
        return os.path.join(self.device_plugins, "kubelet.sock")

    @property
    def pod_resources_socket(self) -> str:
        return os.path.join(self.kubelet_dir, "pod-resources", "kubelet.sock")

    @property
    def hidden(self) -> str:
        """Where our servers bind their sockets before they are put in place; a directory that no plugin looks into."""
        return os.path.join(self.root, ".kubelet")

    def check(self) -> None:
        """:raises ValueError: a setting cannot work, with the reason."""
        if self.semantics not in ("v136", "post136"):
            raise ValueError(f"semantics must be 'v136' or 'post136', not {self.semantics!r}")
        if self.topology_policy not in ("none", "best-effort", "restricted", "single-numa-node"):
            raise ValueError(f"topology_policy must be none, best-effort, restricted or single-numa-node, not {self.topology_policy!r}")
        if len(self.numa) > 8:
            raise ValueError(f"numa has {len(self.numa)} nodes; the kubelet's topology manager refuses more than 8")
        check_path(os.path.join(self.device_plugins, "n" * _SHORTEST_NAME))

    @property
    def socket_name_room(self) -> int:
        """Bytes that a plugin's socket name may have below this root."""
        return SUN_PATH_MAX - len(os.fsencode(self.device_plugins)) - 1
