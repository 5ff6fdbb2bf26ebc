# SPDX-License-Identifier: Apache-2.0
"""The framework at work below a kubelet's root: as a daemon in this process, or as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from deviceplugin import Device, Health, Host, Plugin, Skipped
from deviceplugin.config import PluginSettings, Settings
from deviceplugin.daemon import Daemon, Plan, PluginPlan, make_plan
from deviceplugin.kubelet.endpoint import Endpoint
from deviceplugin.kubelet.paths import Paths
from deviceplugin.kubelet.registration import Registrar
from deviceplugin.scanner import Scanner
from deviceplugin.service import Service
from deviceplugin.testing import Kubelet

RESOURCE = "vendor.example/device"

FILES = f"{os.path.join(os.path.dirname(__file__), 'files.py')}:Files"
"""A plugin for processes of their own: one device for each file in ``/devices`` below the root."""


class Rack:
    """Simulated hardware and the plugin that finds it. A change is seen at once; ``hooks`` are further methods of the plugin, by name."""

    def __init__(
        self,
        *devices: str | Device,
        resource: str = RESOURCE,
        label: str = "",
        settings: Mapping[str, Any] | None = None,
        **hooks: Callable[..., object],
    ) -> None:
        self.resource = resource
        self.label = label or resource.rpartition("/")[2]
        self.settings = dict(settings or {})
        self.looks = 0
        self.found: Callable[[], Iterable[Device | Skipped]] = self._listed
        self._devices = {device.id: device for device in (Device(one) if isinstance(one, str) else one for one in devices)}
        self._changed = threading.Condition()
        self._generation = 0
        self._hooks = hooks
        self.plugin = self._plugin()

    def put(self, *devices: str | Device) -> None:
        """Adds devices, or replaces those of the same id."""
        with self._changed:
            self._devices |= {device.id: device for device in (Device(one) if isinstance(one, str) else one for one in devices)}
        self.event()

    def pull(self, *ids: str) -> None:
        """Takes devices away."""
        with self._changed:
            for one in ids:
                del self._devices[one]
        self.event()

    def sicken(self, *ids: str, cause: str = "broken") -> None:
        self.put(*(Device(one, health=Health.UNHEALTHY, cause=cause) for one in ids))

    def event(self) -> None:
        """Something may have changed: the plugin's watch() yields."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def published(self) -> None:
        """Waits until a daemon has published what is there now: its second look from here begins after the first was published."""
        for _ in range(2):
            looks = self.looks
            self.event()
            wait_until(lambda looks=looks: self.looks > looks, "a look at the hardware")  # type: ignore[misc]

    def _listed(self) -> list[Device]:
        with self._changed:
            return list(self._devices.values())

    def _plugin(self) -> type[Plugin]:
        rack = self

        class Found(Plugin):
            resource = rack.resource

            def __init__(self, config: object = None, host: Host | None = None) -> None:
                super().__init__(config, host)
                self.seen = rack._generation
                self.over = False

            def discover(self) -> Iterable[Device | Skipped]:
                rack.looks += 1
                return rack.found()

            def watch(self) -> Iterator[object]:
                while True:
                    with rack._changed:
                        rack._changed.wait_for(lambda: self.over or rack._generation != self.seen)
                        self.seen = rack._generation
                    if self.over:
                        return
                    yield None

            def stop(self) -> None:
                with rack._changed:
                    self.over = True
                    rack._changed.notify_all()

        return type("Rack", (Found,), dict(self._hooks))


class _Daemon(Daemon):
    """With ``settle`` (seconds) instead of the usual 5 before a vanished device that nobody holds is dropped."""

    settle: float | None = None

    def _scanner(self, plan: PluginPlan) -> Scanner:
        scanner = super()._scanner(plan)
        if self.settle is not None:
            scanner.inventory._settle = self.settle
        return scanner


def plan_for(root: str, *racks: Rack, **settings: Any) -> Plan:
    """``settings`` are fields of Settings."""
    plugins = [PluginSettings(plugin="rack", name=rack.label, **rack.settings) for rack in racks]
    return make_plan(Settings(version="v1", plugins=plugins, listen="", **settings), Host(root), {rack.label: rack.plugin for rack in racks})


@contextmanager
def serving(
    root: Kubelet | str, *racks: Rack, settle: float | None = None, on_lost: Callable[[str], None] = lambda _path: None, **settings: Any
) -> Iterator[Daemon]:
    """A daemon in this process that serves the racks below a kubelet's root; it has looked at each once, or failed to within 5 s."""
    below = root if isinstance(root, str) else root.root
    plan = plan_for(below, *racks, **settings)
    daemon = _Daemon(plan, Paths.below(below), Host(below), on_lost=on_lost)
    daemon.settle = settle
    daemon.start()
    try:
        daemon.wait_first_scan(5.0)
        yield daemon
    finally:
        daemon.stop()


def overlaps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, for each call of Register: how many streams our sockets had at that moment. A kubelet may notice a stream's end only later."""
    ours: list[Endpoint] = []
    seen: list[int] = []
    make, register = Endpoint.__init__, Registrar._register

    def made(self: Endpoint, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        ours.append(self)

    def registering(self: Registrar, endpoint: Endpoint) -> None:
        seen.append(sum(one.streams for one in ours if one.handlers.resource == self.resource))
        register(self, endpoint)

    monkeypatch.setattr(Endpoint, "__init__", made)
    monkeypatch.setattr(Registrar, "_register", registering)
    return seen


def service_of(daemon: Daemon, resource: str = RESOURCE) -> Service:
    """The service of a resource, which must be there within 5 s."""
    wait_until(lambda: resource in daemon.services, f"a service for {resource}")
    return daemon.services[resource]


class Running:
    """``python -m deviceplugin run`` as a process."""

    def __init__(self, root: str, process: subprocess.Popen[bytes], log: str) -> None:
        self.root = root
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        with open(self._log, encoding="utf-8") as file:
            return file.read()

    def wait_log(self, text: str, timeout: float = 10.0) -> None:
        wait_until(lambda: text in self.log(), f"{text!r} in the log", timeout, self.log)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it with a signal; its exit status, negative for a signal that killed it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(10.0)


@contextmanager
def running(root: Kubelet | str, *flags: str, plugin: str = FILES, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """The command line below a kubelet's root, warnings as errors, ended by SIGKILL at the latest when the context ends."""
    below = root if isinstance(root, str) else root.root
    log = os.path.join(below, f"log-{time.monotonic_ns()}")
    argv = [sys.executable, "-W", "error", "-m", "deviceplugin", "run", "--root", below, "--listen", "", "--plugin", plugin, *flags]
    with open(log, "wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **(env or {})})
    one = Running(below, process, log)
    try:
        yield one
    finally:
        one.end(signal.SIGKILL)


def put_files(root: Kubelet | str, *ids: str) -> None:
    """The devices of :data:`FILES`."""
    directory = os.path.join(root if isinstance(root, str) else root.root, "devices")
    os.makedirs(directory, exist_ok=True)
    for one in ids:
        with open(os.path.join(directory, one), "w", encoding="ascii"):
            continue


def wait_until(reached: Callable[[], object], what: str, timeout: float = 5.0, describe: Callable[[], str] = lambda: "") -> None:
    """For what no event of the kubelet tells. Raises AssertionError."""
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}\n{describe()}"
        time.sleep(0.005)
