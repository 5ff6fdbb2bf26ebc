# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deviceplugin.config import ConfigError, Settings, convert
from deviceplugin.daemon import Daemon, make_plan
from deviceplugin.kubelet.paths import Paths
from deviceplugin.model import Device, Host
from deviceplugin.plugin import Plugin
from deviceplugin.service import Role

WAIT = 10


class Options(msgspec.Struct):
    resources: dict[str, list[str]] = {}
    """By resource, the ids of its devices."""


class Vendor(Plugin):
    Config = Options
    interval = 3600.0

    def __init__(self, config: Any = None, host: Host | None = None) -> None:
        super().__init__(config, host)
        if "forbidden/x" in config.resources:
            raise ValueError("no such card")
        self.looks: queue.SimpleQueue[None] = queue.SimpleQueue()

    def discover(self) -> Iterable[Device]:
        self.looks.put(None)
        return [Device(one, resource=resource) for resource, ids in self.config.resources.items() for one in ids]


@dataclass
class Node:
    """A daemon on a node without a kubelet."""

    root: Path
    running: list[Daemon] = field(default_factory=list)

    def plan(self, plugins: Mapping[str, Mapping[str, list[str]]], **rest: Any) -> Any:
        raw = {"version": "v1", "plugins": [{"plugin": "x", "name": name, "config": {"resources": of}} for name, of in plugins.items()], **rest}
        return make_plan(convert(raw, Settings, "node.yaml"), Host(str(self.root)), dict.fromkeys(plugins, Vendor))

    def start(self, plugins: Mapping[str, Mapping[str, list[str]]], **rest: Any) -> Daemon:
        daemon = Daemon(self.plan(plugins, **rest), Paths.below(str(self.root)), Host(str(self.root)))
        self.running.append(daemon)
        daemon.start()
        assert daemon.wait_first_scan(WAIT)
        return daemon

    def apply(self, plugins: Mapping[str, Mapping[str, list[str]]], **rest: Any) -> None:
        """Takes another configuration and lets every plugin look twice: what the first look changed is then published."""
        (daemon,) = self.running
        daemon.apply(self.plan(plugins, **rest))
        assert daemon.wait_first_scan(WAIT)
        for _ in range(3):
            for scanner in daemon.scanners.values():
                looks = scanner.hooks.plugin.looks  # type: ignore[attr-defined]
                while not looks.empty():
                    looks.get()
                scanner.wake()
                looks.get(timeout=WAIT)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path)
    yield one
    for daemon in one.running:
        daemon.stop()


GPU, NIC = "example.com/gpu", "example.com/nic"
BOTH = {"one": {GPU: ["g0", "g1"]}, "two": {NIC: ["n0"]}}


def ids(daemon: Daemon, name: str) -> dict[str, str]:
    return {row.id: row.cause for row in daemon.services[name].cell.get().rows}


def test_each_resource_is_served_with_its_first_device(node: Node) -> None:
    daemon = node.start({**BOTH, "three": {"example.com/none": []}})
    assert set(daemon.services) == {GPU, NIC}
    assert [service.role for service in daemon.services.values()] == [Role.ACTIVE, Role.ACTIVE]
    assert daemon.conflicts == {}


def test_a_reload_touches_only_what_it_changes(node: Node) -> None:
    daemon = node.start(BOTH)
    gpu, nic, scanner = daemon.services[GPU], daemon.services[NIC], daemon.scanners["two"]
    node.apply({"one": {GPU: ["g0", "g1", "g2"]}, "two": BOTH["two"]})
    assert (daemon.services[GPU], daemon.services[NIC], daemon.scanners["two"]) == (gpu, nic, scanner)
    assert list(ids(daemon, GPU)) == ["g0", "g1", "g2"]
    node.apply({**daemon_plugins(daemon), "three": {"example.com/new": ["x"]}})
    assert (daemon.services[GPU], daemon.services[NIC]) == (gpu, nic)
    assert list(ids(daemon, "example.com/new")) == ["x"]


def daemon_plugins(daemon: Daemon) -> dict[str, Any]:
    return {one.settings.label: one.settings.config["resources"] for one in daemon.plan.plugins}


def test_the_same_configuration_again_changes_nothing(node: Node) -> None:
    daemon = node.start(BOTH)
    before = (dict(daemon.services), dict(daemon.scanners), {name: one.cell.get() for name, one in daemon.services.items()})
    node.apply(BOTH)
    assert (dict(daemon.services), dict(daemon.scanners), {name: one.cell.get() for name, one in daemon.services.items()}) == before


