# SPDX-License-Identifier: Apache-2.0
"""The manifest exactly as it is shipped, on nodes that have nothing it could advertise, and what its container may do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.cluster.deployment import MANIFEST, Deployment
from tests.e2e.cluster.image import Image

NAME = "docker.io/library/deviceplugin:latest"  # what containerd takes the manifest's name for
MAY_WRITE = {"/run/deviceplugin", "/var/lib/deviceplugin", "/var/run/cdi", "/var/lib/kubelet/device-plugins"}
MAY_NOT_WRITE = {"/", "/etc/deviceplugin", "/tmp", "/dev", "/driver-root/usr", "/sys", "/var/lib/kubelet/pod-resources"}
TRY = """
import os, sys
for folder in sys.argv[1:]:
    try:
        with open(f"{folder}/.try", "w"):
            os.unlink(f"{folder}/.try")
    except OSError:
        continue
    print(folder)
"""


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The DaemonSet of the file itself."""
    cluster.load(image.named([NAME], tmp_path_factory.mktemp("named")))
    deployment = Deployment(cluster, {})
    cluster.kubectl("apply", "-f", MANIFEST)
    deployment.wait_served()
    yield deployment
    deployment.delete()


def test_it_is_ready_on_every_node_and_advertises_nothing(cluster: Cluster, deployment: Deployment) -> None:
    for node in cluster.nodes:
        (daemon,) = deployment.status(node)
        assert daemon["ready"]
        assert daemon["resources"] == []


def test_its_container_has_no_privileges(cluster: Cluster, deployment: Deployment) -> None:
    node = cluster.nodes[0]
    lines = deployment.run(node, "python3.11", "-c", "print(open('/proc/1/status').read())").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert int(status["NoNewPrivs"]) == 1
    assert int(status["Seccomp"]) == 2  # a filter
    assert set(deployment.run(node, "python3.11", "-c", TRY, *MAY_WRITE, *MAY_NOT_WRITE).split()) == MAY_WRITE
    mounts = {one["mountPath"] for one in deployment.pod_on(node)["spec"]["containers"][0]["volumeMounts"]}
    assert not any("serviceaccount" in mount for mount in mounts)
