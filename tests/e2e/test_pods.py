# SPDX-License-Identifier: Apache-2.0
"""Pods that ask for a device get it, and nobody else does."""

from __future__ import annotations

from tests.e2e.daemon import FUSE, files, generic, make_files, running
from tests.e2e.harness import Node, Pod, probe

ASK = {"example.com/fuse": 1}
COMMAND = probe("/dev/fuse", mknod=["c:10:229"])


def test_pod_with_the_resource_opens_the_device_and_pod_without_it_is_refused_by_the_cgroup(node: Node) -> None:
    node.make_device("/dev/fuse", 10, 229)
    with running(node, generic(FUSE)):
        node.wait_resource("example.com/fuse", 1)
        with node.pod(Pod.single("with", command=COMMAND, limits=ASK)), node.pod(Pod.single("without", command=COMMAND)):
            assert node.probe("with").devices["/dev/fuse"] == "ok"
            assert node.probe("without").devices == {"/dev/fuse": "ENOENT", "c:10:229": "EPERM"}


def test_two_pods_never_share_a_device(node: Node) -> None:
    folder = make_files(node, "pair0", "pair1")
    with running(node, generic(files("pair", folder / "pair*"))):
        node.wait_resource("example.com/pair", 2)
        with node.pod(Pod.single("one", limits={"example.com/pair": 1})), node.pod(Pod.single("two", limits={"example.com/pair": 1})):
            first, second = (node.pod_devices(name)["example.com/pair"] for name in ("one", "two"))
            assert not set(first) & set(second)
            node.create_pod(Pod.single("three", limits={"example.com/pair": 1}))
            assert "requested number of devices unavailable for example.com/pair. Requested: 1, Available: 0" in node.wait_failed("three").message


def test_three_pods_share_one_device_and_a_fourth_is_refused(node: Node) -> None:
    node.make_device("/dev/fuse", 10, 229)
    with running(node, generic(FUSE, resources={"example.com/fuse": {"replicas": 3, "renameByDefault": True}})):
        shared = {"example.com/fuse.shared": 1}
        node.wait_resource("example.com/fuse.shared", 3)
        with (
            node.pod(Pod.single("a", command=COMMAND, limits=shared)),
            node.pod(Pod.single("b", command=COMMAND, limits=shared)),
            node.pod(Pod.single("c", command=COMMAND, limits=shared)),
        ):
            assert {node.probe(name).devices["/dev/fuse"] for name in "abc"} == {"ok"}
            node.create_pod(Pod.single("d", limits=shared))
            assert "Requested: 1, Available: 0" in node.wait_failed("d").message


def test_container_that_asks_for_two_shares_is_refused_with_the_reason(node: Node) -> None:
    node.make_device("/dev/fuse", 10, 229)
    with running(node, generic(FUSE, resources={"example.com/fuse": {"replicas": 3, "failRequestsGreaterThanOne": True}})):
        node.wait_resource("example.com/fuse", 3)
        node.create_pod(Pod.single("greedy", limits={"example.com/fuse": 2}))
        failed = node.wait_failed("greedy")
        assert failed.reason == "UnexpectedAdmissionError"
        assert "a container asked for 2 shares" in failed.message


def test_podresources_and_the_daemon_agree_on_who_holds_what(node: Node) -> None:
    folder = make_files(node, "held0", "held1")
    with running(node, generic(files("held", folder / "held*"))) as daemon:
        node.wait_resource("example.com/held", 2)
        with node.pod(Pod.single("holder", limits={"example.com/held": 1})):
            (held,) = node.pod_devices("holder")["example.com/held"]

            def said() -> dict[str, list[str]]:
                (status,) = daemon.devices()
                (resource,) = status["resources"]
                return {device["id"]: [holder["pod"] for holder in device["heldBy"]] for device in resource["devices"]}

            daemon.wait_view(lambda: said()[held])
            seen = said()
            assert seen.pop(held) == [f"holder-{node.name}"]
            assert list(seen.values()) == [[]]
        daemon.wait_view(lambda: not said()[held])
