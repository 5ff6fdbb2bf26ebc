# SPDX-License-Identifier: Apache-2.0
"""The same through real system calls: a simulated resctrl that is mounted, with the kernel's inotify above it. Needs root."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deviceplugin import Health, Host
from deviceplugin.events import Scope
from deviceplugin.plugins.llc import Llc
from deviceplugin.plugins.llc.files import MAX_BYTES, HostFiles
from deviceplugin.plugins.llc.resctrl import ResctrlError
from deviceplugin.testing import fuse
from tests.helpers.llc import Node, allocation, look, masks, picked, verdict

WAIT = 5.0


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if lack := fuse.missing():
        pytest.skip(lack)
    node = Node(str(tmp_path), mode="reserve")
    at = node.host.path("/sys/fs/resctrl")
    with fuse.serve(node.sim, at):
        yield node


def plugin_of(node: Node) -> Llc:
    return Llc(node.config, Host(node.host.root), clock=lambda: node.now)


def test_group_is_made_and_removed(node: Node) -> None:
    plugin = plugin_of(node)
    devices = look(plugin)
    assert len(devices) == 14
    assert masks(node.sim) == {0: 0x780, 1: 0x780}
    edits = plugin.allocate(picked(devices, "l3.0.00", "l3.0.01"))
    assert node.groups == []
    plugin.prepare(picked(devices, "l3.0.00", "l3.0.01"))
    assert masks(node.sim, "kdp-llc.d0x3") == {0: 3, 1: 0x780}
    node.process("p", "c", edits.envs, group="kdp-llc.d0x3")
    assert verdict(plugin, allocation(devices, "p", "c", "l3.0.00", "l3.0.01")).enforced is True
    assert len(list(plugin.uninstall(True))) == 3
    assert node.groups == []
    assert masks(node.sim) == {0: 0x7FF, 1: 0x7FF}


def test_errors_are_the_kernels(node: Node) -> None:
    plugin = plugin_of(node)
    devices = look(plugin)
    for number in range(7):
        node.sim.mkdir(f"g{number}")
    with pytest.raises(ResctrlError, match=r"cannot be made: No space left on device \(Out of CLOSIDs\)") as failed:
        plugin.prepare(picked(devices, "l3.0.00"))
    assert failed.value.errno == errno.ENOSPC
    files = HostFiles(Host(node.host.root), "/sys/fs/resctrl")
    with pytest.raises(FileNotFoundError):
        files.read("nothing")
    with pytest.raises(OSError, match="Invalid argument"):
        files.write("schemata", b"L3:0=0\n")
    assert {"info", "g0"} <= set(files.list(""))
    assert "schemata" not in files.list("")
    assert not files.read_only()


def test_wiped_groups_are_seen_at_once(node: Node) -> None:
    plugin = plugin_of(node)
    devices = look(plugin)
    plugin.prepare(picked(devices, "l3.0.00"))
    seen: queue.Queue[object] = queue.Queue()
    scope = Scope()

    def watch() -> None:
        with scope:
            for change in plugin.watch():
                seen.put(change)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        deadline = threading.Event()
        while seen.empty() and not deadline.wait(0.01):  # until the watch is armed
            with contextlib.suppress(FileExistsError):
                os.mkdir(node.host.path("/sys/fs/resctrl/probe"))
            os.rmdir(node.host.path("/sys/fs/resctrl/probe"))
        while not seen.empty():
            seen.get()
        os.rmdir(node.host.path("/sys/fs/resctrl/kdp-llc.d0x1"))
        assert seen.get(timeout=WAIT)
        assert {one.health for one in look(plugin).values()} == {Health.HEALTHY}
        assert node.groups == ["kdp-llc.d0x1"]
    finally:
        scope.close()
        thread.join(WAIT)
    assert not thread.is_alive()


def test_long_files_are_cut(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"y" * (1 << 20))
    assert len(HostFiles(Host(), str(tmp_path)).read("x")) == MAX_BYTES + 1
    (tmp_path / "empty").touch()
    assert HostFiles(Host(), str(tmp_path)).read("empty") == b""
