# SPDX-License-Identifier: Apache-2.0
"""deviceplugin._native.fpga with fcntl, ctypes and struct."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct

DFL, OPAE = 0, 1
MAGIC = {DFL: 0xB6, OPAE: 0xB5}
REQUEST = {DFL: struct.Struct("=IIIIQ"), OPAE: struct.Struct("=IIIIQQ")}


def api_version(fd: int, driver: int = DFL) -> int:
    try:
        return fcntl.ioctl(fd, MAGIC[driver] << 8)
    except OSError as error:
        return -(error.errno or errno.EIO)


def port_pr(fd: int, port: int, image: bytes, driver: int = DFL) -> tuple[int, int]:
    if not image:
        return -errno.EINVAL, 0
    held = ctypes.create_string_buffer(image, len(image))
    layout = REQUEST[driver]
    fields = [layout.size, 0, port, len(image), ctypes.addressof(held)] + ([0] if driver == OPAE else [])
    request = bytearray(layout.pack(*fields))
    try:
        fcntl.ioctl(fd, MAGIC[driver] << 8 | 0x80, request, True)
    except OSError as error:
        return -(error.errno or errno.EIO), layout.unpack(request)[5] if driver == OPAE else 0
    return 0, layout.unpack(request)[5] if driver == OPAE else 0
