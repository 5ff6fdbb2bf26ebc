# SPDX-License-Identifier: Apache-2.0
"""A file system that really hangs: FUSE, whose server has taken the question and does not answer it. Then not even SIGKILL ends whoever asked.

See request_wait_answer() in the kernel's fs/fuse/dev.c: once a request is in user space, the wait for it cannot be killed.
"""

from __future__ import annotations

import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deviceplugin import Host
from deviceplugin.plugins.pfs.commands import Commands

_IN = struct.Struct("<IIQQIIII")
_INIT = 26
LIMIT = 1.0


class Fuse:
    """A file system's server, which answers that it is there and nothing else."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Whoever waits for an answer gets an error: nobody is left behind. Idempotent."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while not self._over.is_set():
            if poll.poll(20):
                request = os.read(self.fd, 1 << 20)
                _, operation, unique, *_ = _IN.unpack_from(request)
                if operation == _INIT:
                    major, minor = struct.unpack_from("<II", request, _IN.size)
                    body = struct.pack("<IIIIHHIIHHI7I", major, min(minor, 31), 0, 0, 1, 1, 4096, 1, 1, 0, 0, *[0] * 7)
                    os.write(self.fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[tuple[str, str, Fuse]]:
    """A process in a mount namespace of its own, below /proc, the directory where a file system hangs there, and its server."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("needs root, /dev/fuse, unshare and nsenter")
    place = tmp_path / "place"
    place.mkdir()
    node = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo ok && read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert node.stdin is not None
    assert node.stdout is not None
    fuse = Fuse()
    try:
        if node.stdout.readline() != b"ok\n":
            pytest.skip("this machine lets nobody have a mount namespace of its own")
        options = f"fd={fuse.fd},rootmode=40000,user_id=0,group_id=0"
        argv = ["nsenter", f"--mount=/proc/{node.pid}/ns/mnt", "--", "mount", "-i", "-t", "fuse", "-o", options, "none", str(place)]
        if subprocess.run(argv, pass_fds=[fuse.fd], capture_output=True).returncode != 0:
            pytest.skip("this machine lets nobody mount FUSE")
        fuse.start()
        yield f"/proc/{node.pid}", str(place), fuse
    finally:
        fuse.end()
        node.stdin.close()
        node.stdout.close()
        node.wait()


def test_the_one_who_asks_is_a_child_that_is_left_behind_and_is_the_only_one(hanging: tuple[str, str, Fuse], tmp_path: Path) -> None:
    process, place, fuse = hanging
    commands = Commands(Host(), process)
    lock = str(tmp_path / "lock")
    began = time.monotonic()
    first = commands.statfs({place: lock}, LIMIT)[place]
    assert time.monotonic() - began < LIMIT + 1
    assert "cannot be killed: the kernel waits for the file system" in first
    (child,) = commands._left
    assert Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"
    for one in (commands, Commands(Host(), process)):
        began = time.monotonic()
        again = one.statfs({place: lock}, LIMIT)[place]
        assert again == f"hang: {place} does not answer, and process {child.pid} still hangs there; no other is started"
        assert time.monotonic() - began < LIMIT / 2, "a child that was killed in vain is not waited for again"
    assert commands._left == [child]
    assert commands.statfs({"/": str(tmp_path / "other")}, 5.0) == {"/": ""}, "other file systems are asked as ever"
    fuse.end()
    child.wait(5)
    assert commands.statfs({place: lock}, 5.0)[place].endswith("Transport endpoint is not connected")
