# SPDX-License-Identifier: Apache-2.0
"""Slots of parallel file systems on a real node: the tag is in the container, and the private mount is in its container and in no other.

No parallel file system is at hand. A tmpfs stands in for the private mount, and a few files for what Lustre's client shows of itself.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.daemon import Daemon, running
from tests.e2e.harness import Node, Pod, wait_for

RESOURCE = "example.com/pfs-scratch"
ASK = {RESOURCE: 1}


def settings(node: Node, *filesystems: Mapping[str, Any]) -> dict[str, Any]:
    """The daemon runs in the node's own mount namespace, in which this machine's process 1 is not."""
    config = {"domain": "example.com", "nodeProcess": "/proc/self", "directory": str(node.work / "pfs"), "filesystems": list(filesystems)}
    plugin = {"plugin": "deviceplugin.plugins.pfs:Pfs", "name": "pfs", "config": config}
    return {"version": "v1", "listen": "", "nodeName": "node1", "plugins": [plugin]}


def in_node(node: Node, *argv: str) -> str:
    return subprocess.run(["nsenter", f"--mount={node.namespace}", "--", *argv], capture_output=True, text=True, check=True).stdout


def mounts_of(node: Node, pod: str) -> dict[str, str]:
    """The numbers of the file systems that a container sees, by where."""
    lines = Path(f"/proc/{node.container_pid(pod)}/mountinfo").read_text().splitlines()
    return {line.split(" ")[4]: line.split(" ")[2] for line in lines}


def environ_of(node: Node, pod: str) -> dict[str, str]:
    """What a container's first process was started with, as Lustre's client reads it."""
    text = Path(f"/proc/{node.container_pid(pod)}/environ").read_text()
    return dict(one.split("=", 1) for one in text.split("\0") if one)


def private_mounts(node: Node) -> dict[str, str]:
    lines = in_node(node, "cat", "/proc/self/mountinfo").splitlines()
    return {line.split(" ")[4]: line.split(" ")[2] for line in lines if f"{node.work}/pfs/" in line.split(" ")[4]}


def enforced(daemon: Daemon) -> dict[str, bool | None]:
    (status,) = daemon.devices()
    return {one["id"]: one["enforced"] for resource in status["resources"] for one in resource["devices"] if one["heldBy"]}


def private(options: str) -> dict[str, Any]:
    own = {"source": "none", "fstype": "tmpfs", "options": options}
    return {"name": "scratch", "type": "other", "tier": "T3", "slots": 3, "privateMount": own}


def test_each_container_has_a_mount_of_its_own_which_outlives_a_crash_of_ours_and_goes_with_the_pod(node: Node) -> None:
    with running(node, settings(node, private("size={slots}024k"))) as daemon:
        node.wait_resource(RESOURCE, 3)
        with node.pod(Pod.single("one", limits=ASK)), node.pod(Pod.single("two", limits={RESOURCE: 2})), node.pod(Pod.single("none")):
            table = private_mounts(node)
            assert len(table) == 2
            seen = [mounts_of(node, pod).get("/pfs/scratch") for pod in ("one", "two")]
            assert sorted(seen) == sorted(table.values())  # type: ignore[type-var]
            assert len(set(seen)) == 2
            assert "/pfs/scratch" not in mounts_of(node, "none")
            assert node.pod_env("two")["KDP_PFS_SCRATCH_SLOTS"].count(",") == 1
            assert "size=2024k" in in_node(node, "cat", "/proc/self/mountinfo")
            daemon.wait_view(lambda: len(enforced(daemon)) == 3 and set(enforced(daemon).values()) == {True})
            daemon.restart()
            node.wait_resource(RESOURCE, 3)
            daemon.wait_view(lambda: len(enforced(daemon)) == 3 and set(enforced(daemon).values()) == {True})
            assert private_mounts(node) == table
    done = subprocess.run(
        ["nsenter", f"--mount={node.namespace}", "--", "deviceplugin", "uninstall", "--config", str(daemon.config)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert private_mounts(node) == {}


def test_a_private_mount_that_is_taken_away_is_found_out(node: Node) -> None:
    with running(node, settings(node, private("size=1024k"))) as daemon:
        node.wait_resource(RESOURCE, 3)
        with node.pod(Pod.single("one", limits=ASK)):
            daemon.wait_view(lambda: set(enforced(daemon).values()) == {True})
            (target,) = private_mounts(node)
            in_node(node, "umount", target)
            daemon.wait_view(lambda: set(enforced(daemon).values()) == {False})


@contextlib.contextmanager
def lustre(node: Node) -> Iterator[int]:
    """What Lustre's client shows of itself, inside the node only: a line in a mount table, and its files in /sys. The process with that table."""
    place, sys_fs, table = node.work / "scratch", node.work / "sysfs", node.work / "mountinfo"
    place.mkdir()
    sys_fs.mkdir()
    table.write_text(f"80 25 0:52 / {place} rw,relatime - lustre 10.0.0.1@tcp:/scratch rw\n")
    holder = subprocess.Popen(["nsenter", f"--mount={node.namespace}", "--", "sleep", "600"])
    wait_for(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", 5, "the process with the table", ())
    script = f"""
    mount -t tmpfs none {sys_fs}
    mount --make-rprivate {sys_fs}
    mkdir {sys_fs}/cgroup {sys_fs}/lustre
    mount --rbind /sys/fs/cgroup {sys_fs}/cgroup
    mount --make-rprivate {sys_fs}/cgroup
    echo healthy > {sys_fs}/lustre/health_check
    echo KDP_PFS_JOBID > {sys_fs}/lustre/jobid_var
    mount --rbind {sys_fs} /sys/fs
    mount --bind {table} /proc/{holder.pid}/mountinfo
    """
    try:
        in_node(node, "sh", "-ec", script)
        yield holder.pid
    finally:
        in_node(node, "sh", "-c", f"umount /proc/{holder.pid}/mountinfo; umount -l /sys/fs; umount -l {sys_fs}; true")
        holder.kill()
        holder.wait()


def test_the_tag_is_on_every_process_of_the_container_and_a_pod_that_sets_it_is_found_out(node: Node) -> None:
    servers = {"oss": 8, "cpts": 2}
    filesystem = {"name": "scratch", "type": "lustre", "tier": "T1", "slots": 4, "bandwidthPerSlot": "1G", "servers": servers}
    with lustre(node) as process:
        configuration = settings(node, {**filesystem, "mountPoint": str(node.work / "scratch")})
        configuration["plugins"][0]["config"]["nodeProcess"] = f"/proc/{process}"
        with running(node, configuration) as daemon:
            node.wait_resource(RESOURCE, 4)
            liar = Pod.single("liar", limits=ASK, env={"KDP_PFS_JOBID": "kdp4.node1.0"})
            with node.pod(Pod.single("one", limits={RESOURCE: 2})), node.pod(liar), node.pod(Pod.single("none")):
                slots = sorted(int(one.rpartition(".")[2]) for one in node.pod_devices("one")[RESOURCE])
                assert environ_of(node, "one")["KDP_PFS_JOBID"] == f"kdp2.node1.{slots[0]}"
                assert environ_of(node, "one")["KDP_PFS_SCRATCH_ENFORCEMENT"] == "T1"
                assert environ_of(node, "liar")["KDP_PFS_JOBID"] == "kdp4.node1.0"
                assert "KDP_PFS_JOBID" not in environ_of(node, "none")
                (lie,) = node.pod_devices("liar")[RESOURCE]
                wanted = {**{f"pfs.scratch.{slot:02}": True for slot in slots}, lie: False}
                daemon.wait_view(lambda: enforced(daemon) == wanted)
