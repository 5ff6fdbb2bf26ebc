"""The configuration files of a node's daemons."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import yaml

from tests.e2e.harness.places import Places

PAUSE_IMAGE = "deviceplugin.test/pause:1"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CDI_DIR = "/var/run/cdi"
CNI_PROGRAMS = "/usr/lib/cni"


class Runtime(Enum):
    """Which containerd a node runs."""

    SYSTEM = "system"  # the distribution's, on PATH. Debian 12 has 1.6: no CDI, and many clusters still run it
    BUILT = "built"  # 2.x out of tools/e2e, with CDI


def containerd_toml(runtime: Runtime, root: Path, snapshotter: str) -> str:
    """containerd's configuration. root: the folder for all that it keeps, which would otherwise appear in /var/lib, /opt and /etc.

    restrict_oom_score_adj: a container asks for an OOM score below its parent's, which takes CAP_SYS_RESOURCE; root of a virtual
    machine or container may lack it, and every pod would fail with "can't get final child's PID from pipe".
    """
    daemon = f"""
root = "{root}/root"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[ttrpc]
  address = "{CONTAINERD_SOCKET}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"""
    if runtime is Runtime.SYSTEM:
        return f"""version = 2
{daemon}
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE_IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{root}/cni"
    bin_dir = "{CNI_PROGRAMS}"
"""
    # Version 3 split the CRI settings in two.
    return f"""version = 3
{daemon}
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  enable_cdi = true
  cdi_spec_dirs = ["{CDI_DIR}"]
  [plugins."io.containerd.cri.v1.runtime".cni]
    conf_dir = "{root}/cni"
    bin_dir = "{CNI_PROGRAMS}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"
"""


def kubelet_yaml(places: Places, *, cgroup: str, port: int, healthz_port: int, read_only_port: int, extra: Mapping[str, object]) -> str:
    """The configuration of a kubelet without an API server. extra: KubeletConfiguration fields that add to these or replace them."""
    configuration: dict[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": str(places.manifests_dir),
        # inotify tells it at once; this is for the case that an event is lost.
        "fileCheckFrequency": "1s",
        "syncFrequency": "5s",
        "podLogsDir": str(places.pod_logs_dir),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "registerNode": False,
        # Nobody to ask whether a request is allowed; it listens on the loopback interface only.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "address": "127.0.0.1",
        "port": port,
        "healthzPort": healthz_port,
        "readOnlyPort": read_only_port,
        # Refuses version 1 unless told; this machine decides, not the test.
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "enableControllerAttachDetach": False,
        "resolvConf": str(places.resolv_conf),
        "volumePluginDir": str(places.work / "volume-plugins"),
        # A full disk on a developer's machine must not evict the pods of a test, nor remove its images.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }
    return yaml.safe_dump({**configuration, **extra}, sort_keys=False)
