# SPDX-License-Identifier: Apache-2.0
"""Rules that every device plugin must keep, as checks on a running one.

A vendor says how to start the plugin and inherits the tests::

    class TestMyPlugin(PluginConformance):
        resource = "vendor.example/device"

        @contextmanager
        def serving(self, kubelet):
            process = subprocess.Popen(["my-plugin", "--root", kubelet.root])
            try:
                yield
            finally:
                process.terminate()
                process.wait()

Each check is a function as well, for those who bring their own tests: it takes the kubelet and the resource, whose plugin must be listed, and raises
AssertionError with the reason.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar

from deviceplugin.testing.events import NotReached
from deviceplugin.testing.kubelet import Kubelet
from deviceplugin.testing.plugin_calls import allocate, allocate_concurrently, options, oversized, prefer
from deviceplugin.testing.pods import Pod
from deviceplugin.testing.rpc import RpcFailed


def require(kept: bool, text: str) -> None:
    """:raises AssertionError: with the text, unless the rule is ``kept``. Not an ``assert``, which ``python -O`` drops."""
    if not kept:
        raise AssertionError(text)


def one_stream(kubelet: Kubelet, resource: str) -> None:
    """One ListAndWatch stream, and none was open whenever the plugin registered: up to 1.36 the end of the older stream closes the newer."""
    require(kubelet.streams(resource) == 1, f"{resource} has {kubelet.streams(resource)} ListAndWatch streams, not 1\n{kubelet.events.last()}")
    for event in kubelet.events.of("register", resource):
        require(event.detail["streams"] == 0, f"the plugin called Register while a stream was open: {event}")


def lists_well(kubelet: Kubelet, resource: str) -> None:
    """Ids are unique, and no longer than the 63 characters that the API promises; a NUMA topology is either absent or names nodes from 0 to 63."""
    devices = kubelet.devices(resource)
    listed = kubelet.events.of("list", resource)[-1].detail["listed"]
    require(listed == len(devices), f"{resource} lists an id twice: the list has {listed} devices and {len(devices)} ids")
    for device in devices.values():
        require(1 <= len(device.id) <= 63, f"device id {device.id!r} has {len(device.id)} characters; it must have 1 to 63")
        require(device.health in ("Healthy", "Unhealthy"), f"device {device.id} has health {device.health!r}, which the kubelet takes as Unhealthy")
        empty = device.topology and not device.nodes
        require(not empty, f"device {device.id} has an empty topology, with which it vanishes from pod resources: leave it out")
        require(all(0 <= node < 64 for node in device.nodes), f"device {device.id} has NUMA nodes {device.nodes}; they go from 0 to 63")


def stays_quiet(kubelet: Kubelet, resource: str, *, seconds: float = 0.5) -> None:
    """Sends no list while nothing changes: each makes the kubelet write its checkpoint to disk."""
    for event in kubelet.events.of("list", resource):
        require(not event.detail["repeated"], f"{resource} sent the same list twice on one stream: {event}")
    mark = len(kubelet.events)
    try:
        kubelet.wait_for_event("list", resource, since=mark, timeout=seconds)
    except NotReached:
        return
    raise AssertionError(f"{resource} sent a list though nothing had changed\n{kubelet.events.last()}")


def allocates_well(kubelet: Kubelet, resource: str) -> None:
    """Allocate gives one answer per container, the same whenever asked and in whatever order, and refuses ids that are not listed."""
    ids = sorted(kubelet.healthy(resource))
    require(bool(ids), f"{resource} has no healthy device to allocate")
    first, second = allocate(kubelet, resource, [ids]), allocate(kubelet, resource, [ids[::-1]])
    require(len(first) == len(second) == 1, f"Allocate for 1 container gave {len(first)} and then {len(second)} answers")
    require(first == second, f"Allocate of the same devices in another order gave another answer:\n{first[0]}\n{second[0]}")
    both = allocate(kubelet, resource, [[ids[0]], [ids[-1]]])
    require(len(both) == 2, f"Allocate for 2 containers gave {len(both)} answers")
    at_once = allocate_concurrently(kubelet, resource, [ids] * 4)
    require(all(one == first[0] for one in at_once), "Allocate of the same devices by several callers at once gave different answers")
    for device in first[0].devices:
        absolute = device.container_path.startswith("/") and device.host_path.startswith("/")
        require(absolute, f"Allocate gave a device whose paths are not absolute: {device}")
        known = bool(device.permissions) and set(device.permissions) <= set("rwm")
        require(known, f"Allocate gave permissions {device.permissions!r}, not of r, w and m")
    unknown = "no-such-device"
    refusal = _failure(lambda: allocate(kubelet, resource, [[unknown]]))
    require(refusal is not None, f"Allocate of {unknown!r} succeeded, which is not listed")
    require(unknown in str(refusal), f"Allocate refused an id that is not listed, without naming it: {refusal}")


def prefers_well(kubelet: Kubelet, resource: str) -> None:
    """GetPreferredAllocation, if offered, gives exactly as many ids as asked for, all available, with all that must be among them, each time
    alike.
    """
    if not options(kubelet, resource).get_preferred_allocation_available:
        return
    ids = sorted(kubelet.healthy(resource))
    for size in range(1, len(ids) + 1):
        for required in ([], ids[-1:], ids[:size]):
            chosen = prefer(kubelet, resource, ids, required, size)
            text = f"GetPreferredAllocation of {size} from {ids} with {required} gave {chosen}"
            require(len(chosen) == size == len(set(chosen)), f"{text}: not {size} different ids")
            require(set(required) <= set(chosen), f"{text}: one that is required is missing")
            require(set(chosen) <= set(ids), f"{text}: not all of these are available")
            again = prefer(kubelet, resource, ids[::-1], required[::-1], size)
            require(set(again) == set(chosen), f"{text}, and of the same in another order {again}")


def takes_large_requests(kubelet: Kubelet, resource: str) -> None:
    """GetPreferredAllocation takes more than 4 MiB: gRPC's default limit is not the kubelet's."""
    if options(kubelet, resource).get_preferred_allocation_available:
        refusal = str(_failure(lambda: oversized(kubelet, resource)))
        require("larger than max" not in refusal, f"a request of more than 4 MiB was refused by gRPC itself: {refusal}")


def comes_back(kubelet: Kubelet, resource: str, *, restarts: int = 1, within: float = 5.0) -> None:
    """After a kubelet restart as many devices are listed as before, in time, from one registration."""
    count = len(kubelet.healthy(resource))
    for _ in range(restarts):
        mark = len(kubelet.events)
        kubelet.restart()
        kubelet.wait_for(resource, healthy=count, timeout=within)
        registered = len(kubelet.events.of("registered", resource, since=mark))
        require(registered == 1, f"{resource} registered {registered} times after one kubelet restart\n{kubelet.events.last()}")
    one_stream(kubelet, resource)


def leaks_nothing(kubelet: Kubelet, resource: str, *, pid: int, restarts: int = 6, within: float = 5.0) -> None:
    """Restarts of the kubelet do not pile up file descriptors or threads in process ``pid``: fewer than one each per restart."""
    comes_back(kubelet, resource, restarts=2, within=within)  # what is made once is made by now
    before = _held(pid)
    comes_back(kubelet, resource, restarts=restarts, within=within)
    for what, had, has in zip(("file descriptors", "threads"), before, _held(pid), strict=True):
        require(has - had < restarts, f"process {pid} went from {had} to {has} {what} in {restarts} kubelet restarts")


def admits(kubelet: Kubelet, resource: str) -> None:
    """A pod gets a device, its container starts and starts again alike, and when the pod is deleted the next one gets all there is."""
    pod = Pod.requesting(resource)
    admission = kubelet.admit(pod)
    require(admission.ok, admission.message)
    first, again = kubelet.start_container(pod), kubelet.restart_container(pod)
    alike = (first.environ, set(first.devices), set(first.mounts)) == (again.environ, set(again.devices), set(again.mounts))
    require(alike, f"the container started again with something else:\n{first}\n{again}")
    kubelet.delete_pod(pod)
    everything = Pod.requesting(resource, len(kubelet.healthy(resource)), name="everything")
    admission = kubelet.admit(everything)
    require(admission.ok, admission.message)
    kubelet.delete_pod(everything)


def withdraws(kubelet: Kubelet, resource: str, sockets: set[str]) -> None:
    """After the plugin has stopped: its stream has ended, its own sockets are gone and those of others are there. ``sockets`` are the others'."""
    kubelet.wait_for(resource, healthy=0)
    left = plugin_sockets(kubelet)
    require(left == sockets, f"the plugin left {sorted(left - sockets)} behind and removed {sorted(sockets - left)}")


