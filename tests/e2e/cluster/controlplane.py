# SPDX-License-Identifier: Apache-2.0
"""The control plane: etcd, API server, scheduler, controller manager, in a network namespace of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.cluster import network
from tests.e2e.cluster.api import Api, ApiError
from tests.e2e.cluster.certificates import Authority
from tests.e2e.harness.enclosure import Enclosure
from tests.e2e.harness.waiting import WaitError, tail, wait_for

START_SECONDS = 60.0


class ControlPlane(Enclosure):
    """A Kubernetes without nodes. What it hears and says stays in its network namespace, and on one unix socket that ``api`` uses.

    bin_dir: what tools/e2e/provision.py prints.
    """

    def __init__(self, bin_dir: Path) -> None:
        super().__init__(new_network=True)
        self.bin_dir = bin_dir
        self.api = Api(self.work / "api.sock")
        self._kubeconfig = self.work / "absent"
        self._programs: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, nodes: Sequence[str]) -> None:
        """Starts everything and returns once the API server answers. nodes: the addresses that the nodes will have.

        Raises WaitError, OSError; nothing is left running then.
        """
        try:
            self.start_holder()
            self._set_up_loopback([network.CONTROL_PLANE, *nodes])
            self.authority = Authority(self.work / "certificates")
            self._kubeconfig = self.kubeconfig("admin", "system:masters")
            self._start_programs()
        except BaseException:
            self.stop(keep=True)
            raise

    def kubeconfig(self, name: str, group: str = "") -> Path:
        """A file with which a program inside the namespace talks to the API server as somebody."""
        return self.authority.kubeconfig(network.API_SERVER, name, group)

    def kubectl(self, *arguments: str | Path, text: str = "") -> str:
        """Runs kubectl as an administrator and returns what it prints. text: its standard input. Raises OSError with its message."""
        argv = self.inside([self.bin_dir / "kubectl", f"--kubeconfig={self._kubeconfig}", f"--cache-dir={self.work / 'kubectl'}", *arguments])
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def _set_up_loopback(self, addresses: Sequence[str]) -> None:
        batch = "".join(f"{line}\n" for line in ("link set lo up", *(f"addr add {address}/32 dev lo" for address in addresses)))
        done = subprocess.run(self.inside(["ip", "-batch", "-"]), input=batch, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"the loopback interface cannot be set up: {done.stderr.strip()}")

    def _start_programs(self) -> None:
        data = self.work / "etcd"
        etcd = [f"--data-dir={data}", "--unsafe-no-fsync", f"--listen-peer-urls={network.ETCD_PEERS}"]
        urls = [f"--listen-client-urls={network.ETCD}", f"--advertise-client-urls={network.ETCD}"]
        self._program("etcd", *etcd, *urls)
        self._program("kube-apiserver", *self._api_server())
        self._program("kubectl", f"--kubeconfig={self._kubeconfig}", "proxy", f"--unix-socket={self.api.socket}")
        wait_for(self._ready, START_SECONDS, "the API server to be ready", (self.log("kube-apiserver"), self.log("etcd")))
        # Not before: the roles that let them in are made by the API server as it starts, and they do not try twice.
        self._program("kube-scheduler", *self._client("kube-scheduler"))
        account = [f"--service-account-private-key-file={self.authority.account_key}", "--use-service-account-credentials=true"]
        account += [f"--root-ca-file={self.authority.certificate}"]  # which pods with a service account get as ca.crt
        self._program("kube-controller-manager", *self._client("kube-controller-manager"), *account)

    def _client(self, name: str) -> list[str]:
        # They serve nothing that anybody here would ask.
        return [f"--kubeconfig={self.kubeconfig(f'system:{name}')}", "--secure-port=0", "--leader-elect=false"]

    def _api_server(self) -> list[str]:
        authority = self.authority
        certificate, key = authority.issue("kube-apiserver", addresses=["127.0.0.1", network.CONTROL_PLANE])
        client_certificate, client_key = authority.issue("kube-apiserver-client", "system:masters")
        flags = {
            "etcd-servers": network.ETCD,
            "bind-address": "0.0.0.0",  # of the namespace: pods that are to talk to it come by the control plane's address
            "secure-port": network.API_SERVER.split(":")[1],
            "advertise-address": network.CONTROL_PLANE,
            "tls-cert-file": certificate,
            "tls-private-key-file": key,
            "client-ca-file": authority.certificate,
            "kubelet-client-certificate": client_certificate,
            "kubelet-client-key": client_key,
            "kubelet-certificate-authority": authority.certificate,
            "kubelet-preferred-address-types": "InternalIP",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": authority.account_key,
            "service-account-signing-key-file": authority.account_key,
            "service-cluster-ip-range": network.SERVICES,
            "allow-privileged": "true",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "endpoint-reconciler-type": "none",
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def _program(self, name: str, *arguments: str) -> None:
        self._programs[name] = self.run([self.bin_dir / name, *arguments], name)

    def _ready(self) -> bool:
        for name, process in self._programs.items():
            if (status := process.poll()) is not None:
                raise WaitError(f"{name} ended with status {status} instead of starting\n--- end of {self.log(name)}:\n{tail(self.log(name))}")
        try:
            return self.api.get("/readyz", raw=True) == "ok" and bool(self.api.get("/api/v1/namespaces/kube-system"))
        except ApiError:
            return False
