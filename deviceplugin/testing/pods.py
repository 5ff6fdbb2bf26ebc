# SPDX-License-Identifier: Apache-2.0
"""Pods as far as device plugins are concerned: immutable values."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Container:
    """A container: ``limits`` counts devices by resource, ``envs`` are the pod's own variables.

    ``restartable`` makes an init container a sidecar (``restartPolicy: Always``), which keeps its devices while the pod lives.
    """

    name: str = "main"
    limits: Mapping[str, int] = field(default_factory=dict)
    envs: Mapping[str, str] = field(default_factory=dict)
    restartable: bool = False


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. Two pods of one name are two pods: the kubelet knows them by ``uid``.

    ``static`` pods come from a file on the node: one that was rejected is tried again after a kubelet restart, which no other pod is.
    """

    name: str = "pod"
    containers: tuple[Container, ...] = (Container(),)
    init_containers: tuple[Container, ...] = ()
    namespace: str = "default"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    static: bool = False

    @classmethod
    def requesting(cls, resource: str, count: int = 1, *, name: str = "pod") -> Pod:
        """A pod of one container that asks for ``count`` devices of ``resource``."""
        return cls(name=name, containers=(Container(limits={resource: count}),))

    def all_containers(self) -> tuple[Container, ...]:
        """In the order of the kubelet's admission: init containers first."""
        return self.init_containers + self.containers

    def container(self, name: str = "") -> Container:
        """The container of that name, or the first app container.

        :raises KeyError: the pod has no such container.
        """
        if not name:
            return self.containers[0]
        for container in self.all_containers():
            if container.name == name:
                return container
        raise KeyError(f"pod {self.name} has no container {name!r}, only {', '.join(c.name for c in self.all_containers())}")