def plugin_sockets(kubelet: Kubelet) -> set[str]:
    """Names of the sockets in the device-plugins directory, other than the kubelet's own."""
    with os.scandir(kubelet.device_plugins) as entries:
        return {e.name for e in entries if e.name != "kubelet.sock" and stat.S_ISSOCK(e.stat(follow_symlinks=False).st_mode)}


def _failure(call: Callable[[], object]) -> RpcFailed | None:
    try:
        call()
    except RpcFailed as error:
        return error
    return None


def _held(pid: int) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


class PluginConformance:
    """Tests for a vendor to inherit, in a class that pytest collects. The fixture ``kubelet`` comes with this package."""

    resource: ClassVar[str]
    """The resource that the plugin serves. It must have at least one healthy device, and nothing may change by itself during a test."""

    within: ClassVar[float] = 5.0
    """Seconds from a kubelet's start, or the plugin's, to the list."""

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        """Runs the plugin against the kubelet for as long as the context lasts, and stops it orderly at the end."""
        raise NotImplementedError("say how the plugin is started: override serving()")

    def pid(self) -> int:
        """The process to watch for leaks: this one, for a plugin that runs in the tests' process."""
        return os.getpid()

    def _listed(self, kubelet: Kubelet) -> None:
        kubelet.wait_until(lambda: bool(kubelet.healthy(self.resource)), f"a healthy device of {self.resource}", timeout=self.within)

    def test_lists_in_time_on_one_stream(self, kubelet: Kubelet) -> None:
        with self.serving(kubelet):
            self._listed(kubelet)
            one_stream(kubelet, self.resource)
            lists_well(kubelet, self.resource)

    def test_sends_no_list_without_a_change(self, kubelet: Kubelet) -> None:
        with self.serving(kubelet):
            self._listed(kubelet)
            stays_quiet(kubelet, self.resource)

    def test_allocates_the_same_each_time_and_refuses_unknown_ids(self, kubelet: Kubelet) -> None:
        with self.serving(kubelet):
            self._listed(kubelet)
            allocates_well(kubelet, self.resource)

    def test_prefers_what_was_asked_for(self, kubelet: Kubelet) -> None:
        with self.serving(kubelet):
            self._listed(kubelet)
            prefers_well(kubelet, self.resource)
            takes_large_requests(kubelet, self.resource)

    def test_a_pod_gets_and_returns_its_device(self, kubelet: Kubelet) -> None:
        with self.serving(kubelet):
            self._listed(kubelet)
            admits(kubelet, self.resource)

    def test_comes_back_after_kubelet_restarts_and_leaks_nothing(self, kubelet: Kubelet) -> None:
        with self.serving(kubelet):
            self._listed(kubelet)
            leaks_nothing(kubelet, self.resource, pid=self.pid(), within=self.within)

    def test_comes_back_after_its_connection_breaks(self, kubelet: Kubelet) -> None:
        with self.serving(kubelet):
            self._listed(kubelet)
            count = len(kubelet.healthy(self.resource))
            mark = len(kubelet.events)
            kubelet.drop_connections(self.resource)
            kubelet.wait_for_event("disconnected", self.resource, since=mark, timeout=self.within)
            kubelet.wait_for(self.resource, healthy=count, timeout=self.within)

    def test_starts_before_the_kubelet(self, kubelet: Kubelet) -> None:
        kubelet.stop()
        with self.serving(kubelet):
            kubelet.start()
            self._listed(kubelet)

    def test_takes_its_own_socket_along_and_no_other(self, kubelet: Kubelet) -> None:
        others = plugin_sockets(kubelet)
        with self.serving(kubelet):
            self._listed(kubelet)
        withdraws(kubelet, self.resource, others)
