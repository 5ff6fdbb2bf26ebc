# SPDX-License-Identifier: Apache-2.0
"""What hardware there is and what a container gets: immutable values, no I/O.

Nothing here names a version of the kubelet's API, so that the same plugin can be served in another way. ``Edits`` has the shape of CDI's
``containerEdits``; ``Device.attributes`` keeps to the limits of Dynamic Resource Allocation.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeVar

Attribute = bool | int | str

_NOTHING: Mapping[str, str] = MappingProxyType({})

V = TypeVar("V")


def _frozen(mapping: Mapping[str, V]) -> Mapping[str, V]:
    """A copy that nobody can change: a maker may use one dict for all its devices."""
    return MappingProxyType(dict(mapping)) if mapping else mapping


class Health(enum.Enum):
    """Whether a device may be given to a new container. Only ``HEALTHY`` is advertised as healthy: unknown is not."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class Enforcement(enum.Enum):
    """What keeps a container to the devices that it was given."""

    HARD = "hard"
    """The kernel or the hardware of this node: the device cgroup, a mount, a cache mask. The container cannot get around it."""
    TAGGED = "tagged"
    """Something elsewhere, by a tag that the container carries and could change: a server's rule for a job id."""
    ADVISORY = "advisory"
    """The container is told what is its own; nothing stops it from using more."""
    NONE = "none"
    """Nothing. The devices are counted."""


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device file that a container gets.

    ``path`` is the file on the host, ``container_path`` where the container sees it (the same path unless said otherwise), ``permissions`` what the
    device cgroup allows: any of ``r`` (read), ``w`` (write) and ``m`` (mknod).
    """

    path: str
    container_path: str = ""
    permissions: str = "rw"

    def __post_init__(self) -> None:
        if not self.container_path:
            object.__setattr__(self, "container_path", self.path)


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount from the host into the container, read-only unless said otherwise."""

    path: str
    container_path: str = ""
    read_only: bool = True

    def __post_init__(self) -> None:
        if not self.container_path:
            object.__setattr__(self, "container_path", self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What one container needs to use its devices: the answer of :meth:`deviceplugin.Plugin.allocate`.

    ``envs`` are advice, since a pod's own variables override them; ``nodes`` are enforced by the device cgroup; ``cdi`` holds fully qualified CDI
    device names (``vendor.example/class=name``) for the runtime to resolve; ``annotations`` reach the runtime, never the pod object.
    """

    envs: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    cdi: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, init=False)
class Device:
    """One thing that a container can hold.

    Nothing is checked here: a device with a bad id or a bad path is left out of the list with the reason, and its siblings stay.

    ``id``
        Stable for the life of the hardware: a UUID, a PCI address, a serial number. Never an enumeration index: the kubelet remembers ids across
        reboots. Unique on the node.
    ``unit``
        The physical thing behind the device, by default the id. Health belongs to the unit: whatever shares it fails and recovers together.
    ``resource``
        The extended resource that the device counts towards, by default the plugin's.
    ``health``, ``cause``
        What the probe saw, and for anything but healthy a few words of why.
    ``numa_nodes``
        NUMA nodes that are local to the device, from 0 to 63; empty when not known.
    ``nodes``, ``mounts``, ``envs``, ``annotations``, ``cdi``
        What a container that holds the device gets, unless the plugin says otherwise in ``allocate``. Strings in ``nodes`` are paths. Where two
        devices of one container set one variable to different values, it becomes the values joined by commas, in the order of the device ids.
    ``attributes``, ``capacity``
        Facts for people and selectors: ``{"model": "T4"}``, ``{"memory": 16 << 30}``. Attribute names are C identifiers of at most 32 characters.
    ``enforcement``
        What keeps a container that was given others from using this one. By default hard for a device that comes with files, mounts or CDI names,
        which only its holder's container gets, advisory for one that comes with variables or annotations, and else none.
    ``incarnation``
        Something that changes with each reset of the unit, where the hardware tells: it clears faults that only a reset clears.
    """

    id: str
    unit: str
    resource: str
    health: Health
    cause: str
    numa_nodes: tuple[int, ...]
    nodes: tuple[DeviceNode, ...]
    mounts: tuple[Mount, ...]
    envs: Mapping[str, str]
    annotations: Mapping[str, str]
    cdi: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    capacity: Mapping[str, int]
    incarnation: str
    enforcement: Enforcement

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's own name
        *,
        nodes: Iterable[str | DeviceNode] = (),
        unit: str = "",
        resource: str = "",
        health: Health = Health.HEALTHY,
        cause: str = "",
        numa_nodes: Iterable[int] = (),
        mounts: Iterable[str | Mount] = (),
        envs: Mapping[str, str] = _NOTHING,
        annotations: Mapping[str, str] = _NOTHING,
        cdi: Iterable[str] = (),
        attributes: Mapping[str, Attribute] = MappingProxyType({}),
        capacity: Mapping[str, int] = MappingProxyType({}),
        incarnation: str = "",
        enforcement: Enforcement | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "id", id)
        put(self, "unit", unit or id)
        put(self, "resource", resource)
        put(self, "health", health)
        put(self, "cause", cause)
        put(self, "numa_nodes", tuple(numa_nodes))
        put(self, "nodes", tuple(DeviceNode(n) if isinstance(n, str) else n for n in nodes))
        put(self, "mounts", tuple(Mount(m) if isinstance(m, str) else m for m in mounts))
        put(self, "envs", _frozen(envs))
        put(self, "annotations", _frozen(annotations))
        put(self, "cdi", tuple(cdi))
        put(self, "attributes", _frozen(attributes))
        put(self, "capacity", _frozen(capacity))
        put(self, "incarnation", incarnation)
        put(self, "enforcement", enforcement or self._implied())

    def _implied(self) -> Enforcement:
        if self.nodes or self.mounts or self.cdi:
            return Enforcement.HARD
        return Enforcement.ADVISORY if self.envs or self.annotations else Enforcement.NONE


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one container holds of one resource, as the kubelet says. ``devices`` are sorted by id, each once."""

    namespace: str
    pod: str
    container: str
    resource: str
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether what an allocation promises holds. ``enforced`` is None where that cannot be seen; ``detail`` says why it is not, or what was done."""

    allocation: Allocation
    enforced: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """A way between two units, or from a unit to something that joins several, as a switch does, which is any other name. ``lanes`` is how many."""

    unit: str
    other: str
    kind: str
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric that a plugin has. ``labels`` are those of its own; which device, and who holds it, the framework adds."""

    documentation: str
    kind: Literal["gauge", "counter"] = "gauge"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of now. ``device`` is the id of a device, or a unit, or empty for what is about neither; ``labels`` as the measure declares."""

    measure: str
    value: float
    device: str = ""
    labels: tuple[str, ...] = ()


class Recovery(enum.Enum):
    """When a unit may be healthy again after the probe stopped seeing the cause."""

    QUIET = "quiet"
    """Once the probe has said healthy for the rule's ``seconds``."""
    RESET = "reset"
    """After a reboot of the machine, or when the unit's incarnation changes: the quiet that follows proves nothing."""
    NEVER = "never"
    """Not until an operator forgets the fault."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a unit recovers from one cause."""

    recovery: Recovery = Recovery.QUIET
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Sharing:
    """How one resource is shared out. ``replicas`` slots per device, under ``rename`` if set; a container may be held to one slot."""

    replicas: int = 1
    rename: str = ""
    fail_requests_greater_than_one: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that a probe saw and does not advertise, and why. A plugin yields it beside its devices; it is shown, never listed."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Host:
    """The machine as a plugin may see it. Every path goes through :meth:`path`, so that a test can put another tree below it."""

    root: str = "/"
    node_name: str = ""

    def path(self, path: str) -> str:
        """Where the host's ``path`` (absolute) is found by this process: ``/dev/fuse`` below the root."""
        return path if self.root == "/" else self.root.rstrip("/") + "/" + path.lstrip("/")
