# SPDX-License-Identifier: Apache-2.0
"""The MIC plugin's look at a host with eight cards, with the native batches and with the same in Python.

The host is a simulated one, so what is measured is the plugin: a real driver takes its own time to answer, and asks the card for some of it.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

from bench.report import ms, table
from deviceplugin import Device, Host
from deviceplugin._native import sysfs as native
from deviceplugin.plugins.mic import Mic
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.mic import Flavour, SimulatedMics
from tests.oracles import sysfs as oracle

CARDS = 8
OTHERS = 120
"""Further devices on the PCI bus, about as many as a machine with two processors has."""
ROUNDS = 101
FLAVOURS: tuple[Flavour, ...] = ("mpss3", "kernel", "mpss4")


@contextlib.contextmanager
def machine(flavour: Flavour) -> Iterator[Mic]:
    with tempfile.TemporaryDirectory() as root:
        host = SimulatedHost(root)
        mics = SimulatedMics(host, flavour)
        for _ in range(CARDS):
            mics.add()
        for n in range(OTHERS):
            alias = {"modalias": "pci:v00008086d00001533sv00008086sd00000000bc02sc00i00"}
            host.sysfs_device(f"/sys/devices/pci0000:80/0000:80:{n // 8:02x}.{n % 8}", subsystem="pci", attributes=alias)
        yield Mic(host=Host(root))


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """The native module's functions are replaced by their twins."""
    with contextlib.ExitStack() as patched:
        for name in ("read", "names", "resolve"):
            patched.enter_context(mock.patch.object(native, name, getattr(oracle, name)))
        yield


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds: the median, and the 99th percentile."""
    figures = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        figures.append((time.perf_counter() - began) * 1e3)
    figures.sort()
    return statistics.median(figures), figures[int((ROUNDS - 1) * 0.99 + 0.5)]


def report() -> str:
    rows: list[list[object]] = []
    for flavour in FLAVOURS:
        with machine(flavour) as plugin:

            def look(plugin: Mic = plugin) -> list[Device]:
                return [one for one in plugin.discover() if isinstance(one, Device)]

            found = look()
            assert len(found) == CARDS
            fast = timed(look)
            with in_python():
                assert look() == found
                slow = timed(look)
            told = timed(lambda found=found, plugin=plugin: plugin.allocate(found))  # type: ignore[misc]
            rows.append([flavour, ms(fast[0]), ms(fast[1]), ms(slow[0]), f"{slow[0] / fast[0]:.1f}", ms(told[0])])
    title = f"Look at {CARDS} Xeon Phi cards and {OTHERS} other PCI devices, {ROUNDS} times, ms"
    return table(title, ["driver", "native: p50", "p99", "Python: p50", "Python / native", "allocate all: p50"], rows)


if __name__ == "__main__":
    print(report())
