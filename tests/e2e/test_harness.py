"""The harness itself: nodes start, run pods, survive what tests will do to them, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.e2e.harness import Container, Node, Pod, Runtime, WaitError, probe, wait_for
from tests.e2e.harness.holder import groups_below


@pytest.fixture(params=["node", "cdi_node"])
def any_node(request: pytest.FixtureRequest) -> Node:
    node: Node = request.getfixturevalue(request.param)
    return node


def in_namespace(namespace: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "ns" / "mnt") == namespace:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_pod_without_resources_is_refused_the_device(any_node: Node) -> None:
    command = probe("/dev/null", "/dev/fuse", mknod=["c:1:3", "c:10:229"])
    with any_node.pod(Pod.single("plain", command=command, env={"COLOUR": 'a "b" \\ ü'})) as status:
        seen = any_node.probe("plain")
        assert seen.devices == {"/dev/null": "ok", "/dev/fuse": "ENOENT", "c:1:3": "ok", "c:10:229": "EPERM"}
        assert seen.env["COLOUR"] == any_node.pod_env("plain")["COLOUR"] == 'a "b" \\ ü'
        assert any_node.pod_devices("plain") == {}
        assert status.containers["main"].allocated == {}
    assert any_node.pod_status("plain") is None


def test_a_name_is_free_again_after_deletion(any_node: Node) -> None:
    uids = set()
    for _ in range(2):
        with any_node.pod(Pod.single("again")) as status:
            uids.add(status.uid)
    assert len(uids) == 2


def test_running_pod_survives_a_killed_kubelet(any_node: Node) -> None:
    with any_node.pod(Pod.single("survivor", command=probe("/dev/null"))):
        pid, seq = any_node.container_pid("survivor"), any_node.probe("survivor").seq
        any_node.kill_kubelet()
        assert not any_node.kubelet_socket_ready()
        any_node.start_kubelet()
        any_node.wait_running("survivor")
        assert any_node.container_pid("survivor") == pid
        assert any_node.probe("survivor").seq == seq + 1


def test_running_pod_survives_a_killed_containerd(any_node: Node) -> None:
    with any_node.pod(Pod.single("survivor", command=probe("/dev/null"))):
        pid = any_node.container_pid("survivor")
        any_node.kill_containerd()
        any_node.start_containerd()
        assert any_node.probe("survivor").devices == {"/dev/null": "ok"}
        assert any_node.container_pid("survivor") == pid


def test_init_containers_and_host_paths(node: Node) -> None:
    shared = node.work / "shared"
    shared.mkdir(exist_ok=True)
    writer = Container("writer", command=["/bin/sh", "-c", "echo done >/out/result"], mounts={"/out": str(shared)})
    sidecar = Container("sidecar", always=True)
    with node.pod(Pod("staged", [Container()], init=[writer, sidecar])) as status:
        assert (shared / "result").read_text() == "done\n"
        assert status.init["sidecar"].running
        assert "terminated" in status.init["writer"].state


def test_unsatisfiable_pod_fails_and_says_why(node: Node) -> None:
    node.create_pod(Pod.single("greedy", limits={"cpu": 100000}))
    try:
        assert "error finding a set of pods to preempt" in node.wait_failed("greedy").message
        with pytest.raises(WaitError, match="pod greedy failed instead of running: UnexpectedAdmissionError"):
            node.wait_running("greedy")
    finally:
        node.delete_pod("greedy")


def test_processes_run_inside_the_node(node: Node) -> None:
    process = node.run(
        ["sh", "-c", 'readlink /proc/self/ns/mnt; pwd; echo "$GREETING"; ls /var/lib/kubelet; exec sleep 60'], "shell", {"GREETING": "hello"}
    )
    log = node.log("shell")
    wait_for(lambda: "plugins_registry" in log.read_text(), 5, "the listing", (log,))
    assert log.read_text().splitlines()[:3] == [os.readlink(node.namespace), str(Path.cwd()), "hello"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM


def test_kubelet_configuration_changes_with_a_restart(node: Node) -> None:
    node.kubelet_config["topologyManagerPolicy"] = "best-effort"
    try:
        node.restart_kubelet()
        assert "topologyManagerPolicy: best-effort" in (node.work / "kubelet.yaml").read_text()
    finally:
        del node.kubelet_config["topologyManagerPolicy"]
        node.restart_kubelet()


def test_stop_leaves_nothing_behind(e2e_bin: Path) -> None:
    # What the daemons would write to if they were not told otherwise.
    outside = [Path(path) for path in ("/opt/containerd", "/etc/cni", "/usr/libexec/kubernetes", "/var/lib/containerd", "/var/log/pods")]
    before = [path.exists() for path in outside]
    node = Node(e2e_bin)
    node.start()
    node.run(["sleep", "600"])
    node.create_pod(Pod.single("left", command=probe("/dev/null")))
    node.wait_running("left")
    container, namespace = node.container_pid("left"), os.readlink(node.namespace)
    device = Path("/dev") / node.name
    node.make_device(device, 1, 3)
    assert len(in_namespace(namespace)) >= 4  # holder, containerd, shim, kubelet

    node.stop()

    assert in_namespace(namespace) == []
    assert not Path(f"/proc/{container}/root/bin").exists()
    assert list(groups_below(node.name)) == []
    assert node.name not in Path("/proc/mounts").read_text()
    assert not device.exists()
    assert not node.work.exists()
    assert [path.exists() for path in outside] == before


def test_node_ends_with_the_tests_even_if_they_are_killed(e2e_bin: Path) -> None:
    script = f"""
        import signal
        from pathlib import Path
        from tests.e2e.harness import Node, Pod, Runtime, probe
        node = Node(Path({str(e2e_bin)!r}), Runtime.BUILT)
        node.start()
        with node.pod(Pod.single("left", command=probe("/dev/null"))):
            print(node.name, node.work, node.namespace.readlink(), flush=True)
            signal.pause()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        name, work, namespace = victim.stdout.readline().split()
        assert len(in_namespace(namespace)) >= 4
        victim.kill()
    wait_for(lambda: not in_namespace(namespace), 20, "the node's processes to end")
    assert list(groups_below(name)) == []
    # The logs stay, for whoever wants to know.
    assert (Path(work) / "logs" / "kubelet.log").exists()
    subprocess.run(["rm", "-rf", work], check=True)


def test_failed_start_names_the_cause_and_leaves_nothing(e2e_bin: Path) -> None:
    node = Node(e2e_bin, Runtime.SYSTEM, {"topologyManagerPolicy": "nonsense"})
    with pytest.raises(WaitError, match=r'(?s)kubelet ended with status 1 .*"nonsense.{1,2} must be one of'):
        node.start()
    assert list(groups_below(node.name)) == []
    node.stop()
