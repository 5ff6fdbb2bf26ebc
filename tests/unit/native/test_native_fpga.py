# SPDX-License-Identifier: Apache-2.0
"""The ioctls as a driver sees them: real system calls, answered by a driver in user space."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin._native import fpga
from tests.helpers import driver
from tests.oracles import fpga as oracle

TYPES = (0xB5, 0xB6)
PR = {fpga.DFL: 0xB680, fpga.OPAE: 0xB580}
DRIVERS = pytest.mark.parametrize("which", [fpga.DFL, fpga.OPAE], ids=["dfl", "opae"])


@dataclass
class Card:
    """A driver that keeps what it was asked for."""

    result: int = 0
    bits: int = 0
    asked: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    """Command, the fields of the request, the image that its address leads to."""

    def __call__(self, _fd: int, command: int, argument: int) -> int:
        size = {0xB680: 24, 0xB580: 32}.get(command, 0)
        request = ctypes.string_at(argument, size) if size else b""
        image = b""
        if size:
            length, address = struct.unpack_from("=IQ", request, 12)
            image = ctypes.string_at(address, length)
            if size == 32:
                ctypes.memmove(argument + 24, struct.pack("=Q", self.bits), 8)
        self.asked.append((command, request, image))
        return self.result


@pytest.fixture
def fd() -> Iterator[int]:
    number = os.open("/dev/null", os.O_RDWR)
    yield number
    os.close(number)


def through(card: Card, function: Callable[[], object]) -> object:
    try:
        return driver.call(function, card, TYPES)
    except driver.Unavailable as error:
        pytest.skip(str(error))


@DRIVERS
def test_request_is_laid_out_as_the_driver_reads_it(fd: int, which: int) -> None:
    card = Card()
    assert through(card, lambda: fpga.port_pr(fd, 3, b"image of a port", which)) == (0, 0)
    ((command, request, image),) = card.asked
    assert command == PR[which]
    assert struct.unpack_from("=IIII", request) == (len(request), 0, 3, 15)  # argsz, flags, port_id, buffer_size
    assert image == b"image of a port"


@DRIVERS
@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, errno.EINVAL, errno.ENODEV, errno.ETIMEDOUT])
def test_what_the_driver_says_comes_back_as_it_is(fd: int, which: int, number: int) -> None:
    card = Card(result=-number, bits=0x40)
    assert through(card, lambda: fpga.port_pr(fd, 0, b"x", which)) == (-number, 0x40 if which == fpga.OPAE else 0)
    assert through(card, lambda: fpga.api_version(fd, which)) == -number


@DRIVERS
def test_version(fd: int, which: int) -> None:
    card = Card(result=7)
    assert through(card, lambda: fpga.api_version(fd, which)) == 7
    assert card.asked[0][0] == PR[which] & 0xFF00


def test_other_threads_run_while_the_card_is_programmed(fd: int) -> None:
    """The handler is Python on another thread: it could not run if the GIL were kept."""
    ran: list[str] = []

    def slow(_fd: int, _command: int, _argument: int) -> int:
        thread = threading.Thread(target=lambda: ran.append("another"))
        thread.start()
        thread.join(5)
        return 0

    try:
        assert driver.call(lambda: fpga.port_pr(fd, 0, b"x"), slow, TYPES) == (0, 0)
    except driver.Unavailable as error:
        pytest.skip(str(error))
    assert ran == ["another"]


def test_image_cannot_be_resized_while_the_driver_reads_it(fd: int) -> None:
    image = bytearray(b"x" * 64)

    def resize(_fd: int, _command: int, _argument: int) -> int:
        with pytest.raises(BufferError):
            image.extend(b"y" * 4096)
        return 0

    try:
        assert driver.call(lambda: fpga.port_pr(fd, 0, image), resize, TYPES) == (0, 0)
    except driver.Unavailable as error:
        pytest.skip(str(error))


def test_memory_maps_and_slices_are_taken_as_they_are(fd: int) -> None:
    card = Card()
    view = memoryview(b"head and image")[9:]
    assert through(card, lambda: fpga.port_pr(fd, 0, view)) == (0, 0)
    assert card.asked[0][2] == b"image"


@DRIVERS
def test_empty_image_never_reaches_the_driver(fd: int, which: int) -> None:
    card = Card()
    assert through(card, lambda: fpga.port_pr(fd, 0, b"", which)) == (-errno.EINVAL, 0)
    assert card.asked == []


@DRIVERS
def test_a_file_that_is_no_card(fd: int, which: int) -> None:
    assert fpga.api_version(fd, which) == -errno.ENOTTY
    assert fpga.port_pr(fd, 0, b"x", which) == (-errno.ENOTTY, 0)
    assert fpga.port_pr(-1, 0, b"x", which) == (-errno.EBADF, 0)


@pytest.mark.parametrize("image", ["text", 5, None, memoryview(b"abcdef")[::2], memoryview(b"abcd").cast("H")])
def test_what_is_no_image_is_refused(fd: int, image: object) -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        fpga.port_pr(fd, 0, image)  # type: ignore[arg-type]


@pytest.mark.parametrize("port", [-1, 1 << 32])
def test_port_that_no_card_has(fd: int, port: int) -> None:
    with pytest.raises(OverflowError):
        fpga.port_pr(fd, port, b"x")


def test_driver_that_is_none(fd: int) -> None:
    with pytest.raises(ValueError, match="DFL or OPAE"):
        fpga.port_pr(fd, 0, b"x", 2)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([0, 1]), st.integers(0, 2**32 - 1), st.binary(max_size=5000), st.integers(0, 133), st.integers(0, 2**64 - 1))
def test_same_as_the_twin(which: int, port: int, image: bytes, number: int, bits: int) -> None:
    seen = []
    for side in (fpga, oracle):
        card = Card(result=-number, bits=bits)
        with open("/dev/null", "rb+", buffering=0) as file:
            answer = through(card, functools.partial(side.port_pr, file.fileno(), port, image, which))
        # The address of the image is each side's own.
        seen.append((answer, [(command, request[:16], request[24:], held) for command, request, held in card.asked]))
    assert seen[0] == seen[1]
