# SPDX-License-Identifier: Apache-2.0
"""A kubelet to test device plugins with: real sockets, real gRPC, the real kubelet's rules and words, no root and no cluster."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from deviceplugin.testing import status
from deviceplugin.testing.admission import Admission, AlignmentImpossible, Blocking
from deviceplugin.testing.checkpoint import Checkpoint
from deviceplugin.testing.containers import ContainerConfig, CreateContainerConfigError
from deviceplugin.testing.devices import Endpoint, Listed
from deviceplugin.testing.events import Event, EventLog, NotReached
from deviceplugin.testing.faults import Faults
from deviceplugin.testing.pods import Pod
from deviceplugin.testing.process import Process
from deviceplugin.testing.rpc import RpcFailed
from deviceplugin.testing.settings import KubeletPanicked, KubeletStopped, Order, Policy, Semantics, Settings
from deviceplugin.testing.sockets import deaf_socket, remove_sockets

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
        self._sync_loop = threading.Lock()  # admissions come one at a time
        self._pods: dict[str, Pod] = {}
        self._admissions: dict[str, Admission] = {}
        self._running: set[tuple[str, str]] = set()
        self._restarts: dict[tuple[str, str], int] = {}
        self._node_capacity: dict[str, int] = {}
        self._node_allocatable: dict[str, int] = {}

    # The kubelet's life

    def start(self, *, inode: int | None = None) -> Kubelet:
        """Comes up: removes every socket in the device-plugins directory, reads the checkpoint, makes a new ``kubelet.sock``.

        :raises RuntimeError: it runs already.
        """
        self._start(frozenset(), inode)
        self._readmit()
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
        kept = frozenset(self._running if running is None else {(pod.uid, name) for pod, name in running})
        self.stop(unlink=same_inode)
        self._running &= kept
        same = self._start(kept, inode)
        if readmit:
            self._readmit()
        return same

    def reboot(self, *, readmit: bool = True) -> None:
        """The node restarts: no container runs, and every plugin's socket is gone. Plugins are the test's to kill and to start again."""
        self.stop()
        remove_sockets(self.device_plugins)
        self.restart(running=(), readmit=readmit)

    def readmit(self) -> dict[str, Admission]:
        """Admits all pods again, by uid, as at the first look at all sources of pods. From then on dead pods are known as such."""
        return self._readmit()

    def wipe_dir(self) -> None:
        """Everything in the device-plugins directory goes, the checkpoint too, while the kubelet runs on without noticing."""
        for entry in os.scandir(self.device_plugins):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)

    def replace_dir(self) -> None:
        """The device-plugins directory itself goes and a new, empty one comes, as when a node is set up anew. The kubelet runs on, unreachable."""
        shutil.rmtree(self.device_plugins)
        os.makedirs(self.device_plugins, mode=0o750)

    def play_deaf(self) -> Callable[[], None]:
        """Stops the kubelet and leaves a ``kubelet.sock`` that connects and never answers; call the result to close and remove it."""
        self.stop(unlink=True)
        deaf = deaf_socket(self.socket)

        def end() -> None:
            deaf.close()
            if os.path.lexists(self.socket):
                os.unlink(self.socket)

        return end

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
        with self._sync_loop:
            return self._admit(pod)

    def start_container(self, pod: Pod, container: str = "") -> ContainerConfig:
        """Creates a container of an admitted pod, by default its first app container. An ordinary init container has also ended on return.

        :raises CreateContainerConfigError: not now; the real kubelet would try again later.
        """
        process, spec = self._alive(), pod.container(container)
        if not self._admissions.get(pod.uid) or pod.uid not in self._pods:
            raise ValueError(f"pod {pod.name} ({pod.uid}) has not been admitted: {self._admissions.get(pod.uid, 'it was never seen')}")
        key = pod.uid, spec.name
        restarts = self._restarts.get(key, -1) + 1
        try:
            config = process.starter.start(pod, spec, restarts)
        except CreateContainerConfigError as error:
            self.events.record("container failed", pod=pod.name, container=spec.name, error=str(error))
            raise
        except KubeletPanicked as panic:
            raise self._panicked(panic) from None
        self._restarts[key] = restarts
        if spec.restartable or spec in pod.containers:
            self._running.add(key)
        self.events.record("container started", pod=pod.name, container=spec.name, restarts=restarts)
        return config

    def restart_container(self, pod: Pod, container: str = "") -> ContainerConfig:
        """The container has ended and is created again: from the answer of old, whatever has become of its devices."""
        self.stop_container(pod, container)
        return self.start_container(pod, container)

    def stop_container(self, pod: Pod, container: str = "") -> None:
        """The container has ended."""
        self._running.discard((pod.uid, pod.container(container).name))

    def delete_pod(self, pod: Pod) -> None:
        """The pod is gone. Its devices come free when the kubelet next looks: at an admission, or when pod resources are listed."""
        self._pods.pop(pod.uid, None)
        self._admissions.pop(pod.uid, None)
        self._running -= {(pod.uid, container.name) for container in pod.all_containers()}

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
        lines = [f"kubelet ({self.settings.semantics}, seed={self.settings.seed}) below {self.root}: {len(self._pods)} pods"]
        return "\n".join(lines + [self._state(resource) for resource in resources])

    # Within

    def _alive(self) -> Process:
        if self._process is None:
            raise KubeletStopped("the kubelet is not running")
        return self._process

    def _start(self, running: frozenset[tuple[str, str]], inode: int | None) -> bool:
        if self._process is not None:
            raise RuntimeError("the kubelet is running already")
        process = Process(self.settings, self.events, self.faults, self.checkpoint, self._active_pods, running)
        same = process.start(inode)
        self._process = process
        self.events.record("kubelet started", seed=self.settings.seed, semantics=self.settings.semantics)
        return same

    def _readmit(self) -> dict[str, Admission]:
        with self._sync_loop:
            process = self._alive()
            # An admission is of one kubelet process. A rejection is the pod's end, but for static pods, which no API server remembers as failed.
            self._admissions = {uid: a for uid, a in self._admissions.items() if uid in self._pods and not a and not self._pods[uid].static}
            answers = {pod.uid: self._admit(pod) for pod in tuple(self._pods.values())}
            process.manager.sources_ready = True  # a source is ready after its first pods have been handled
            return answers

    def _admit(self, pod: Pod) -> Admission:
        process = self._alive()
        known = self._admissions.get(pod.uid)
        if known is not None:
            return known
        self._pods[pod.uid] = pod
        try:
            process.allocator.admit(pod)
            admission = Admission(True)
            if self.faults.reject_after_allocate:
                admission = Admission(False, "OutOfcpu", f"Pod was rejected: {self.faults.reject_after_allocate}")
        except AlignmentImpossible as error:
            admission = Admission(False, "TopologyAffinityError", f"Pod was rejected: {error}")
        except (RuntimeError, RpcFailed) as error:
            admission = Admission(False, "UnexpectedAdmissionError", f"Pod was rejected: Allocate failed due to {error}, which is unexpected")
        except KubeletPanicked as panic:
            raise self._panicked(panic) from None
        self._admissions[pod.uid] = admission
        self.events.record("admitted" if admission else "rejected", pod=pod.name, **({} if admission else {"message": admission.message}))
        return admission

    def _panicked(self, panic: KubeletPanicked) -> KubeletPanicked:
        self.events.record("panic", error=str(panic))
        self.stop()
        return panic

    def _active_pods(self) -> Sequence[Pod]:
        """Pods that are neither deleted nor rejected, the one being admitted among them."""
        return [pod for pod in tuple(self._pods.values()) if self._admissions.get(pod.uid, True)]

    def _counts(self, resource: str) -> tuple[int, int]:
        return self._process.manager.counts(resource) if self._process else (0, 0)

    def _state(self, resource: str) -> str:
        healthy, unhealthy = self._counts(resource)
        return f"{resource}: {healthy} healthy, {unhealthy} unhealthy, {self.streams(resource)} streams (seed={self.settings.seed})"
