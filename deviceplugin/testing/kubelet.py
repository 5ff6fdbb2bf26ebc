# SPDX-License-Identifier: Apache-2.0
"""A kubelet to test device plugins with: real sockets, real gRPC, the real kubelet's rules and words, no root and no cluster."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

from deviceplugin.testing import status
from deviceplugin.testing.admission import Admission, Blocking
from deviceplugin.testing.checkpoint import Checkpoint
from deviceplugin.testing.containers import ContainerConfig
from deviceplugin.testing.devices import Endpoint, Listed
from deviceplugin.testing.events import Event, EventLog, NotReached
from deviceplugin.testing.faults import Faults
from deviceplugin.testing.pods import Pod
from deviceplugin.testing.process import Process
from deviceplugin.testing.settings import KubeletPanicked, KubeletStopped, Order, Policy, Semantics, Settings
from deviceplugin.testing.sockets import deaf_socket, remove_sockets
from deviceplugin.testing.workload import Workload

__all__ = ["Kubelet", "NotReached"]


class Kubelet:
    """A node's kubelet below ``root``: its directory is ``root/var/lib/kubelet``. Use it as a context manager, or ``start`` and ``stop`` it.

    Times in events, grace periods and back-off are on ``clock`` (seconds; any start); limits of calls and of waits are real time.

    ``root``
        An existing directory with a short name: the path of a unix socket has at most 107 bytes.
    ``semantics``
        ``v136`` is Kubernetes up to 1.36, which knows a plugin by its resource alone. ``post136`` is what came after
        (kubernetes/kubernetes#135437): by resource and socket path, and a second Register of the same pair does nothing.
    ``seed``
        Of the random order in which the kubelet takes devices, resources and containers. Random unless given; every failure shows it.
    ``numa``, ``topology_policy``
        The machine's NUMA nodes, as a number or a list of ids, and the topology manager's policy, at container scope.
    ``dial_timeout``, ``prestart_timeout``
        Seconds that the kubelet gives a registering plugin to accept its connection, and PreStartContainer to answer.
    ``patience``
        Seconds after which a call that the kubelet makes without a deadline is reported as :class:`SyncLoopBlocked`.
    ``watch_interval``
        Seconds between two looks at ``plugins_registry``.

    :raises ValueError: the root is too long, or a setting is none of those allowed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        semantics: Semantics = "v136",
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        numa: int | Iterable[int] = 1,
        topology_policy: Policy = "none",
        dial_timeout: float = 10.0,
        prestart_timeout: float = 30.0,
        patience: float = 30.0,
        watch_interval: float = 1.0,
    ) -> None:
        seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self.settings = Settings(
            root=os.path.abspath(root),
            semantics=semantics,
            seed=seed,
            clock=clock,
            numa=tuple(range(numa)) if isinstance(numa, int) else tuple(sorted(numa)),
            topology_policy=topology_policy,
            dial_timeout=dial_timeout,
            prestart_timeout=prestart_timeout,
            patience=patience,
            watch_interval=watch_interval,
            order=Order(seed),
        )
        self.settings.check()
        self.events = EventLog(clock)
        self.faults = Faults()
        self.checkpoint = Checkpoint(self.settings.device_plugins)
        self._process: Process | None = None
        self._workload = Workload(self.events, self.faults)
        self._node_capacity: dict[str, int] = {}
        self._node_allocatable: dict[str, int] = {}

    # The kubelet's life

    def start(self, *, readmit: bool = True) -> Kubelet:
        """Comes up: removes every socket in the device-plugins directory, reads the checkpoint, makes a new ``kubelet.sock``, admits its pods again.

        Containers that ran when the kubelet stopped run still. With ``readmit=False`` pods wait for :meth:`readmit`.

        :raises RuntimeError: it runs already.
        """
        self._start(None)
        if readmit:
            self.readmit()
        return self

    def stop(self, *, unlink: bool = False) -> None:
        """Goes down, orderly or not: the kubelet makes no difference. ``kubelet.sock`` stays behind, refusing connections, unless ``unlink``."""
        process, self._process = self._process, None
        if process is None:
            return
        self.faults.release()
        process.kill()
        self.events.record("kubelet stopped")
        if unlink and os.path.lexists(self.socket):
            os.unlink(self.socket)

    def kill(self) -> None:
        """``kill -9``: the same as :meth:`stop`, and named for what a test means."""
        self.stop()

    def restart(self, *, running: Iterable[tuple[Pod, str]] | None = None, same_inode: bool = False, readmit: bool = True) -> bool:
        """Stops and starts. Memory is lost, the checkpoint is not, and pods are admitted again before any plugin can be back.

        ``running`` are the containers that the runtime reports, by pod and container name: by default those that were started and neither deleted
        nor stopped. They keep their devices unquestioned. ``same_inode`` tries to give the new ``kubelet.sock`` the old one's inode number, and the
        result says whether that worked. With ``readmit=False`` pods wait for :meth:`readmit`, and until then nobody knows which pods are dead.
        """
        inode = os.stat(self.socket).st_ino if same_inode else None
        self.stop(unlink=same_inode)
        if running is not None:
            self._workload.keep_running((pod.uid, name) for pod, name in running)
        same = self._start(inode)
        if readmit:
            self.readmit()
        return same

    def reboot(self, *, readmit: bool = True) -> None:
        """The node restarts: no container runs, and every plugin's socket is gone. Plugins are the test's to kill and to start again."""
        self.stop()
        remove_sockets(self.device_plugins)
        self.restart(running=(), readmit=readmit)

    def readmit(self) -> dict[str, Admission]:
        """Admits all pods again, by uid, as at the first look at all sources of pods. From then on dead pods are known as such."""
        with self._panics():
            return self._workload.readmit(self._alive())

    def wipe_dir(self) -> None:
        """Everything in the device-plugins directory goes, the checkpoint too, while the kubelet runs on without noticing."""
        with os.scandir(self.device_plugins) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    with contextlib.suppress(FileNotFoundError):  # a plugin may remove its own meanwhile
                        os.unlink(entry.path)

    def replace_dir(self) -> None:
        """The device-plugins directory itself goes and a new, empty one comes, as when a node is set up anew. The kubelet runs on, unreachable."""
        shutil.rmtree(self.device_plugins)
        os.makedirs(self.device_plugins, mode=0o750)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Stops the kubelet. For as long as the block lasts, a ``kubelet.sock`` stands in its place that takes connections and never answers."""
        self.stop(unlink=True)
        socket = deaf_socket(self.socket)
        try:
            yield
        finally:
            socket.close()
            os.unlink(self.socket)

    def __enter__(self) -> Kubelet:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # Where it is

    @property
    def root(self) -> str:
        return self.settings.root

    @property
    def device_plugins(self) -> str:
        return self.settings.device_plugins

    @property
    def plugins_registry(self) -> str:
        return self.settings.plugins_registry

    @property
    def socket(self) -> str:
        return self.settings.kubelet_socket

    @property
    def pod_resources_socket(self) -> str:
        return self.settings.pod_resources_socket

    @property
    def running(self) -> bool:
        return self._process is not None

    # Pods

    def admit(self, pod: Pod) -> Admission:
        """The pod arrives. Its devices are allocated here or never: a second call answers what the first did.

        :raises SyncLoopBlocked: the plugin did not answer in the test's patience.
        :raises KubeletPanicked: the real kubelet would have crashed; this one has stopped.
        """
        with self._panics():
            return self._workload.admit(self._alive(), pod)

    def start_container(self, pod: Pod, container: str = "") -> ContainerConfig:
        """Creates a container of an admitted pod, by default its first app container. An ordinary init container has also ended on return.

        :raises CreateContainerConfigError: not now; the real kubelet would try again later.
        """
        with self._panics():
            return self._workload.start(self._alive(), pod, container)

    def restart_container(self, pod: Pod, container: str = "") -> ContainerConfig:
        """The container has ended and is created again: from the answer of old, whatever has become of its devices."""
        self.stop_container(pod, container)
        return self.start_container(pod, container)

    def stop_container(self, pod: Pod, container: str = "") -> None:
        """The container has ended."""
        self._workload.stop(pod, container)

    def delete_pod(self, pod: Pod) -> None:
        """The pod is gone. Its devices come free when the kubelet next looks: at an admission, or when pod resources are listed."""
        self._workload.delete(pod)

    def pod_status(self, pod: Pod) -> status.Status:
        """Health of the pod's devices as its status shows it: by container, resource and device id."""
        return status.pod_status(self._alive().manager, pod)

    def held(self, pod: Pod, container: str = "", resource: str = "") -> set[str]:
        """The device ids that a container holds: of one resource, or of all."""
        manager = self._alive().manager
        with manager.mutex:
            resources = manager.held.get(pod.uid, {}).get(pod.container(container).name, {})
            return {device for name, assignment in resources.items() if resource in ("", name) for device in assignment.ids()}

    # Devices

    def capacity(self, resource: str) -> int:
        """The node's capacity after a sync of its status: all devices listed. 0 also for a resource that was never there; see :meth:`node_status`.

        Such a sync forgets a resource whose plugin has been gone for more than 5 minutes.
        """
        return self.node_status()[0].get(resource, 0)

    def allocatable(self, resource: str) -> int:
        """As :meth:`capacity`, and only healthy devices."""
        return self.node_status()[1].get(resource, 0)

    def node_status(self) -> tuple[dict[str, int], dict[str, int]]:
        """Capacity and allocatable of all resources. One that the kubelet has forgotten stays, with 0."""
        capacity, allocatable, removed = self._alive().manager.capacity()
        self._node_capacity |= capacity | dict.fromkeys(removed, 0)
        self._node_allocatable |= allocatable | dict.fromkeys(removed, 0)
        return dict(self._node_capacity), dict(self._node_allocatable)

    def devices(self, resource: str) -> dict[str, Listed]:
        """The last list of the resource, by device id."""
        manager = self._alive().manager
        with manager.mutex:
            return dict(manager.listed.get(resource, {}))

    def healthy(self, resource: str) -> set[str]:
        """The ids that the kubelet would give out or has given out: none as soon as the stream has ended."""
        manager = self._alive().manager
        with manager.mutex:
            return set(manager.healthy.get(resource, ()))

    def allocated(self, resource: str) -> set[str]:
        """The ids that are marked as given out, whether a pod holds them or they have leaked."""
        manager = self._alive().manager
        with manager.mutex:
            return set(manager.allocated.get(resource, ()))

    def endpoint(self, resource: str) -> Endpoint | None:
        """The plugin that would be asked for devices now: its socket, its options, when it stopped."""
        manager = self._alive().manager
        with manager.mutex:
            return manager.endpoint(resource)

    def streams(self, resource: str) -> int:
        """ListAndWatch streams of the resource that are open now."""
        return self._process.clients.streams(resource) if self._process else 0

    def drop_connections(self, resource: str) -> int:
        """Breaks the connections to the resource's plugins from the kubelet's side; how many there were."""
        return self._alive().clients.drop(resource)

    @property
    def sources_ready(self) -> bool:
        return self._alive().manager.sources_ready

    @property
    def sync_loop_blocked(self) -> Sequence[Blocking]:
        """The calls without a deadline that the kubelet waits for at this moment."""
        return self._process.allocator.blocking() if self._process else ()

    # Waiting

    def wait_for(self, resource: str, *, healthy: int | None = None, unhealthy: int | None = None, timeout: float = 10.0) -> None:
        """Waits until the kubelet counts this many devices of the resource. :raises NotReached: not within ``timeout`` seconds."""

        def reached() -> bool:
            counts = self._counts(resource)
            return healthy in (None, counts[0]) and unhealthy in (None, counts[1])

        wanted = ", ".join(f"{n} {what}" for n, what in ((healthy, "healthy"), (unhealthy, "unhealthy")) if n is not None)
        self.wait_until(reached, f"{resource} with {wanted}", timeout=timeout, state=lambda: self._state(resource))

    def wait_gone(self, resource: str) -> None:
        """Waits until the kubelet has noticed that the resource's plugin is gone. One that registers before it has is closed with the old one, up
        to 1.36, and must register again.

        :raises NotReached: it still counts on it after 10 s.
        """
        self.wait_until(lambda: (endpoint := self.endpoint(resource)) is None or endpoint.stopped_at is not None, f"{resource} to be gone")

    def wait_until(self, reached: Callable[[], bool], what: str, *, timeout: float = 10.0, state: Callable[[], str] | None = None) -> None:
        """Waits until ``reached()``, asked after each event; ``what`` says in words what is waited for. :raises NotReached: it did not happen."""
        self.events.wait(reached, timeout, lambda: f"waited {timeout:g} s for {what}\n{state() if state else self.describe()}")

    def wait_for_event(self, kind: str, resource: str | None = None, *, count: int = 1, since: int = 0, timeout: float = 10.0) -> Event:
        """Waits for the ``count``-th event of a kind (and resource) after index ``since``, and returns it. :raises NotReached: it did not come."""
        what = f"event {kind!r}{f' of {resource}' if resource else ''}{f' number {count}' if count > 1 else ''}"
        self.wait_until(lambda: len(self.events.of(kind, resource, since=since)) >= count, what, timeout=timeout)
        return self.events.of(kind, resource, since=since)[count - 1]

    def describe(self) -> str:
        """The state in a few lines, for the text of a failure."""
        if self._process is None:
            return f"kubelet ({self.settings.semantics}, seed={self.settings.seed}) is not running"
        with self._process.manager.mutex:
            resources = sorted(self._process.manager.healthy)
        lines = [f"kubelet ({self.settings.semantics}, seed={self.settings.seed}) below {self.root}: {len(self._workload)} pods"]
        return "\n".join(lines + [self._state(resource) for resource in resources])

    # Within

    def _alive(self) -> Process:
        if self._process is None:
            raise KubeletStopped("the kubelet is not running")
        return self._process

    def _start(self, inode: int | None) -> bool:
        if self._process is not None:
            raise RuntimeError("the kubelet is running already")
        process = Process(self.settings, self.events, self.faults, self.checkpoint, self._workload.active, self._workload.running())
        same = process.start(inode)
        self._process = process
        self.events.record("kubelet started", seed=self.settings.seed, semantics=self.settings.semantics)
        return same

    @contextlib.contextmanager
    def _panics(self) -> Iterator[None]:
        """A nil pointer is the kubelet's end."""
        try:
            yield
        except KubeletPanicked as panic:
            self.events.record("panic", error=str(panic))
            self.stop()
            raise

    def _counts(self, resource: str) -> tuple[int, int]:
        return self._process.manager.counts(resource) if self._process else (0, 0)

    def _state(self, resource: str) -> str:
        healthy, unhealthy = self._counts(resource)
        return f"{resource}: {healthy} healthy, {unhealthy} unhealthy, {self.streams(resource)} streams (seed={self.settings.seed})"
