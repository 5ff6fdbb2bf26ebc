# SPDX-License-Identifier: Apache-2.0
"""The metrics are as Prometheus wants them, and whatever the chart's alerts and dashboards ask for is there: seen on a daemon with simulated GPUs."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deviceplugin.plugins.gpu import xid
from deviceplugin.testing import Kubelet, Pod, SimulatedHost, nvml
from tests.e2e.charts import CHART
from tests.e2e.harness.waiting import wait_for

ROOT = CHART.parents[1]
RULES = sorted((CHART / "rules").glob("*.yaml"))
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
CONFIG = """\
version: v1
kubernetesEvents: false
plugins:
  - plugin: gpu
  - plugin: generic
    config: {domain: example.com, devices: [{name: absent, groups: [{paths: [{path: /dev/absent}]}]}]}
"""
GPU = "nvidia.com/gpu"

# Of the scrape, not of ours.
TARGETS_LABELS = {"node", "instance", "job"}
_NAME = re.compile(r"\b(?:deviceplugin|process)_[a-z0-9_]+\b")
_SELECTOR = re.compile(r"\b((?:deviceplugin|process)_[a-z0-9_]+)\{([^{}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


class Scraped:
    """What /metrics says: the names of the samples of every family, whether it has any now or not, and the labels that samples have."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.labels: dict[str, set[str]] = {}
        self.names: set[str] = set()
        for family in text_string_to_metric_families(text):
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            self.names |= {f"{family.name}{suffix}" for suffix in suffixes}
            for sample in family.samples:
                self.labels.setdefault(sample.name, set()).update(sample.labels)


@pytest.fixture(scope="module")
def scraped() -> Iterator[Scraped]:
    """Of a daemon that has GPUs, a pod that holds one, a GPU that broke, and a configuration that it refused."""
    root = Path(tempfile.mkdtemp(prefix="node-", dir="/tmp"))
    try:
        with Kubelet(str(root)) as kubelet:
            yield Scraped(scrape(root, kubelet))
    finally:
        shutil.rmtree(root)


def scrape(root: Path, kubelet: Kubelet) -> str:
    machine, host = nvml.dgx_h100(), SimulatedHost(str(root))
    machine.install(root / "usr/lib/x86_64-linux-gnu")
    nvml.write_host(machine, root)
    for name, minor in (("nvidiactl", 255), *((f"nvidia{gpu.minor}", gpu.minor) for gpu in machine.gpus)):
        host.device_file(f"/dev/{name}", major=195, minor=minor)
    config, log = root / "config.yaml", root / "log"
    config.write_text(CONFIG)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = [sys.executable, "-m", "deviceplugin", "run", "--root", str(root), "--config", str(config), "--listen", address]

    def metrics(*wanted: str) -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return text if all(one in text for one in wanted) else ""

    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
        try:
            wait_for(lambda: kubelet.capacity(GPU) == len(machine.gpus), 20, "the GPUs", (log,))
            pod = Pod.requesting(GPU, 1, name="trainer")
            assert kubelet.admit(pod)
            machine.inject_xid(0, 79)
            config.write_text("version: v2\n")
            wanted = ("deviceplugin_gpu_xids_total{", "deviceplugin_config_last_reload_successful 0.0", 'cause="xid"', 'plugin="gpu",pod="trainer"}')
            return wait_for(lambda: metrics(*wanted), 30, f"all of {wanted}", (log,))
        finally:
            process.terminate()


def queries() -> Iterator[tuple[str, str]]:
    """Each expression with what it belongs to."""
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])
    for file in DASHBOARDS:
        dashboard = json.loads(file.read_text())
        for panel in panels(dashboard):
            yield from ((panel["title"], target["expr"]) for target in panel.get("targets", []))
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield variable["name"], variable["query"]


def panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def promtool(e2e_bin: Path, *arguments: str | Path, text: str = "") -> str:
    """What it prints; fails if it finds a fault."""
    done = subprocess.run([e2e_bin / "promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_metrics_are_named_and_explained_as_prometheus_wants(e2e_bin: Path, scraped: Scraped) -> None:
    assert promtool(e2e_bin, "check", "metrics", text=scraped.text) == ""


def test_every_family_of_ours_is_explained(scraped: Scraped) -> None:
    for family in text_string_to_metric_families(scraped.text):
        assert family.documentation.endswith("."), family.name


def test_whatever_is_asked_for_is_there(scraped: Scraped) -> None:
    for where, query in queries():
        for name in _NAME.findall(query):
            assert name in scraped.names, f"{where}: there is no {name}"
        for name, selector in _SELECTOR.findall(query):
            if name in scraped.labels:
                unknown = set(_LABEL.findall(re.sub(r'"[^"]*"', "", selector))) - scraped.labels[name] - TARGETS_LABELS - {"le"}
                assert not unknown, f"{where}: {name} has no {unknown}"


def test_every_metric_of_ours_is_looked_at_somewhere(scraped: Scraped) -> None:
    """A figure that neither an alert nor a panel shows is one that nobody will see."""
    asked = {name for _, query in queries() for name in _NAME.findall(query)}
    ours = {name for name in scraped.names if name.startswith("deviceplugin_") and not name.endswith(("_sum", "_count", "_bucket"))}
    assert ours - asked == set()


def test_the_rules_are_rules(e2e_bin: Path) -> None:
    promtool(e2e_bin, "check", "rules", "--lint-fatal", *RULES)


def test_each_alert_fires_when_it_should_and_not_otherwise(e2e_bin: Path, tmp_path: Path) -> None:
    cases = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())
    cases["rule_files"] = [str(file) for file in RULES]
    file = tmp_path / "alerts.yaml"
    file.write_text(yaml.safe_dump(cases))
    promtool(e2e_bin, "test", "rules", file)
    fired = {check["alertname"] for test in cases["tests"] for check in test["alert_rule_test"] if check["exp_alerts"]}
    silent = {check["alertname"] for test in cases["tests"] for check in test["alert_rule_test"] if not check["exp_alerts"]}
    alerts = {rule["alert"] for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]}
    assert fired == silent == alerts


def test_each_alert_leads_to_a_place_in_the_documentation() -> None:
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                page, heading = re.fullmatch(r'(docs/\S+\.md), "(.*)"', rule["annotations"]["runbook"]).groups()  # type: ignore[union-attr]
                text = (ROOT / page).read_text()
                assert f"\n## {heading}\n" in text or f"\n| {heading} |" in text or f'\n| "{heading}" |' in text, f"{rule['alert']}: {heading}"


def test_the_alert_for_xids_leaves_out_what_the_plugin_ignores() -> None:
    (expression,) = [query for name, query in queries() if name == "GpuXid"]
    patterns = re.findall(r'xid!~"([^"]*)"', expression)
    assert patterns
    for code in range(1, 400):
        ignored = code in xid.TABLE and xid.TABLE[code][1] == "ignore"
        assert any(re.fullmatch(one, str(code)) for one in patterns) == ignored, code


def test_every_panels_query_is_one(e2e_bin: Path, tmp_path: Path) -> None:
    values = {"$node": ".*", "$resource": ".*", "$__rate_interval": "5m", "$__range": "1h"}
    rules: list[dict[str, str]] = []
    for _, query in queries():
        if query.startswith("label_values("):
            continue
        for variable, value in values.items():
            query = query.replace(variable, value)
        assert "$" not in query, query
        rules.append({"record": f"panel:{len(rules)}", "expr": query})
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool(e2e_bin, "check", "rules", file)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    found = list(panels(dashboard))
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        assert panel["title"], panel
        assert set(panel["gridPos"]) == {"x", "y", "w", "h"}
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"].endswith("."), panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    cells = [(x, y) for panel in found for x in range(*span(panel, "x", "w")) for y in range(*span(panel, "y", "h"))]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert {"datasource", "node"} <= {variable["name"] for variable in dashboard["templating"]["list"]}


def span(panel: Mapping[str, Any], start: str, size: str) -> tuple[int, int]:
    place = panel["gridPos"]
    return place[start], place[start] + place[size]
