# SPDX-License-Identifier: Apache-2.0
"""Our DaemonSet in the cluster, from the manifest that the project ships, with as few changes as the machine needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.cluster.api import Object
from tests.e2e.cluster.cluster import Cluster, is_ready
from tests.e2e.cluster.worker import Worker

MANIFEST = Path(__file__).resolve().parents[3] / "daemonset.yaml"
NAMESPACE = "/api/v1/namespaces/kube-system"
SET = "/apis/apps/v1/namespaces/kube-system/daemonsets/deviceplugin"
PODS = f"{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name%3Ddeviceplugin"
SECONDS = 60.0


class Deployment:
    """The DaemonSet "deviceplugin".

    configuration: what replaces the manifest's config.yaml. folders: of the node, mounted into the container at the same path.
    """

    def __init__(self, cluster: Cluster, configuration: Mapping[str, Any], folders: Sequence[str] = ()) -> None:
        self.cluster = cluster
        self._configuration = configuration
        self._folders = folders

    def manifest(self, image: str) -> list[Object]:
        """What is applied."""
        config, daemons = yaml.safe_load_all(MANIFEST.read_text())
        config["data"]["config.yaml"] = yaml.safe_dump(dict(self._configuration))
        template = daemons["spec"]["template"]["spec"]
        (container,) = template["containers"]
        container["image"] = image
        # There is no registry: the nodes were given the image.
        container["imagePullPolicy"] = "Never"
        for number, folder in enumerate(self._folders):
            container["volumeMounts"].append({"name": f"test-{number}", "mountPath": folder, "readOnly": True})
            template["volumes"].append({"name": f"test-{number}", "hostPath": {"path": folder, "type": "Directory"}})
        return [config, daemons]

    def apply(self, image: str) -> None:
        """Does what `kubectl apply -f` does, and returns at once."""
        self.cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(self.manifest(image)))

    def wait_served(self, timeout: float = SECONDS) -> None:
        """Waits until the newest version runs on every node and is ready, and no other does."""
        self.cluster.wait(self._settled, timeout, "the DaemonSet to be up to date and ready", self._describe)

    def _settled(self) -> bool:
        found = self.cluster.api.find(SET)
        if found is None or found["status"].get("observedGeneration") != found["metadata"]["generation"]:
            return False
        nodes, pods = len(self.cluster.nodes), self.pods()
        return found["status"].get("updatedNumberScheduled") == nodes and len(pods) == nodes and all(map(is_ready, pods))

    def pods(self) -> list[Object]:
        """Its pods, those that end included."""
        return self.cluster.api.list(PODS)

    def pod_on(self, node: Worker) -> Object:
        """The only pod of a node. Raises LookupError."""
        found = [pod for pod in self.pods() if pod["spec"].get("nodeName") == node.name]
        if len(found) != 1:
            raise LookupError(f"{node.name} has {len(found)} pods of ours")
        return found[0]

    def log(self, pod: Object) -> str:
        """What a pod's daemon has written."""
        text: str = self.cluster.api.get(f"{NAMESPACE}/pods/{pod['metadata']['name']}/log", raw=True)
        return text

    def run(self, node: Worker, *argv: str) -> str:
        """Runs a command in the daemon's container of a node, as `kubectl exec` does, and returns what it prints. Raises OSError."""
        return self.cluster.kubectl("-n", "kube-system", "exec", self.pod_on(node)["metadata"]["name"], "--", *argv)

    def status(self, node: Worker) -> list[Object]:
        """What `deviceplugin devices` says there, one entry for each daemon."""
        found: list[Object] = json.loads(self.run(node, "deviceplugin", "devices", "-o", "json"))["daemons"]
        return found

    def delete(self) -> None:
        """Takes it away and waits until its pods are gone."""
        self.cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", str(MANIFEST))
        self.cluster.wait(lambda: not self.pods(), SECONDS, "the DaemonSet's pods to be gone", self._describe)

    def _describe(self) -> str:
        logs = [f"--- {pod['metadata']['name']} on {pod['spec'].get('nodeName')}:\n{self._log(pod)}" for pod in self.pods()]
        return "\n".join([self.cluster.events(), *logs])

    def _log(self, pod: Object) -> str:
        try:
            return "\n".join(self.log(pod).splitlines()[-15:])
        except OSError as error:
            return str(error)
