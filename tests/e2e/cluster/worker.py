# SPDX-License-Identifier: Apache-2.0
"""A node of the cluster: a containerd and a kubelet that obeys the API server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.cluster import network
from tests.e2e.cluster.controlplane import ControlPlane
from tests.e2e.harness.machine import Machine
from tests.e2e.harness.settings import Runtime

START_SECONDS = 60.0
STATUS_SECONDS = 1


class Worker(Machine):
    """A node. number: from 1 on. Beside what every Machine has for itself, what a DaemonSet of ours mounts from its node is private too."""

    def __init__(self, plane: ControlPlane, number: int) -> None:
        self.address = network.node_address(number)
        configuration = {
            "registerNode": True,
            "nodeStatusUpdateFrequency": f"{STATUS_SECONDS}s",  # 10 s by default, which is how long the scheduler knows nothing of a new device
            "address": self.address,
            "healthzBindAddress": self.address,
            "port": 10250,
            "healthzPort": 10248,
            "readOnlyPort": 0,
            "serializeImagePulls": False,
        }
        super().__init__(plane.bin_dir, Runtime.BUILT, configuration, plane.network)
        self.number = number
        self.plane = plane

    @property
    def binds(self) -> Mapping[str, str]:
        """See Enclosure."""
        return {**super().binds, "/var/lib/deviceplugin": "state", "/var/lib/cni": "cni"}

    def start(self) -> None:
        """Starts the node and returns once it is ready for pods. Raises WaitError, OSError; nothing is left running then."""
        kubeconfig = self.plane.kubeconfig(f"system:node:{self.name}", "system:nodes")
        certificate, key = self.plane.authority.issue(f"kubelet-{self.name}", addresses=[self.address])
        self.kubelet_config |= {"tlsCertFile": str(certificate), "tlsPrivateKeyFile": str(key)}
        self.kubelet_flags = [f"--kubeconfig={kubeconfig}", f"--node-ip={self.address}", f"--cert-dir={self.work / 'pki'}"]
        networks = self.work / "containerd" / "cni"
        networks.mkdir(parents=True)
        (networks / "10-pods.conflist").write_text(network.network_plugin(self.number, self.work / "addresses"))
        super().start()

    def load(self, archive: Path) -> None:
        """Gives the node's containerd the images in a tar."""
        self.ctr("images", "import", str(archive))

    def get(self, path: str) -> str:
        """Reads from the kubelet's own server through the API server: pods, metrics, healthz. Raises OSError."""
        text: str = self.plane.api.get(f"/api/v1/nodes/{self.name}/proxy/{path}", raw=True)
        return text

    def allocatable(self, resource: str) -> int:
        """How much of a resource the API server knows the node to have."""
        found = self.plane.api.find(f"/api/v1/nodes/{self.name}")
        return int(found["status"]["allocatable"].get(resource, 0)) if found else 0

    def is_ready(self) -> bool:
        """Whether the API server takes the node for ready, and so the scheduler."""
        found = self.plane.api.find(f"/api/v1/nodes/{self.name}")
        if found is None or found["spec"].get("taints"):
            return False
        return any(one["type"] == "Ready" and one["status"] == "True" for one in found["status"].get("conditions", []))

    def _kubelet_ready(self) -> bool:
        self._check_alive(self._kubelet, self.kubelet_log)
        return self.kubelet_socket_ready() and self.is_ready() and bool(json.loads(self.get("pods")))
