# SPDX-License-Identifier: Apache-2.0
"""A ConfigMap that is edited while the daemon runs: what changed is applied, a mistake changes nothing, and pods notice neither."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from deviceplugin.kubelet.paths import Paths
from deviceplugin.observe import client
from deviceplugin.observe.status import Status
from deviceplugin.testing import Kubelet, Pod
from tests.helpers.configmap import ConfigMap
from tests.kubelet.serving import FILES, RESOURCE, Running, put_files, running, wait_until

OTHER = "vendor.example/other"


def text(**settings: Any) -> str:
    return yaml.safe_dump({"version": "v1", **settings})


def shares(replicas: int) -> str:
    return text(resources={RESOURCE: {"replicas": replicas}})


class Node:
    """A node whose daemon reads a ConfigMap."""

    def __init__(self, kubelet: Kubelet, mount: ConfigMap, daemon: Running) -> None:
        self.kubelet = kubelet
        self.mount = mount
        self.daemon = daemon
        self.file = mount.path("config.yaml")

    def status(self) -> Status:
        (one,), errors = client.ask_all(Paths.below(self.kubelet.root).locks)
        assert errors == ()
        return one

    def lines(self) -> list[str]:
        """The log's lines about configurations."""
        return [line for line in self.daemon.log().splitlines() if self.mount.directory in line and "pid" not in line]


@contextmanager
def node(kubelet: Kubelet, config: str, *flags: str) -> Iterator[Node]:
    put_files(kubelet, "a")
    mount = ConfigMap(os.path.join(kubelet.root, "mount"), config=config)
    with running(kubelet, "--config", mount.path("config.yaml"), *flags) as daemon:
        kubelet.wait_for(RESOURCE)
        wait_until(lambda: client.ask_all(Paths.below(kubelet.root).locks)[0], "its status")
        yield Node(kubelet, mount, daemon)
        assert daemon.end() == 0
        assert "Traceback" not in daemon.log()


def test_an_edit_is_applied_and_what_it_does_not_change_does_not_notice(either: Kubelet) -> None:
    """The pod that holds a device keeps it, its resource keeps its registration and its stream."""
    with node(either, shares(2)) as one:
        either.wait_for(RESOURCE, healthy=2)
        pod = Pod.requesting(RESOURCE, 1)
        assert either.admit(pod)
        either.start_container(pod)
        held = either.pod_status(pod)
        before = one.status()
        one.mount.write(config=shares(3))
        either.wait_for(RESOURCE, healthy=3)
        assert either.pod_status(pod) == held
        assert either.streams(RESOURCE) == 1
        after = one.status()
        assert (after.pid, after.config.source) == (before.pid, one.file)
        assert after.config.hash != before.config.hash
        assert after.config.loaded_at > before.config.loaded_at
        assert one.lines() == [line for line in one.lines() if line.endswith(f"{one.file}: applied")]
        assert len(one.lines()) == 1
    assert len(either.events.of("register")) == 1


MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "unknown key": (text(resource={}), "config.yaml:1: top level: unknown key 'resource', did you mean 'resources'?"),
    "wrong type": (text(resources={RESOURCE: {"replicas": "two"}}), "replicas: Expected `int`, got `str`"),
    "out of range": (text(resources={RESOURCE: {"replicas": 0}}), "replicas: Expected `int` >= 1"),
    "no version": ("resources: {}\n", "Object missing required field `version`"),
    "other version": ("version: v2\n", "version: Invalid enum value 'v2'"),
    "reserved name": (text(resources={RESOURCE: {"rename": "kubernetes.io/x"}}), "reserved"),
    "unknown plugin": (text(plugins=[{"plugin": "generc"}]), "plugin 'generc' is not installed; did you mean 'generic'?"),
    "wrong option": (text(plugins=[{"plugin": FILES, "name": "more", "config": {"a": 1}}]), "takes no options, but config has a"),
    "wrong option of other nodes": (
        text(nodes=[{"name": "x", "match": {"names": ["x"]}, "settings": {"plugins": [{"plugin": "generic", "config": {"devises": []}}]}}]),
        "nodes 'x': plugin generic: config: top level: unknown key 'devises', did you mean 'devices'?",
    ),
    "bad YAML": ("version: v1\nplugins: [1\nb: 2\n", "config.yaml:3:2: not valid YAML"),
    "key twice": ("version: v1\nversion: v1\n", "config.yaml:2:1: not valid YAML: the key 'version' is there twice"),
    "empty": ("", "not nothing"),
    "cut off": ("version: v1\nresources:\n  vendor.example/device: {repl", "not valid YAML"),
    "binary": (bytes(range(256)) * 16, "is not UTF-8"),
    "10 MB": (b"version: v1\n" * 900_000, "is longer than 1048576 bytes"),
    "nested": ("version: " + "[" * 100_000, "more than 64 lists and mappings in each other"),
}


@pytest.mark.parametrize("first", range(0, len(MISTAKES), 4))
def test_a_bad_edit_is_refused_and_everything_says_so_and_nothing_else_happens(kubelet: Kubelet, first: int) -> None:
    mistakes = list(MISTAKES.items())[first : first + 4]
    with node(kubelet, shares(2), "--node-name", "n1") as one:
        kubelet.wait_for(RESOURCE, healthy=2)
        good, mark = one.status(), len(kubelet.events)
        for name, (content, words) in mistakes:
            one.mount.write(config=content)
            wait_until(lambda words=words: words in one.status().config_error, name, 5.0, lambda: one.status().config_error + one.daemon.log())  # type: ignore[misc]
            status = one.status()
            (check,) = [check for check in status.checks if check.name == "config"]
            assert (check.ok, check.vital, status.ready) == (False, False, True)
            assert words in check.text
            assert status.config.hash == good.config.hash
        assert len(one.lines()) == len(mistakes)
        assert all(line.endswith("; nothing was changed") for line in one.lines())
        assert len(kubelet.healthy(RESOURCE)) == 2
        assert len(kubelet.events) == mark
        one.mount.write(config=shares(2))
        wait_until(lambda: one.lines()[-1].endswith(": applied"), "the end of the error")
        assert one.status().config_error == ""


