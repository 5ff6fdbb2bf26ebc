# SPDX-License-Identifier: Apache-2.0
"""From a container's start to the system call, and back: the plugin as it is, with a driver in user space."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from deviceplugin import Host
from deviceplugin.plugins.fpga import Fpga, FpgaConfig
from deviceplugin.plugins.fpga.config import Function
from deviceplugin.plugins.fpga.hardware import Driver
from deviceplugin.plugins.fpga.ioctls import Files
from deviceplugin.plugins.fpga.programming import ProgrammingFailed
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.fpga import INTERFACE, NLB0, NLB3, OTHER_INTERFACE, Fpgas, SimulatedCard, put_bitstream
from tests.helpers import driver
from tests.unit.fpga.bench import Bench

T = TypeVar("T")
PR = {"dfl": 0xB680, "opae": 0xB580}


class UserSpaceDriver:
    """What the kernel's driver does with the ioctls of one card's engine."""

    def __init__(self, card: SimulatedCard) -> None:
        self.card = card
        self.asked: list[int] = []
        self.fail: dict[int, int] = {}

    def __call__(self, fd: int, command: int, argument: int) -> int:
        self.asked.append(command)
        assert os.readlink(f"/proc/self/fd/{fd}") == self.card.host.path(self.card.node)
        if command in self.fail:
            return -self.fail[command]
        if command in PR.values():
            size, flags, port, length, address = struct.unpack("=IIIIQ", ctypes.string_at(argument, 24))
            if size < 24 or flags or port >= len(self.card.ports):
                return -errno.EINVAL
            self.card.ports[port].afu = ctypes.string_at(address, length)[:16].hex()
        return 0

    def run(self, function: Callable[[], T]) -> T:
        try:
            return driver.call(function, self, (0xB5, 0xB6))
        except driver.Unavailable as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("kind", ["dfl", "opae"])
def test_a_port_is_programmed_by_system_calls(bench: Callable[..., Bench], fpgas: Fpgas, machine: SimulatedHost, host: Host, kind: str) -> None:
    card = fpgas.dfl("0000:3b:00.0", [NLB0, NLB0]) if kind == "dfl" else fpgas.opae("0000:3b:00.0", [NLB0, NLB0])
    put_bitstream(machine, INTERFACE if kind == "dfl" else OTHER_INTERFACE, NLB3)
    plugin = Fpga(FpgaConfig(functions=[Function(afu=NLB3)]), host)
    devices = [one for one in plugin.discover() if getattr(one, "id", "") == "0000-3b-00.0-p1"]
    kernel = UserSpaceDriver(card)
    kernel.run(lambda: plugin.prepare(devices))  # type: ignore[arg-type]
    assert kernel.asked == [PR[kind] & 0xFF00, PR[kind]]
    assert [port.afu for port in card.ports] == [NLB0, NLB3]


@pytest.mark.parametrize(("command", "number"), [(0xB600, errno.ENOTTY), (0xB680, errno.EIO), (0xB680, errno.ETIMEDOUT)])
def test_what_the_driver_refuses(fpgas: Fpgas, machine: SimulatedHost, host: Host, command: int, number: int) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    put_bitstream(machine, INTERFACE, NLB3)
    plugin = Fpga(FpgaConfig(functions=[Function(afu=NLB3)]), host)
    devices: list[Any] = list(plugin.discover())
    kernel = UserSpaceDriver(card)
    kernel.fail = {command: number}
    with pytest.raises(ProgrammingFailed, match=f"0000-3b-00.0-p0 could not be programmed with {NLB3}: .*{os.strerror(number)}"):
        kernel.run(lambda: plugin.prepare(devices))
    assert card.ports[0].afu == NLB0


def test_error_bits_of_opae_are_passed_on(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.opae("0000:5e:00.0")

    def broken(_fd: int, command: int, argument: int) -> int:
        if command != PR["opae"]:
            return 0
        ctypes.memmove(argument + 24, struct.pack("=Q", 0x21), 8)
        return -errno.EIO

    try:
        with pytest.raises(OSError, match="error bits 0x21"):
            driver.call(lambda: Files(host).program(card.node, Driver.OPAE, 0, memoryview(b"image")), broken, (0xB5,))
    except driver.Unavailable as error:
        pytest.skip(str(error))


def test_no_descriptor_is_left_open(fpgas: Fpgas, host: Host) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    files = Files(host)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(OSError, match="does not tell its version"):  # a plain file has no ioctls
            files.program(card.node, Driver.DFL, 0, memoryview(b"image"))
        with pytest.raises(FileNotFoundError):
            files.program("/dev/dfl-fme.9", Driver.DFL, 0, memoryview(b"image"))
        with files.exclusive(card.ports[0].node):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
