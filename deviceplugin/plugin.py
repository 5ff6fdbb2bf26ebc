# SPDX-License-Identifier: Apache-2.0
"""What a vendor subclasses."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from deviceplugin.model import Allocation, Connection, Device, Edits, Host, Measure, Measurement, Rule, Sharing, Skipped, Verdict


class Plugin:
    """One kind of hardware. Say what is there; the framework does the rest.

    The one thing a subclass must have is :meth:`discover`. Every other method is optional: overriding it opts in, and the options that the kubelet
    is told are derived from what is overridden. Every hook is called on a thread of its own under a deadline, so it may block and it may fail; it
    takes down nothing but itself.

    ::

        class Fuse(Plugin):
            resource = "example.com/fuse"

            def discover(self):
                yield Device("fuse", nodes=["/dev/fuse"])
    """

    resource: ClassVar[str] = ""
    """The extended resource of devices that do not name their own, ``vendor.example/device``."""

    Config: ClassVar[type | None] = None
    """A ``msgspec.Struct`` (or dataclass) for the plugin's part of the configuration file, or None for a plugin without options. Unknown keys and
    wrong types are refused before the plugin is made. Keys in the file are the field names as ``rename`` spells them."""

    recovery: ClassVar[Mapping[str, Rule]] = MappingProxyType({})
    """When a unit may be healthy again after :meth:`discover` stopped reporting a cause, by the cause or by its part before the first colon. The
    configuration's rules come before these; a cause without a rule ends when it is no longer reported."""

    measures: ClassVar[Mapping[str, Measure]] = MappingProxyType({})
    """The metrics that :meth:`measure` has figures of, by name without the prefix, with the unit last, as Prometheus wants: ``card_power_watts``."""

    interval: float = 30.0
    """Seconds between two looks at the hardware when nothing calls for one sooner. Plugins that override :meth:`watch` keep it as a safety net;
    while they find nothing at all it is 30 s at the least."""

    sharing: Mapping[str, Sharing] = MappingProxyType({})
    """How the configuration shares resources out, by the name that the plugin gives each: for what must be told elsewhere, as labels are.

    The framework sets it, before :meth:`start` and whenever it changes, and makes the shares.
    """

    def __init__(self, config: Any = None, host: Host | None = None) -> None:
        self.config = config
        """An instance of :attr:`Config`, with the defaults where the configuration says nothing; None for a plugin without one."""
        self.host = host or Host()
        """The machine. ``self.host.path("/dev/fuse")`` is where this process finds the host's file."""
        self.log = logging.getLogger(f"deviceplugin.plugins.{type(self).__name__}")

    def discover(self) -> Iterable[Device | Skipped]:
        """The full, current set of devices, each time. It may be slow and it may fail.

        A failure keeps the last set, is counted and shown. A device that is there but broken is yielded with ``health=Health.UNHEALTHY`` and a cause;
        something seen and left out on purpose is yielded as :class:`~deviceplugin.Skipped`.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what devices there are: override discover()")

    def allocate(self, devices: Sequence[Device]) -> Edits:
        """What a container that was given ``devices`` (sorted by id, each once) needs. By default the sum of what each device carries.

        Pure and idempotent: the kubelet stores the answer, replays it after restarts and reboots, and never says when a device is released. Things
        that have an effect belong in :meth:`prepare`.
        """
        raise NotImplementedError

    def prefer(self, available: Sequence[Device], required: Sequence[Device], size: int) -> Iterable[Device] | None:
        """Which ``size`` of the ``available`` devices to take, the ``required`` ones among them. The configured policy decides by default, and where
        this answers None. With replicas a device is available once for each that is free.

        An answer that is too short, too long or late is mended, never passed on as an error: an error here would fail the pod.
        """
        raise NotImplementedError

    def prepare(self, devices: Sequence[Device]) -> None:
        """Called before each start of a container that holds ``devices``; must be idempotent. Raising keeps the container from starting.

        The kubelet waits 30 s at most, may skip the call after its own restart, and may make it for several containers at once.
        """
        raise NotImplementedError

    def reconcile(self, allocations: Sequence[Allocation]) -> Iterable[Verdict]:
        """Compares what every container holds with what is really so, mends what it can, and says of each allocation whether it is enforced.

        Called soon after containers came and every 10 s (every minute while nobody on the node holds any device), and only with a list that the
        kubelet gave just now: what is not in it is held by nobody, but for containers that are just starting and ordinary init containers, which the
        kubelet leaves out. An allocation without a verdict counts as not looked at. Never called twice at once; the other hooks may run meanwhile.
        """
        raise NotImplementedError

    def connections(self) -> Iterable[Connection]:
        """How the units of the last :meth:`discover` are connected: for people, who see it drawn. Called after each look."""
        raise NotImplementedError

    def measure(self) -> Iterable[Measurement]:
        """Figures for /metrics, of now. Called when they are asked for, once a second at most; has 2 s."""
        raise NotImplementedError

    def advice(self) -> Iterable[str]:
        """Yields lines for whoever administers what the devices rely on elsewhere: what must be set there, to the letter. ``deviceplugin check``
        shows them after :meth:`discover`.
        """
        raise NotImplementedError

    def uninstall(self, remove: bool) -> Iterable[str]:
        """Yields a line for each thing that the plugin has left on the node and that outlives it, as ``directory /sys/fs/resctrl/x``; removes each
        before it yields it if ``remove``. Called in a process of its own, without :meth:`start`, when nobody serves the plugin any more.
        """
        raise NotImplementedError

    def watch(self) -> Iterator[object]:
        """Yields, whatever it likes, each time the hardware may have changed; :meth:`discover` is called soon after. Blocks in between.

        What happened between the last look and the beginning of the watch is told by nobody: yield once when it has begun.
        :class:`~deviceplugin.events.Events` needs no such word, since the framework sees them begin.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Called once before the first :meth:`discover`."""

    def stop(self) -> None:
        """Called once when the plugin is no longer needed. :meth:`watch` should end soon after."""


OPTIONAL = ("advice", "allocate", "measure", "prefer", "prepare", "reconcile", "uninstall", "watch")


def overrides(plugin: Plugin | type[Plugin], hook: str) -> bool:
    """Whether the plugin has its own ``hook``: how everything optional is found."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return getattr(cls, hook) is not getattr(Plugin, hook)
