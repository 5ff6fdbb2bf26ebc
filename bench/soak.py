# SPDX-License-Identifier: Apache-2.0
"""A day of a busy node in minutes: kubelet restarts, faults, pods and reloads in random order, each checked, and what the process needs after it."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import psutil

from bench.core import daemon, node, runtime, write
from bench.report import table
from deviceplugin.testing import Kubelet, Pod

OPERATIONS = {"kubelet restarts": 1_000, "health flips": 10_000, "allocations": 10_000, "reloads": 500}
WARM = 0.1
"""What part of the operations goes before the first reading: pools and caches fill."""

DEVICES = 16
RESOURCE = "example.com/rack"
PATIENCE = 10.0
CONFIG = (
    "version: v1\nplugins:\n  - plugin: bench.plugins:Rack\n    health: {{flaps: 1000000}}\nresources:\n  example.com/rack: {{policy: {policy}}}\n"
)


class Wrong(Exception):
    """An answer that was not right."""


@dataclass(frozen=True)
class Reading:
    """What the process holds."""

    rss: int
    descriptors: int
    threads: int


class Node:
    """The daemon as a process, a kubelet, pods; ``broken`` is what the hardware really is."""

    def __init__(self, root: str, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.names = [f"d{i:02}" for i in range(DEVICES)]
        self.broken: set[str] = set()
        self.pods: list[Pod] = []
        self.policy = "spread"
        os.mkdir(os.path.join(root, "rack"))
        for name in self.names:
            self._put(name, "")
        self.config = write(root, CONFIG.format(policy=self.policy))
        self.kubelet = Kubelet(root, seed=seed, patience=PATIENCE)
        self.log = open(os.path.join(root, "log"), "w+", encoding="utf-8")  # noqa: SIM115 - closed with the node
        self.process = subprocess.Popen([*daemon(root, "--config", self.config), "--log-level", "info"], stdout=self.log, stderr=self.log)

    def __enter__(self) -> Node:
        self.kubelet.start()
        self.settled()
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.kubelet.stop()
        self.log.close()

    def settled(self) -> None:
        """The kubelet knows the hardware as it is. Raises Wrong."""
        self.kubelet.wait_for(RESOURCE, healthy=DEVICES - len(self.broken), unhealthy=len(self.broken), timeout=PATIENCE)
        if self.kubelet.healthy(RESOURCE) != set(self.names) - self.broken:
            raise Wrong(f"healthy are {sorted(self.kubelet.healthy(RESOURCE))}, broken in truth {sorted(self.broken)}")

    def flip(self) -> None:
        name = self.random.choice(self.names)
        if name in self.broken:
            self.broken.remove(name)
        elif len(self.broken) < DEVICES // 2:
            self.broken.add(name)
        else:
            return
        self._put(name, "worn: a soak" if name in self.broken else "")
        self.settled()

    def allocate(self) -> None:
        """A pod comes, or one goes to make room; what comes gets devices that are whole and nobody else's."""
        held = {one for pod in self.pods for one in self.kubelet.held(pod)}
        free = set(self.names) - self.broken - held
        while self.pods and (not free or len(self.pods) > 4):
            gone = self.pods.pop(self.random.randrange(len(self.pods)))
            free |= self.kubelet.held(gone) - self.broken
            self.kubelet.delete_pod(gone)
        pod = Pod.requesting(RESOURCE, self.random.randint(1, min(3, len(free))))
        admission = self.kubelet.admit(pod)
        got = self.kubelet.held(pod)
        if not admission or not got <= free:
            raise Wrong(f"{admission}: {sorted(got)} of {sorted(free)}")
        envs = dict(self.kubelet.start_container(pod).envs)
        if sorted(envs["RACK"].split(",")) != sorted(got):
            raise Wrong(f"the container of {sorted(got)} is told {envs['RACK']}")
        self.pods.append(pod)

    def restart(self) -> None:
        before = {pod.uid: self.kubelet.held(pod) for pod in self.pods}
        self.kubelet.restart()
        self.settled()
        if {pod.uid: self.kubelet.held(pod) for pod in self.pods} != before:
            raise Wrong("a restart changed who holds what")

    def reload(self) -> None:
        """Another policy: no device and no pod is to notice."""
        streams = self.kubelet.streams(RESOURCE)
        said = self._said()
        self.policy = "pack" if self.policy == "spread" else "spread"
        write(self.root, CONFIG.format(policy=self.policy))
        self.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + PATIENCE
        while self._said() == said:
            if time.monotonic() > until:
                raise Wrong("the reload was not applied")
            time.sleep(0.002)
        if self.kubelet.streams(RESOURCE) != streams:
            raise Wrong("a reload broke a stream")

    def read(self) -> Reading:
        process = psutil.Process(self.process.pid)
        return Reading(process.memory_info().rss, process.num_fds(), process.num_threads())

    def _said(self) -> int:
        self.log.flush()
        with open(self.log.name, encoding="utf-8") as log:
            return log.read().count("applied")

    def _put(self, name: str, cause: str) -> None:
        path = os.path.join(self.root, "rack", name)
        with open(f"{self.root}/next", "w", encoding="ascii") as file:
            file.write(cause)
        os.rename(f"{self.root}/next", path)


def _order(seed: int) -> list[str]:
    kinds = [kind for kind, number in OPERATIONS.items() for _ in range(number)]
    random.Random(seed).shuffle(kinds)
    return kinds


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The kubelet's side is in this process: its own garbage must not be measured as the daemon's time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def report(seed: int = 1) -> str:
    """Runs it all. Raises Wrong at the first wrong answer."""
    runtime()
    spent: Counter[str] = Counter()
    readings: list[Reading] = []
    order = _order(seed)
    with node() as root, _quiet(), Node(root, seed) as one:
        acts: dict[str, Callable[[], None]] = {
            "kubelet restarts": one.restart,
            "health flips": one.flip,
            "allocations": one.allocate,
            "reloads": one.reload,
        }
        marks = {int(len(order) * (WARM + (1 - WARM) * i / 4)) for i in range(5)}
        for number, kind in enumerate(order, 1):
            began = time.monotonic()
            acts[kind]()
            spent[kind] += int((time.monotonic() - began) * 1e6)
            if number in marks:
                readings.append(one.read())
                print(f"{number} of {len(order)}: {readings[-1]}", file=sys.stderr, flush=True)
    grown = [b.rss - a.rss for a, b in pairwise(readings)]
    rows = [[kind, number, f"{spent[kind] / number / 1000:.1f} ms"] for kind, number in OPERATIONS.items()]
    first, last = readings[0], readings[-1]
    rows += [
        [
            "RSS",
            f"{first.rss / 2**20:.1f} MiB",
            f"{(last.rss - first.rss) / 2**20:+.2f} MiB (steps {', '.join(f'{one / 2**20:+.2f}' for one in grown)})",
        ],
        ["descriptors", first.descriptors, f"{last.descriptors - first.descriptors:+d}"],
        ["threads", first.threads, f"{last.threads - first.threads:+d}"],
    ]
    return table("Soak: no wrong answer", ["what", "number, or after a tenth", "mean time, or growth until the end"], rows)
