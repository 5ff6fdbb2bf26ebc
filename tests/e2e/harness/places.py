"""Where a node keeps what, as seen from outside it."""

from __future__ import annotations

from pathlib import Path


class WorkFolder:
    """A folder for all that some processes keep and write."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def log(self, name: str) -> Path:
        """The output of the process that run() was given this name for."""
        return self.work / "logs" / f"{name}.log"

    @property
    def made_files(self) -> Path:
        """The list of files outside the work folder that go when the node goes, one a line."""
        return self.work / "made-files"


class Places(WorkFolder):
    """The paths of a node. A property names the file or folder below the work folder; its docstring, where the node itself sees it."""

    @property
    def device_plugins_dir(self) -> Path:
        """/var/lib/kubelet/device-plugins of the node."""
        return self.work / "kubelet" / "device-plugins"

    @property
    def kubelet_socket(self) -> Path:
        """Where device plugins register."""
        return self.device_plugins_dir / "kubelet.sock"

    @property
    def checkpoint(self) -> Path:
        """The kubelet's record of allocations, a JSON file."""
        return self.device_plugins_dir / "kubelet_internal_checkpoint"

    @property
    def plugins_registry_dir(self) -> Path:
        """/var/lib/kubelet/plugins_registry of the node."""
        return self.work / "kubelet" / "plugins_registry"

    @property
    def pod_resources_socket(self) -> Path:
        """The socket of the podresources service."""
        return self.work / "kubelet" / "pod-resources" / "kubelet.sock"

    @property
    def run_dir(self) -> Path:
        """/run of the node, private to it."""
        return self.work / "run"

    @property
    def cdi_dir(self) -> Path:
        """/var/run/cdi of the node, where its containerd looks for CDI files."""
        return self.run_dir / "cdi"

    @property
    def kubelet_log(self) -> Path:
        """What all kubelets of this node have written."""
        return self.log("kubelet")

    @property
    def containerd_log(self) -> Path:
        """What containerd has written."""
        return self.log("containerd")

    @property
    def manifests_dir(self) -> Path:
        """Where the kubelet looks for static pods."""
        return self.work / "manifests"

    @property
    def resolv_conf(self) -> Path:
        """What containers get as /etc/resolv.conf."""
        return self.work / "resolv.conf"

    @property
    def pod_logs_dir(self) -> Path:
        """What containers write: NAMESPACE_POD_UID/CONTAINER/RESTARTS.log."""
        return self.work / "podlogs"

    @property
    def containerd_socket(self) -> Path:
        """containerd's socket."""
        return self.run_dir / "containerd" / "containerd.sock"

    @property
    def bundles_dir(self) -> Path:
        """One folder for each container that runs, called by its id, with its config.json and init.pid."""
        return self.run_dir / "containerd" / "io.containerd.runtime.v2.task" / "k8s.io"
