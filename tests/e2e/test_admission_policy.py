# SPDX-License-Identifier: Apache-2.0
"""The chart's admission policy, asked of a real API server: what takes devices around the kubelet is refused, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.charts import Chart
from tests.e2e.cluster import ApiError, Object
from tests.e2e.cluster.controlplane import ControlPlane
from tests.e2e.harness.waiting import wait_for

PLAIN: Object = {"containers": [{"name": "main", "image": "app"}]}
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"


def pod(spec: Object | None = None, container: Object | None = None, **metadata: Any) -> Object:
    """A pod with more in its spec and in its one container."""
    whole = copy.deepcopy(PLAIN) | (spec or {})
    whole["containers"][0] |= container or {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **metadata}, "spec": whole}


def mount(path: str) -> Object:
    return pod({"volumes": [{"name": "host", "hostPath": {"path": path}}]})


def env(name: str, value: str) -> Object:
    return pod(container={"env": [{"name": name, "value": value}]})


@pytest.fixture(scope="module")
def plane(e2e_bin: Path) -> Iterator[ControlPlane]:
    """A control plane that has the policy, and a namespace "exempt" that it does not apply to."""
    chart, plane = Chart(e2e_bin), ControlPlane(e2e_bin)
    objects = chart.render({"admissionPolicy": {"enabled": True, "exemptNamespaces": ["exempt"]}}, namespace="devices")
    plane.start([])
    try:
        plane.kubectl("create", "namespace", "exempt")
        kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
        plane.kubectl("apply", "-f", "-", text=yaml.safe_dump_all([objects[kind] for kind in kinds]))
        for namespace in ("default", "exempt"):
            path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
            wait_for(lambda path=path: plane.api.find(path), 30, "the service account")  # type: ignore[misc]
        # The API server takes a policy up a moment after it was made.
        wait_for(lambda: refusal(plane, pod({"hostPID": True})), 30, "the policy to be in force", (plane.log("kube-apiserver"),))
        yield plane
    finally:
        plane.stop()


def refusal(plane: ControlPlane, value: Object, namespace: str = "default") -> str:
    """Why the API server would not take a pod, empty if it would."""
    try:
        plane.api.create(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", value)
    except ApiError as error:
        if "ValidatingAdmissionPolicy" not in str(error):
            raise
        return str(error)
    return ""


HARMLESS = {
    "plain": pod(),
    "a device from the kubelet": pod(container={"resources": {"limits": {"nvidia.com/gpu": 2}}}),
    "void": env("NVIDIA_VISIBLE_DEVICES", "void"),
    "none": env("NVIDIA_VISIBLE_DEVICES", "none"),
    "another variable": env("CUDA_VISIBLE_DEVICES", "0"),
    "not privileged": pod(container={"securityContext": {"privileged": False, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}),
    "host network": pod({"hostNetwork": True}),
    "a path beside": mount("/devel"),
    "logs": mount("/var/log/"),
    "no host path": pod({"volumes": [{"name": "scratch", "emptyDir": {}}], "initContainers": [{"name": "first", "image": "app"}]}),
    "annotations": pod(annotations={"example.com/cdi.k8s.io": "x"}),
}

HARMFUL = {
    "privileged": (pod(container={"securityContext": {"privileged": True}}), "privileged container"),
    "privileged init container": (pod({"initContainers": [{"name": "i", "image": "a", "securityContext": {"privileged": True}}]}), "privileged"),
    "capability": (pod(container={"securityContext": {"capabilities": {"add": ["CHOWN", "SYS_ADMIN"]}}}), "SYS_ADMIN"),
    "capability, as others write it": (pod(container={"securityContext": {"capabilities": {"add": ["cap_sys_rawio"]}}}), "SYS_RAWIO"),
    "all capabilities": (pod(container={"securityContext": {"capabilities": {"add": ["ALL"]}}}), "capabilities"),
    "host PIDs": (pod({"hostPID": True}), "hostPID"),
    "host IPC": (pod({"hostIPC": True}), "hostIPC"),
    "/dev": (mount("/dev"), "/dev/ leads to devices"),
    "a device file": (mount("/dev/nvidia0"), "/dev/nvidia0/"),
    "/dev, otherwise written": (mount("//./dev/."), "/dev/"),
    "everything": (mount("/"), "hostPath / leads"),
    "above the sockets": (mount("/var/lib/kubelet"), "/var/lib/kubelet/"),
    "CDI specs": (mount("/var/run/cdi"), "/var/run/cdi/"),
    "all of /run": (mount("/run"), "/run/"),
    "sysfs": (mount("/sys/class/mic"), "/sys/class/mic/"),
    "one of several": (pod({"volumes": [{"name": n, "hostPath": {"path": p}} for n, p in (("a", "/opt"), ("b", "/proc"))]}), "hostPath /proc/ leads"),
    "all GPUs": (env("NVIDIA_VISIBLE_DEVICES", "all"), "NVIDIA_VISIBLE_DEVICES"),
    "one GPU": (env("NVIDIA_VISIBLE_DEVICES", "0"), "NVIDIA_VISIBLE_DEVICES"),
    "GPUs that are told elsewhere": (
        pod(container={"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]}),
        "NVIDIA_VISIBLE_DEVICES",
    ),
    "GPUs by mounts": (
        pod(
            {"volumes": [{"name": "empty", "emptyDir": {}}]},
            {"volumeMounts": [{"name": "empty", "mountPath": "/var/run/nvidia-container-devices/all"}]},
        ),
        "nvidia-container-devices",
    ),
    "CDI annotations": (pod(annotations={"cdi.k8s.io/x": "nvidia.com/gpu=all"}), "cdi.k8s.io"),
}


@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS)
def test_what_takes_no_device_passes(plane: ControlPlane, value: Object) -> None:
    assert refusal(plane, value) == ""


@pytest.mark.parametrize(("value", "reason"), HARMFUL.values(), ids=HARMFUL)
def test_what_goes_around_the_kubelet_is_refused_with_the_reason(plane: ControlPlane, value: Object, reason: str) -> None:
    assert reason in refusal(plane, value)


@pytest.mark.parametrize("namespace", ["kube-system", "exempt"])
def test_some_namespaces_are_exempt(plane: ControlPlane, namespace: str) -> None:
    wait_for(lambda: plane.api.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"), 30, "the service account")
    assert refusal(plane, mount("/dev"), namespace) == ""


def test_a_container_that_is_added_later_is_looked_at_too(plane: ControlPlane) -> None:
    plane.api.create("/api/v1/namespaces/default/pods", pod())
    try:
        late = {"name": "late", "image": "app"}
        path = "/api/v1/namespaces/default/pods/pod/ephemeralcontainers"
        with pytest.raises(OSError, match="privileged container"):
            plane.kubectl(*patched({**late, "securityContext": {"privileged": True}}))
        plane.kubectl(*patched(late))
        assert [one["name"] for one in plane.api.get(path)["spec"]["ephemeralContainers"]] == ["late"]
    finally:
        plane.api.delete("/api/v1/namespaces/default/pods/pod", grace=0)


def patched(container: Object) -> list[str]:
    """What adds an ephemeral container."""
    patch = yaml.safe_dump({"spec": {"ephemeralContainers": [container]}})
    return ["patch", "pod", "pod", "--subresource=ephemeralcontainers", "--type=strategic", f"--patch={patch}"]


def test_every_expression_is_of_the_right_type(plane: ControlPlane) -> None:
    """The controller manager checks them against the types of pods and notes what it finds."""
    (policy,) = plane.api.list(POLICIES)
    path = f"{POLICIES}/{policy['metadata']['name']}"
    checked = wait_for(lambda: plane.api.get(path).get("status", {}).get("typeChecking") is not None, 30, "the types to be checked")
    assert checked
    assert plane.api.get(path)["status"]["typeChecking"] == {}
