# SPDX-License-Identifier: Apache-2.0
"""The allocator does as it is told; in a process of its own, since what it is told is for good."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer's allocator is in the place of the C library's"
)

ARENAS = """
import ctypes, re, threading
from deviceplugin._native import memory
one = {one}
if one:
    assert memory.one_arena()
threads = [threading.Thread(target=lambda: bytearray(100_000).find(b"x")) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""


def arenas(one: bool) -> int:
    """How many heaps the C library says it has after many threads allocated."""
    done = subprocess.run([sys.executable, "-c", ARENAS.format(one=one)], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.count("<heap nr=")


def test_all_threads_share_one_heap() -> None:
    assert arenas(one=True) == 1 < arenas(one=False)


def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    code = (
        "import ctypes\nfrom deviceplugin._native import memory\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "blocks = [ctypes.create_string_buffer(20_000) for _ in range(2000)]\nfull = rss()\nkept = blocks[-1]\ndel blocks\n"
        "assert memory.trim()\nassert rss() < full - 5000, (full, rss())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
