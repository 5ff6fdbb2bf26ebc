# SPDX-License-Identifier: Apache-2.0
"""What the chart renders: what daemonset.yaml says by default, and for each configuration what its plugins need and no more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import deviceplugin
from deviceplugin.configfile import check_plugins, load
from tests.e2e.charts import CHART, Chart, ChartError, Object

MANIFEST = CHART.parents[1] / "daemonset.yaml"
HELMS_LABELS = {"app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}

AFU = "d8424dc4a4a3c413f89e433683f9040b"
READ_ONLY, WRITABLE = True, False

# By what is mounted where in the container: from where on the host, and whether it is read-only.
BASE = {
    "/var/lib/kubelet/device-plugins": ("/var/lib/kubelet/device-plugins", WRITABLE),
    "/var/lib/kubelet/pod-resources": ("/var/lib/kubelet/pod-resources", READ_ONLY),
    "/run/deviceplugin": ("/run/deviceplugin", WRITABLE),
    "/var/lib/deviceplugin": ("/var/lib/deviceplugin", WRITABLE),
}
DEV = {"/dev": ("/dev", READ_ONLY)}
CDI = {"/var/run/cdi": ("/var/run/cdi", WRITABLE)}
DRIVER = {"/driver-root/usr": ("/usr", READ_ONLY)}
FEATURES_D = "/etc/kubernetes/node-feature-discovery/features.d"
FEATURES = {FEATURES_D: (FEATURES_D, WRITABLE)}
RESCTRL = {"/sys/fs/resctrl": ("/sys/fs/resctrl", WRITABLE)}


@pytest.fixture(scope="module")
def chart(e2e_bin: Path) -> Chart:
    return Chart(e2e_bin)


def config(*plugins: Object | str, **more: Any) -> Object:
    """Values with a configuration of these plugins."""
    entries = [{"plugin": one} if isinstance(one, str) else one for one in plugins]
    return {"config": {"plugins": entries, **more}}


def plugin(name: str, **options: Any) -> Object:
    return {"plugin": name, "config": options}


def pod_of(objects: Mapping[str, Object]) -> Object:
    spec: Object = objects["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def mounts_of(pod: Object) -> dict[str, tuple[str, bool]]:
    """What of the host is mounted, by where."""
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    names = [mount["name"] for mount in container["volumeMounts"]]
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert sorted(names) == sorted(volumes), "each volume is mounted once"
    assert len(set(places)) == len(places)
    return {
        mount["mountPath"]: (volumes[mount["name"]]["hostPath"]["path"], mount.get("readOnly", False))
        for mount in container["volumeMounts"]
        if "hostPath" in volumes[mount["name"]]
    }


def allowed(pod: Object) -> str | list[str]:
    """The capabilities of the container, or "privileged"."""
    context = pod["containers"][0]["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    if context.get("privileged"):
        assert "capabilities" not in context
        return "privileged"
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"]["drop"] == ["ALL"]
    return list(context["capabilities"].get("add", []))


def without_helms(value: Any) -> Any:
    """An object without the labels that Helm wants on everything, and with the configuration as what it says."""
    if isinstance(value, dict):
        kept = {key: without_helms(one) for key, one in value.items() if key not in HELMS_LABELS}
        return kept | ({"config.yaml": yaml.safe_load(kept["config.yaml"])} if "config.yaml" in kept else {})
    return [without_helms(one) for one in value] if isinstance(value, list) else value


def test_helm_finds_no_fault(chart: Chart) -> None:
    chart.run("lint", "--strict", CHART)


def test_the_chart_has_the_daemons_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == deviceplugin.__version__


def test_by_default_it_says_what_the_manifest_says(chart: Chart) -> None:
    rendered = chart.render()
    plain = {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}
    assert rendered.keys() == plain.keys()
    for kind, one in rendered.items():
        labels = one["metadata"]["labels"]
        assert labels.keys() >= HELMS_LABELS, kind
        assert without_helms(one) == without_helms(plain[kind]), kind


def test_the_default_configuration_is_one_that_the_daemon_takes(chart: Chart, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(chart.render()["ConfigMap"]["data"]["config.yaml"])
    assert check_plugins(load(str(file))).keys() == {"gpu", "generic"}


PLUGINS: dict[str, tuple[Object, dict[str, tuple[str, bool]], str | list[str], bool]] = {
    "none": (config(), BASE, [], False),
    "gpu": (config("gpu"), BASE | DEV | CDI | DRIVER, [], False),
    "gpu with labels": (config(plugin("gpu", labels=True)), BASE | DEV | CDI | DRIVER | FEATURES, [], False),
    "gpu, driver elsewhere": (
        config(plugin("gpu", injection={"driverRoot": "/run/nvidia/driver", "devRoot": "/run/nvidia/driver"})),
        BASE | DEV | CDI | {"/driver-root": ("/run/nvidia/driver", READ_ONLY), "/run/nvidia/driver/dev": ("/run/nvidia/driver/dev", READ_ONLY)},
        [],
        False,
    ),
    "gpu with MPS": (
        config(plugin("gpu", injection={"mpsRoot": "/run/nvidia/mps", "mps": {"nvidia.com/gpu": 4}})),
        BASE | DEV | CDI | DRIVER | {"/run/nvidia/mps": ("/run/nvidia/mps", WRITABLE), "/dev/shm": ("/run/nvidia/mps/shm", WRITABLE)},
        [],
        False,
    ),
    "generic": (config("generic"), BASE | DEV, [], False),
    "generic that opens": (
        config(plugin("generic", devices=[{"name": "tty", "groups": [{"paths": [{"path": "/dev/ttyS*", "health": [{"openable": True}]}]}]}])),
        BASE | DEV,
        "privileged",
        False,
    ),
    "llc": (config("llc"), BASE | CDI | RESCTRL, ["SYS_PTRACE"], True),
    "fpga": (config("fpga"), BASE | DEV, [], False),
    "fpga that programs": (
        config(plugin("fpga", functions=[{"afu": AFU}])),
        BASE | DEV | {"/srv/intel.com/fpga": ("/srv/intel.com/fpga", READ_ONLY)},
        "privileged",
        False,
    ),
    "mic": (config(plugin("mic", libraries=[{"path": "/opt/mpss"}])), BASE | DEV | {"/opt/mpss": ("/opt/mpss", READ_ONLY)}, [], False),
    "mic that boots": (config(plugin("mic", prepare="boot", labels=True)), BASE | DEV | FEATURES, "privileged", False),
    "pfs": (
        config(plugin("pfs", filesystems=[{"name": "home", "type": "gpfs", "tier": "T0", "mountPoint": "/gpfs/home", "slotsFile": "/etc/slots/n"}])),
        BASE | {"/etc/slots": ("/etc/slots", READ_ONLY)},
        "privileged",
        True,
    ),
    "a stranger's": (config("/plugins/acme.py:Acme"), BASE | DEV, [], False),
}


@pytest.mark.parametrize(("values", "mounts", "capabilities", "host_pid"), PLUGINS.values(), ids=PLUGINS)
def test_a_plugin_gets_what_it_needs_and_no_more(
    chart: Chart, values: Object, mounts: dict[str, tuple[str, bool]], capabilities: str | list[str], host_pid: bool
) -> None:
    pod = pod_of(chart.render(values | {"privileged": capabilities == "privileged"}))
    assert mounts_of(pod) == mounts
    assert allowed(pod) == capabilities
    assert pod.get("hostPID", False) is host_pid
    names = {one["name"] for one in pod["containers"][0]["env"]}
    assert ("NVIDIA_VISIBLE_DEVICES" in names) == ("gpu" in values["config"]["plugins"][0]["plugin"] if values["config"]["plugins"] else False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("generic that opens", "generic: health by `openable`"),
        ("fpga that programs", "fpga: `functions` are programmed"),
        ("mic that boots", "mic: `prepare: boot` writes to /sys"),
        ("pfs", "pfs: the node's mount namespace is entered"),
    ],
)
def test_nothing_is_privileged_unless_it_is_said(chart: Chart, name: str, reason: str) -> None:
    with pytest.raises(ChartError, match="needs `privileged: true`") as refused:
        chart.render(PLUGINS[name][0])
    assert reason in str(refused.value)


KINDS = ("gpu", "generic", "llc", "fpga", "mic", "other.module:Other")


@pytest.mark.parametrize("kinds", list(itertools.chain.from_iterable(itertools.combinations(KINDS, n) for n in (2, 4, 6))), ids="+".join)
def test_several_plugins_get_what_each_needs(chart: Chart, kinds: tuple[str, ...]) -> None:
    pod = pod_of(chart.render(config(*kinds)))
    wanted = [PLUGINS.get(kind, PLUGINS["a stranger's"]) for kind in kinds]
    # mic has libraries above and none here.
    assert mounts_of(pod) == {at: place for _, mounts, _, _ in wanted for at, place in mounts.items() if at != "/opt/mpss"}
    assert allowed(pod) == (["SYS_PTRACE"] if "llc" in kinds else [])
    assert pod.get("hostPID", False) is ("llc" in kinds)


def test_what_some_nodes_run_all_pods_can(chart: Chart) -> None:
    """There is one pod template for all nodes."""
    nodes = [
        {"name": "llc", "match": {"names": ["a"]}, "settings": {"plugins": [{"plugin": "llc", "enabled": True}]}},
        {"name": "gpu", "match": {"names": ["b"]}, "settings": {"plugins": [{"plugin": "gpu", "config": {"labels": True}}]}},
    ]
    switched_off = [{"plugin": "llc", "enabled": False}, {"plugin": "mic", "enabled": False, "config": {"libraries": [{"path": "/opt/mpss"}]}}]
    pod = pod_of(chart.render(config(*switched_off, nodes=nodes)))
    assert mounts_of(pod) == BASE | DEV | CDI | DRIVER | FEATURES | RESCTRL
    assert pod["hostPID"] is True


def test_a_node_changes_an_entry_by_its_name(chart: Chart) -> None:
    fpga = {"plugin": "fpga", "name": "cards", "enabled": False, "config": {"functions": [{"afu": AFU}]}}
    nodes = [{"name": "lab", "match": {"names": ["lab-*"]}, "settings": {"plugins": [{"plugin": "fpga", "name": "cards", "enabled": True}]}}]
    assert allowed(pod_of(chart.render(config(fpga)))) == []
    with pytest.raises(ChartError, match="functions"):
        chart.render(config(fpga, nodes=nodes))


def test_state_is_kept_where_the_configuration_says(chart: Chart) -> None:
    entries = (plugin("fpga", stateDirectory="/srv/fpga"), plugin("mic", record="/var/lib/deviceplugin-mic/told.json"))
    mounts = mounts_of(pod_of(chart.render(config(*entries, stateDirectory="/var/lib/deviceplugin/faults"))))
    assert {at for at in mounts if at.startswith(("/srv", "/var/lib/dev"))} == {
        "/srv/fpga",
        "/var/lib/deviceplugin-mic",
        "/var/lib/deviceplugin/faults",
    }


def test_private_mounts_are_not_kept_alive_here(chart: Chart) -> None:
    private = {"name": "a", "type": "lustre", "tier": "T3", "slots": 2, "privateMount": {"source": "10.0.0.1@tcp:/scratch"}}
    beegfs = {"name": "b", "type": "beegfs", "tier": "T3", "slots": 2, "privateMount": {"source": "beegfs_nodev"}}
    pod = pod_of(chart.render(config(plugin("pfs", filesystems=[private, beegfs])) | {"privileged": True}))
    (state,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "state"]
    assert state["mountPropagation"] == "HostToContainer"
    assert mounts_of(pod)["/etc/beegfs"] == ("/etc/beegfs", READ_ONLY)


def test_the_plugin_watcher_has_a_directory_of_its_own(chart: Chart) -> None:
    registry = "/var/lib/kubelet/plugins_registry"
    for values in (config(registration="watcher"), config(resources={"example.com/a": {"registration": "watcher"}})):
        assert mounts_of(pod_of(chart.render(values))) == BASE | {registry: (registry, WRITABLE)}
    moved = mounts_of(pod_of(chart.render(config(registration="watcher") | {"kubeletRootDirectory": "/data/kubelet"})))
    assert moved[registry] == ("/data/kubelet/plugins_registry", WRITABLE)
    assert moved["/var/lib/kubelet/pod-resources"] == ("/data/kubelet/pod-resources", READ_ONLY)
    assert moved["/var/lib/kubelet/device-plugins"] == ("/var/lib/kubelet/device-plugins", WRITABLE)  # a constant of the kubelet's


@pytest.mark.parametrize(
    "values", [config(kubernetesEvents=True), config(nodes=[{"name": "x", "match": {"names": ["x"]}, "settings": {"kubernetesEvents": True}}])]
)
def test_only_events_need_the_api_server(chart: Chart, values: Object) -> None:
    assert pod_of(chart.render())["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod_of(chart.render())
    objects = chart.render(values, namespace="devices")
    pod = pod_of(objects)
    assert objects.keys() == {"ConfigMap", "DaemonSet", "ServiceAccount", "Role", "RoleBinding"}
    assert pod["automountServiceAccountToken"] is True
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    assert objects["Role"]["rules"] == [{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}]
    assert objects["Role"]["metadata"]["namespace"] == objects["RoleBinding"]["metadata"]["namespace"] == "default"
    assert objects["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": "deviceplugin", "namespace": "devices"}]
    theirs = chart.render(values | {"serviceAccount": {"create": False, "name": "theirs"}})
    assert theirs.keys() == {"ConfigMap", "DaemonSet"}
    assert pod_of(theirs)["serviceAccountName"] == "theirs"


def test_a_configuration_comes_through_as_it_is(chart: Chart, tmp_path: Path) -> None:
    """Also what YAML, JSON and Go read differently: digits in quotes, words that older YAML takes for something else, large numbers, nulls."""
    entries = [
        plugin("gpu", faults={"xids": {"94": "ignore", "default": 1.5}}, exclude=[{"index": [0, 1]}]),
        plugin("generic", devices=[{"name": "on", "groups": [{"usb": [{"vendor": "0403", "product": "1e10"}], "envs": {"A": "1:30", "B": "0o17"}}]}]),
        plugin("fpga", largestBitstream=4294967295) | {"enabled": False},
    ]
    nodes = [{"name": "one", "match": {"names": ["n"], "labels": {"a/b": "true"}}, "settings": {"resources": {"example.com/a": None}}}]
    more = {"resources": {"example.com/a": {"replicas": 100000}}, "nodes": nodes, "tombstoneLimit": 0.25}
    text = chart.render(config(*entries, **more) | {"privileged": True})["ConfigMap"]["data"]["config.yaml"]
    assert yaml.safe_load(text) == {"version": "v1", "plugins": entries, **more}
    file = tmp_path / "config.yaml"
    file.write_text(text)
    variants = load(str(file), environ={"DEVICEPLUGIN_NODE_NAME": "n"}).variants
    assert [sorted(one.settings.resources) for one in variants] == [["example.com/a"], []]


WRONG = {
    "a value that there is not": ({"imge": {}}, "additional properties 'imge' not allowed"),
    "inside of another": ({"image": {"tagg": "x"}}, "at '/image': additional properties 'tagg'"),
    "port as text": ({"port": "80"}, "at '/port': got string, want integer"),
    "port that there is not": ({"port": 65536}, "at '/port'"),
    "digest": ({"image": {"digest": "abc"}}, "at '/image/digest'"),
    "pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of 'Always'"),
    "toleration": ({"tolerations": [{"operater": "Exists"}]}, "at '/tolerations/0': additional properties 'operater'"),
    "update strategy": ({"updateStrategy": {"type": "Recreate"}}, "at '/updateStrategy/type'"),
    "surge": ({"updateStrategy": {"rollingUpdate": {"maxSurge": "some"}}}, "maxSurge"),
    "probe": ({"probes": {"liveness": {"periodSeconds": 0}}}, "at '/probes/liveness/periodSeconds': minimum"),
    "capability": ({"extraCapabilities": ["CAP_SYS_ADMIN"]}, "at '/extraCapabilities/0'"),
    "action": ({"admissionPolicy": {"actions": ["Refuse"]}}, "at '/admissionPolicy/actions/0': value must be one of 'Deny'"),
    "path": ({"kubeletRootDirectory": "var/lib/kubelet"}, "at '/kubeletRootDirectory'"),
    "release's name": ({"fullnameOverride": "Device_Plugin"}, "at '/fullnameOverride'"),
    "a key of the configuration": (config(pluginz=[]), "at '/config': additional properties 'pluginz'"),
    "the version": (config(version="v2"), "at '/config/version': value must be 'v1'"),
    "what the chart sets": (config(listen=":80"), "at '/config': additional properties 'listen'"),
    "a plugin's key": (config({"plugin": "gpu", "intervall": 3}), "at '/config/plugins/0': additional properties 'intervall'"),
    "a plugin without a name": (config({"config": {}}), "at '/config/plugins/0': missing property 'plugin'"),
    "an option of a plugin": (config(plugin("gpu", migStrategy="sometimes")), "at '/config/plugins/0/config/migStrategy': value must be one of"),
    "an option that there is not": (
        config("gpu", plugin("llc", waysPerSlt=2)),
        "at '/config/plugins/1/config': additional properties 'waysPerSlt'",
    ),
    "deep in a plugin": (
        config(plugin("generic", devices=[{"name": "a", "groups": [{"paths": [{"path": "/dev/a", "limit": 0}]}]}])),
        "at '/config/plugins/0/config/devices/0/groups/0/paths/0/limit': minimum",
    ),
    "an option of a plugin with a name of its own": (config(plugin("fpga", mode="fast") | {"name": "cards"}), "config/mode'"),
    "pfs": (config(plugin("pfs", filesystems=[{"name": "a", "type": "zfs", "tier": "T0"}])), "filesystems/0/type'"),
    "mic": (config(plugin("mic", prepare="always")), "config/prepare'"),
    "replicas": (config(resources={"a.b/c": {"replicas": 0}}), "replicas': minimum"),
    "a node's settings": (config(nodes=[{"name": "x", "match": {"names": ["a"]}, "settings": {"nodeName": "x"}}]), "nodes/0/settings': additional"),
    "a node without a match": (config(nodes=[{"name": "x"}]), "at '/config/nodes/0': missing property 'match'"),
}


@pytest.mark.parametrize(("values", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_refused_with_its_place(chart: Chart, values: Object, message: str) -> None:
    with pytest.raises(ChartError) as refused:
        chart.render(values)
    assert message in str(refused.value)


def test_two_driver_roots_at_one_place_are_refused(chart: Chart) -> None:
    entries = [plugin("gpu", injection={"driverRoot": root}) | {"name": root[1:]} for root in ("/a", "/b")]
    with pytest.raises(ChartError, match="two driver roots, /a and /b, at /driver-root"):
        chart.render(config(*entries))


def test_what_else_can_be_said_of_the_pods(chart: Chart) -> None:
    values = {
        "image": {"repository": "registry.example/deviceplugin", "digest": f"sha256:{'a' * 64}", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
        "nodeSelector": {"kubernetes.io/os": None, "pool": "gpu"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
        "resources": {"limits": {"memory": "256Mi"}},
        "port": 9000,
        "probes": {"startup": {"failureThreshold": 9}},
        "podLabels": {"team": "hpc"},
        "podAnnotations": {"example.com/a": "b"},
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "labels", "hostPath": {"path": "/etc/node"}}],
        "extraVolumeMounts": [{"name": "labels", "mountPath": "/etc/node", "readOnly": True}],
        "extraCapabilities": ["SYS_ADMIN"],
    }
    daemons = chart.render(values)["DaemonSet"]["spec"]
    pod = daemons["template"]["spec"]
    (container,) = pod["containers"]
    assert daemons["updateStrategy"] == {"type": "OnDelete"}
    assert daemons["template"]["metadata"]["labels"]["team"] == "hpc"
    assert daemons["template"]["metadata"]["annotations"] == {"example.com/a": "b"}
    assert "team" not in daemons["selector"]["matchLabels"]
    assert container["image"] == f"registry.example/deviceplugin@sha256:{'a' * 64}"
    assert container["imagePullPolicy"] == "Always"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "high")
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["affinity"] == values["affinity"]
    assert pod["tolerations"] == values["tolerations"]
    assert container["resources"] == {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    assert container["ports"] == [{"name": "metrics", "containerPort": 9000}]
    assert container["startupProbe"] == {"httpGet": {"path": "/healthz", "port": "metrics"}, "periodSeconds": 1, "failureThreshold": 9}
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert (env["DEVICEPLUGIN_LISTEN"], env["A"]) == (":9000", "b")
    assert mounts_of(pod)["/etc/node"] == ("/etc/node", READ_ONLY)
    assert allowed(pod) == ["SYS_ADMIN"]


def test_two_releases_do_not_meet(chart: Chart) -> None:
    one, other = chart.render(release="deviceplugin"), chart.render(release="lab")
    assert {each["metadata"]["name"] for each in one.values()} == {"deviceplugin"}
    assert {each["metadata"]["name"] for each in other.values()} == {"lab-deviceplugin"}
    assert one["DaemonSet"]["spec"]["selector"] != other["DaemonSet"]["spec"]["selector"]
    assert pod_of(other)["volumes"][0] == {"name": "config", "configMap": {"name": "lab-deviceplugin"}}


def test_a_network_policy_lets_the_port_in_and_nothing_out(chart: Chart) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    spec = chart.render({"networkPolicy": {"enabled": True, "from": peers}})["NetworkPolicy"]["spec"]
    assert spec["ingress"] == [{"ports": [{"port": "metrics"}], "from": peers}]
    assert spec["egress"] == []
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    told = chart.render({"networkPolicy": {"enabled": True}, **config(kubernetesEvents=True)})["NetworkPolicy"]["spec"]
    assert told["egress"] == [{"ports": [{"port": 443}, {"port": 6443}]}]


def test_what_prometheus_and_grafana_get(chart: Chart) -> None:
    parts = ("service", "podMonitor", "rules", "dashboards")
    objects = chart.render({"metrics": {part: {"enabled": True, "labels": {"found": "by-this"}} for part in parts}})
    dashboards = {name.name: name.read_text() for name in (CHART / "dashboards").glob("*.json")}
    assert dashboards
    assert {one["kind"] for one in objects.values()} == {"ConfigMap", "DaemonSet", "Service", "PodMonitor", "PrometheusRule"}
    selector = objects["DaemonSet"]["spec"]["selector"]["matchLabels"]
    assert objects["Service"]["spec"]["selector"] == selector
    assert objects["Service"]["spec"]["clusterIP"] == "None"
    assert objects["PodMonitor"]["spec"]["selector"]["matchLabels"] == selector
    (endpoint,) = objects["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"] == [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}]
    rules = [group for file in sorted((CHART / "rules").glob("*.yaml")) for group in yaml.safe_load(file.read_text())["groups"]]
    assert objects["PrometheusRule"]["spec"]["groups"] == rules
    found = {key: text for one in objects.values() if "-dashboard-" in one["metadata"]["name"] for key, text in one["data"].items()}
    assert {key: json.loads(text) for key, text in found.items()} == {key: json.loads(text) for key, text in dashboards.items()}
    for kind in ("Service", "PodMonitor", "PrometheusRule"):
        assert objects[kind]["metadata"]["labels"]["found"] == "by-this"


def test_the_notes_name_the_first_steps(chart: Chart) -> None:
    said = chart.run("install", "deviceplugin", CHART, "--namespace", "devices", "--dry-run=client")
    notes = said.partition("NOTES:")[2]
    for text in ("kubectl -n devices rollout status daemonset/deviceplugin", "gpu, generic", "deviceplugin devices", "ResourceQuota"):
        assert text in notes
