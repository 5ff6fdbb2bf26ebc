# SPDX-License-Identifier: Apache-2.0
"""The kubelet and the daemon are killed and come back, again and again; devices and pods do not notice."""

from __future__ import annotations

import signal
import time

import pytest

from tests.e2e.daemon import FUSE, Daemon, Usage, files, generic, make_files, running
from tests.e2e.harness import Node, Pod, probe, wait_for

KUBELET_RESTARTS = 50
DAEMON_RESTARTS = 20
RSS_GROWTH = 2.0  # MiB: pages that the allocator keeps, not what a leak of one connection per restart would take


def still_runs(node: Node, name: str, pid: int) -> None:
    """The pod's process is the one that it was. A kubelet that just started takes a moment to know the pod."""
    node.wait_running(name)
    assert node.container_pid(name) == pid


def settled(daemon: Daemon, before: Usage | None = None) -> Usage:
    """What the process holds once it no longer changes, and has no more threads and descriptors than ``before``.

    A stopped server's threads take a moment to end, and one that gRPC's pool took on for a busy moment is idle for 20 s before it goes.
    """
    last = daemon.usage()

    def same() -> Usage | None:
        nonlocal last
        previous, last = last, daemon.usage()
        if before is not None and (last.threads > before.threads or last.descriptors > before.descriptors):
            return None
        return last if (previous.threads, previous.descriptors) == (last.threads, last.descriptors) else None

    time.sleep(1.0)  # not synchronisation: the figures must be those of an idle process
    return wait_for(same, 60, f"the daemon's threads and descriptors to settle, and be as before: {before}", (daemon.log,), lambda: last)


@pytest.mark.timeout(600, func_only=True)
def test_kubelet_killed_fifty_times(node: Node) -> None:
    folder = make_files(node, "k0", "k1", "k2")
    with running(node, generic(files("k", folder / "k*"))) as daemon:
        node.wait_resource("example.com/k", 3)
        with node.pod(Pod.single("survivor", command=probe(str(folder / "k0")), limits={"example.com/k": 1})):
            pid, held = node.container_pid("survivor"), node.pod_devices("survivor")
            fifth = None
            for i in range(KUBELET_RESTARTS):
                node.kill_kubelet()
                node.start_kubelet()
                node.wait_resource("example.com/k", 3)
                still_runs(node, "survivor", pid)
                if i == 4:
                    fifth = settled(daemon)
            last = settled(daemon, fifth)
            wait_for(lambda: node.pod_devices("survivor") == held, 10, "podresources to show the pod's devices as before")
            with node.pod(Pod.single("next", limits={"example.com/k": 2})):
                assert not set(node.pod_devices("next")["example.com/k"]) & set(held["example.com/k"])
        assert fifth is not None
        print(f"after 5 restarts {fifth}, after {KUBELET_RESTARTS} {last}")
        assert last.rss - fifth.rss < RSS_GROWTH


@pytest.mark.timeout(300, func_only=True)
def test_daemon_killed_twenty_times(node: Node) -> None:
    folder = make_files(node, "d0", "d1")
    with running(node, generic(files("d", folder / "d*"))) as daemon:
        node.wait_resource("example.com/d", 2)
        with node.pod(Pod.single("survivor", limits={"example.com/d": 1})):
            pid = node.container_pid("survivor")
            for _ in range(DAEMON_RESTARTS):
                daemon.end(signal.SIGKILL)
                node.wait_resource("example.com/d", 0)
                daemon.start()
                node.wait_resource("example.com/d", 2)
                still_runs(node, "survivor", pid)
            with node.pod(Pod.single("next", limits={"example.com/d": 1})):
                still_runs(node, "survivor", pid)


def test_daemon_killed_while_it_registers(node: Node) -> None:
    """Killed at growing delays from its start, so that some kills fall into the Register call; it must come back every time."""
    node.make_device("/dev/fuse", 10, 229)
    with running(node, generic(FUSE)) as daemon:
        node.wait_resource("example.com/fuse", 1)
        for delay in range(10):
            daemon.end(signal.SIGKILL)
            before = daemon.log.read_text().count("the kubelet reads the list")
            daemon.start()
            wait_for(lambda: any(node.device_plugins_dir.glob("example.com_fuse-*.sock")), 10, "the daemon's socket", (daemon.log,))
            time.sleep(delay / 1000)  # the moment of the kill, which is what varies
            daemon.restart(signal.SIGKILL)
            node.wait_resource("example.com/fuse", 1)
            assert daemon.log.read_text().count("the kubelet reads the list") > before


def test_daemon_killed_while_it_allocates(node: Node) -> None:
    """The pod that was being admitted is refused with a reason; the next one runs."""
    plugin = node.work / "slow.py"
    plugin.write_text(
        "import time\nfrom deviceplugin import Device, Edits, Plugin\n\n\nclass Slow(Plugin):\n    resource = 'example.com/slow'\n\n"
        "    def discover(self):\n        yield Device('slow')\n\n    def allocate(self, devices):\n"
        f"        open({str(node.work / 'allocating')!r}, 'w').close()\n        time.sleep(3)\n        return Edits(envs={{'SLOW': '1'}})\n"
    )
    started = node.work / "allocating"
    with running(node, {"version": "v1", "listen": "", "plugins": [{"plugin": f"{plugin}:Slow"}]}) as daemon:
        node.wait_resource("example.com/slow", 1)
        node.create_pod(Pod.single("unlucky", limits={"example.com/slow": 1}))
        wait_for(started.exists, 10, "Allocate to begin", (daemon.log,))
        daemon.end(signal.SIGKILL)
        failed = node.wait_failed("unlucky")
        assert failed.reason == "UnexpectedAdmissionError"
        node.delete_pod("unlucky")
        daemon.start()
        node.wait_resource("example.com/slow", 1)
        with node.pod(Pod.single("lucky", limits={"example.com/slow": 1})):
            assert node.pod_env("lucky")["SLOW"] == "1"


def test_kubelet_and_daemon_restarted_together(node: Node) -> None:
    node.make_device("/dev/fuse", 10, 229)
    with running(node, generic(FUSE)) as daemon, node.pod(Pod.single("bystander")):
        pid = node.container_pid("bystander")
        for _ in range(3):
            node.kill_kubelet()
            daemon.restart(signal.SIGKILL)
            node.start_kubelet()
            node.wait_resource("example.com/fuse", 1)
            still_runs(node, "bystander", pid)


def test_sigterm_leaves_no_socket_and_exits_with_zero_within_two_seconds(node: Node) -> None:
    node.make_device("/dev/fuse", 10, 229)
    daemon = Daemon(node, generic(FUSE))
    daemon.start()
    node.wait_resource("example.com/fuse", 1)
    began = time.monotonic()
    assert daemon.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 2
    assert not list(node.device_plugins_dir.glob("example.com_fuse-*"))
    assert node.kubelet_socket_ready()
    node.wait_resource("example.com/fuse", 0)