def deleted(path: str) -> None:
    os.unlink(path)


def looped(path: str) -> None:
    os.unlink(path)
    os.symlink(path, path)


def directory(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)


def device(path: str) -> None:
    os.unlink(path)
    os.symlink("/dev/zero", path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (deleted, "cannot be read: No such file or directory"),
        (looped, "cannot be read: Too many levels of symbolic links"),
        (directory, "cannot be read: Is a directory"),
        (device, "cannot be read: it is not a file"),
    ],
)
def test_a_file_that_is_gone_or_cannot_be_read_leaves_what_was_applied(kubelet: Kubelet, spoil: Callable[[str], None], words: str) -> None:
    with node(kubelet, shares(2)) as one:
        kubelet.wait_for(RESOURCE, healthy=2)
        mark = len(kubelet.events)
        spoil(one.file)
        wait_until(lambda: words in one.status().config_error, words, 5.0, one.daemon.log)
        assert one.status().ready
        assert len(kubelet.events) == mark
        if os.path.isdir(one.file):
            os.rmdir(one.file)
        os.symlink("..data/config.yaml", f"{one.file}.new")
        os.rename(f"{one.file}.new", one.file)
        wait_until(lambda: one.lines()[-1].endswith(": applied"), "the end of the error")
        assert one.status().config_error == ""
        assert len(one.lines()) == 2
        assert len(kubelet.healthy(RESOURCE)) == 2


def test_flapping_edits_end_in_the_last_one(kubelet: Kubelet) -> None:
    with node(kubelet, shares(1)) as one:
        kubelet.wait_for(RESOURCE, healthy=1)
        for n in range(40):
            one.mount.write(config=shares(2) if n % 2 else "nonsense: [")
            time.sleep(0.01)  # the pace of whoever edits
        one.mount.write(config=shares(4))
        kubelet.wait_for(RESOURCE, healthy=4)
        assert one.status().config_error == ""
        assert len(one.lines()) == 1, "what did not settle was not looked at"
    assert len(kubelet.events.of("register")) == 1


def test_the_same_again_and_sighup_are_said_at_most_when_asked(kubelet: Kubelet) -> None:
    with node(kubelet, shares(2)) as one:
        kubelet.wait_for(RESOURCE, healthy=2)
        one.mount.write(config=shares(2), other="is nobody's business")
        one.daemon.process.send_signal(signal.SIGHUP)
        wait_until(one.lines, "a line for the signal")
        one.mount.write(config=shares(2) + "# a remark\n")
        wait_until(lambda: len(one.lines()) == 2, "a line for the edit")
        assert [line.rpartition(": ")[2] for line in one.lines()] == ["applied", "applied"]


def test_labels_of_the_node_choose_and_their_file_is_watched(kubelet: Kubelet) -> None:
    labels = os.path.join(kubelet.root, "labels")
    config = text(
        resources={RESOURCE: {"policy": "pack"}},
        labelFiles=[labels],
        nodes=[{"name": "shared", "match": {"labels": {"example.com/share": "true"}}, "settings": {"resources": {RESOURCE: {"replicas": 3}}}}],
    )
    with node(kubelet, config) as one:
        kubelet.wait_for(RESOURCE, healthy=1)
        assert one.status().config.variant == ""
        with open(labels, "w", encoding="ascii") as file:
            file.write('example.com/share="true"\n')
        kubelet.wait_for(RESOURCE, healthy=3)
        wait_until(lambda: one.status().config.variant == "shared", "the variant in the status")
        assert "applied, with 'shared' of its nodes" in [check.text for check in one.status().checks]
        os.unlink(labels)
        kubelet.wait_for(RESOURCE, healthy=1)
    assert len(kubelet.events.of("register")) == 1


def test_a_node_without_a_name_does_not_start_where_names_decide(kubelet: Kubelet) -> None:
    config = text(nodes=[{"name": "x", "match": {"names": ["gpu-*"]}}])
    mount = ConfigMap(os.path.join(kubelet.root, "mount"), config=config)
    with running(kubelet, "--config", mount.path("config.yaml"), env={"DEVICEPLUGIN_NODE_NAME": ""}) as daemon:
        assert daemon.process.wait(10.0) == 2
        assert "this node's is not known: set DEVICEPLUGIN_NODE_NAME (in a pod from the field spec.nodeName)" in daemon.log()
        assert len(daemon.log().splitlines()) == 1


def test_the_metrics_say_what_is_in_force_and_what_was_refused(kubelet: Kubelet) -> None:
    with node(kubelet, shares(2)) as one:
        (socket,) = client.sockets(Paths.below(kubelet.root).locks)

        def value(name: str) -> list[str]:
            lines = (client.fetch(socket, "/metrics") or b"").decode().splitlines()
            return [line.rpartition(" ")[2] for line in lines if line.startswith(f"deviceplugin_{name}")]

        one.mount.write(config="nonsense")
        wait_until(lambda: one.status().config_error, "a refusal")
        assert value("config_last_reload_successful") == ["0.0"]
        one.mount.write(config=shares(3))
        kubelet.wait_for(RESOURCE, healthy=3)
        assert value("config_last_reload_successful") == ["1.0"]
        assert value("config_reloads_total") == ["1.0", "1.0"]