def test_what_a_removed_plugin_served_goes_with_it(node: Node) -> None:
    daemon = node.start(BOTH)
    gone = daemon.services[GPU]
    node.apply({"two": BOTH["two"]})
    assert set(daemon.services) == {NIC}
    assert set(daemon.scanners) == {"two"}
    assert not gone.lock.held


def test_a_device_that_the_new_configuration_leaves_out_stays_while_a_container_may_hold_it(node: Node) -> None:
    daemon = node.start(BOTH)
    service = daemon.services[GPU]
    node.apply({"one": {GPU: ["g1"], "example.com/other": ["o"]}, "two": BOTH["two"]})
    assert ids(daemon, GPU) == {"g0": "gone", "g1": ""}
    node.apply({"one": {"example.com/other": ["o"]}, "two": BOTH["two"]})
    assert daemon.services[GPU] is service
    assert ids(daemon, GPU) == {"g0": "gone", "g1": "gone"}


def test_a_renamed_resource_goes_and_its_new_name_is_served(node: Node) -> None:
    daemon = node.start(BOTH)
    nic, old = daemon.services[NIC], daemon.services[GPU]
    node.apply(BOTH, resources={GPU: {"rename": "example.com/card", "replicas": 2}})
    assert set(daemon.services) == {"example.com/card", NIC}
    assert daemon.services[NIC] is nic
    assert not old.lock.held
    assert list(ids(daemon, "example.com/card")) == ["g0::0", "g0::1", "g1::0", "g1::1"]
    node.apply(BOTH)
    assert set(daemon.services) == {GPU, NIC}


def test_new_shares_are_a_new_list_of_the_same_service(node: Node) -> None:
    daemon = node.start(BOTH)
    service, generation = daemon.services[GPU], daemon.services[GPU].cell.get().generation
    node.apply(BOTH, resources={GPU: {"replicas": 2, "policy": "pack"}})
    assert daemon.services[GPU] is service
    assert list(ids(daemon, GPU)) == ["g0::0", "g0::1", "g1::0", "g1::1"]
    assert service.cell.get().generation == generation + 1


def test_another_way_to_register_makes_the_service_anew(node: Node) -> None:
    daemon = node.start(BOTH)
    gpu, nic = daemon.services[GPU], daemon.services[NIC]
    node.apply(BOTH, resources={GPU: {"registration": "watcher"}})
    assert daemon.services[GPU] is not gpu
    assert (daemon.services[GPU].watcher, daemon.services[GPU].role) == (True, Role.ACTIVE)
    assert daemon.services[NIC] is nic


@pytest.mark.parametrize(
    ("plugins", "reason"),
    [
        ({"one": {GPU: "g0"}}, "config: resources"),
        ({**BOTH, "three": {"forbidden/x": []}}, "plugin three: ValueError: no such card"),
    ],
)
def test_a_bad_configuration_changes_nothing(node: Node, plugins: Any, reason: str) -> None:
    daemon = node.start(BOTH)
    before = (daemon.plan, dict(daemon.services), dict(daemon.scanners))
    with pytest.raises(ConfigError, match=reason):
        node.apply(plugins)
    assert (daemon.plan, dict(daemon.services), dict(daemon.scanners)) == before


def test_of_two_plugins_with_one_resource_the_first_keeps_it_and_the_conflict_is_said(node: Node) -> None:
    daemon = node.start({"one": {GPU: ["g0"]}})
    node.apply({"one": {GPU: ["g0"]}, "two": {GPU: ["x0"], NIC: ["n0"]}})
    assert list(ids(daemon, GPU)) == ["g0"]
    assert list(ids(daemon, NIC)) == ["n0"]
    assert "plugin two has devices for it too, but it belongs to plugin one" in daemon.conflicts[GPU]


@pytest.mark.parametrize("way_out", [{"two": {GPU: ["x0"]}}, {"one": {GPU: ["g0"]}}, {"one": {GPU: ["g0"]}, "two": {NIC: ["x0"]}}])
def test_a_conflict_that_is_resolved_is_no_longer_said(node: Node, way_out: dict[str, Any]) -> None:
    daemon = node.start({"one": {GPU: ["g0"]}})
    node.apply({"one": {GPU: ["g0"]}, "two": {GPU: ["x0"]}})
    assert daemon.conflicts
    node.apply(way_out)
    if "one" in way_out:
        assert list(ids(daemon, GPU)) == ["g0"]
    else:
        assert list(ids(daemon, GPU)) == ["x0"]
    assert daemon.conflicts == {}


def test_after_the_end_nothing_is_left(node: Node) -> None:
    daemon = node.start(BOTH)
    services = list(daemon.services.values())
    threads = [scanner._thread for scanner in daemon.scanners.values()]
    daemon.stop()
    daemon.stop()
    assert not any(service.lock.held for service in services)
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
