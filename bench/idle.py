# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs while nothing happens: every plugin on, on a machine with none of the hardware and on one with all of it, simulated.

A registered daemon with a kubelet and the HTTP server; nobody asks it anything, or Prometheus asks every 15 s. What a real driver takes for its
answers comes on top.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import psutil

from bench.core import daemon, node, runtime, write
from bench.report import table
from deviceplugin.testing import Kubelet, SimulatedHost, fuse
from deviceplugin.testing.fpga import NLB0, Fpgas
from deviceplugin.testing.mic import SimulatedMics
from deviceplugin.testing.nvml import dgx_h100, write_host
from deviceplugin.testing.pfs import SimulatedPfs
from tests.helpers.llc import Node

WARM, WINDOW = 30.0, 60.0
"""Seconds. Where nothing is held the daemon asks the kubelet seldom only after 20 s: podresources.PERIOD and UNUSED_LOOKS."""

SCRAPES = 15.0

CONFIG = """\
version: v1
plugins:
  - plugin: gpu
  - plugin: generic
    config: {domain: example.com, devices: [{name: serial, groups: [{paths: [{path: "/dev/ttyS*"}]}]}]}
  - plugin: llc
  - plugin: fpga
  - plugin: mic
  - plugin: pfs
    config: {filesystems: [{name: scratch, type: lustre, tier: T0, slots: 8, mountPoint: /mnt/scratch}]}
"""


def bare(root: str, _stack: contextlib.ExitStack) -> int:
    """A machine that mounts a parallel file system, without which the plugin has nothing to be configured with. How many resources there are."""
    SimulatedPfs(SimulatedHost(root)).mount("lustre", "10.0.0.1@tcp:/scratch", "/mnt/scratch")
    os.makedirs(os.path.join(root, "mnt/scratch"))
    return 1


def gpus(root: str, stack: contextlib.ExitStack) -> int:
    """That, and eight linked GPUs."""
    machine = dgx_h100()
    write_host(machine, root)
    libraries = os.path.join(root, "usr/lib/x86_64-linux-gnu")
    os.makedirs(libraries)
    machine.install(libraries)
    return bare(root, stack) + 1


def full(root: str, stack: contextlib.ExitStack) -> int:
    """That, and 64 FPGA ports, eight coprocessors, two caches, a serial line."""
    caches = Node(root, mode="reserve")
    if lack := fuse.missing():
        print(f"without caches: {lack}", file=sys.stderr)
    else:
        stack.enter_context(fuse.serve(caches.sim, caches.host.path("/sys/fs/resctrl")))
    host = SimulatedHost(root, mknod=os.geteuid() == 0)
    fpgas, mics = Fpgas(host), SimulatedMics(host, "kernel")
    for number in range(16):
        fpgas.dfl(f"0000:{0xA0 + number:02x}:00.0", [NLB0] * 4, numa_node=number % 2)
    for _ in range(8):
        mics.add()
    host.write("/dev/ttyS0")
    return gpus(root, stack) + (3 if fuse.missing() else 4)


@contextlib.contextmanager
def running(root: str, config: str, resources: int) -> Iterator[tuple[psutil.Process, str]]:
    """The daemon and its URL, once the kubelet has every list."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = daemon(root, "--config", config, "--listen", address)
    with Kubelet(root) as kubelet, subprocess.Popen(command) as process:
        try:
            kubelet.wait_until(lambda: len(kubelet.node_status()[0]) >= resources, f"{resources} resources", timeout=30)
            yield psutil.Process(process.pid), f"http://{address}"
        finally:
            process.terminate()


def spent(process: psutil.Process) -> float:
    """Seconds of CPU, those of children that have ended included."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def looking(process: psutil.Process, address: str) -> float:
    """Seconds of CPU of the threads that look at the hardware, without what those cost that ended since."""
    with urllib.request.urlopen(f"{address}/debug/threads", timeout=10) as page:
        named = re.findall(r"^(?:scan|hook|watch)-\S+ .*\[(\d+)\]$", page.read().decode(), re.MULTILINE)
    found = 0
    for thread in named:
        with open(f"/proc/{process.pid}/task/{thread}/schedstat", encoding="ascii") as file:
            found += int(file.read().split()[0])
    return found / 1e9


def measure(process: psutil.Process, address: str = "", scraped: bool = False) -> list[str]:
    time.sleep(WARM)
    if scraped:
        urllib.request.urlopen(f"{address}/metrics", timeout=10).read()  # the first one imports
    looked = looking(process, address) if address else 0.0
    cpu, began = spent(process), time.monotonic()
    while (left := began + WINDOW - time.monotonic()) > 0:
        time.sleep(min(left, SCRAPES))
        if scraped:
            urllib.request.urlopen(f"{address}/metrics", timeout=10).read()
    seconds = time.monotonic() - began
    used = spent(process) - cpu
    memory = process.memory_full_info()
    return [
        f"{used / seconds * 100:.2f}",
        f"{(looking(process, address) - looked) / seconds * 100:.2f}" if address else "-",
        f"{memory.rss / (1 << 20):.1f}",
        f"{memory.pss / (1 << 20):.1f}",
        str(process.num_threads()),
    ]


def report() -> str:
    python = runtime()
    with node() as root, subprocess.Popen([python, "-m", "bench.echo", os.path.join(root, "echo.sock")]) as process:
        rows = [["a bare grpcio server, for comparison", *measure(psutil.Process(process.pid))]]
        process.terminate()
    for what, furnish in (("none of the hardware", bare), ("eight GPUs", gpus), ("eight GPUs, 64 FPGA ports, 8 MICs, caches", full)):
        with node() as root, contextlib.ExitStack() as stack:
            resources = furnish(root, stack)
            with running(root, write(root, CONFIG), resources) as (process, address):
                rows += [[what, *measure(process, address)], [f"{what}; /metrics every 15 s", *measure(process, address, scraped=True)]]
    return table("Six plugins on, nothing happens", ("machine", "CPU, % of a core", "of that, looks", "RSS MiB", "PSS MiB", "threads"), rows)
