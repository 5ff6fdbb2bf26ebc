# SPDX-License-Identifier: Apache-2.0
"""The examples do what their READMEs say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from deviceplugin import Device, DeviceNode, Health, Host, Mount, Plugin, Skipped
from deviceplugin.config import ConfigError, PluginSettings, Settings, convert, load_class, plugin_config
from deviceplugin.configfile import load
from deviceplugin.plugin import OPTIONAL, overrides
from tests.unit.sysfs.tree import Tree

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def make(spec: str, host: Host, raw: Mapping[str, object] | None = None) -> Plugin:
    cls = load_class(f"{EXAMPLES}/{spec}")
    return cls(plugin_config(cls, raw or {}, "example"), host)


def hooks(plugin: Plugin) -> set[str]:
    return {hook for hook in OPTIONAL if overrides(plugin, hook)}


class TestFuse:
    def test_serves_one_device_file_and_overrides_nothing(self, tree: Tree) -> None:
        fuse = make("01-fuse/fuse.py:Fuse", tree.host)
        assert list(fuse.discover()) == [Device("fuse", nodes=["/dev/fuse"])]
        assert fuse.resource == "example.com/fuse"
        assert hooks(fuse) == set()


class TestSensors:
    @pytest.fixture
    def sensors(self, tree: Tree) -> Plugin:
        for n, (serial, state) in enumerate([("S1", "online"), ("S2", "lost"), ("S3", ""), ("", "online")]):
            attributes = {key: value for key, value in (("serial", serial), ("state", state)) if value}
            card = tree.device(f"/sys/devices/pci0000:00/0000:00:0{n}.0", "pci", numa_node="0", **attributes)
            tree.link(f"/sys/class/acme/acme{n}", tree.device(f"{card}/acme/acme{n}"))
        return make("02-health/sensors.py:Sensors", tree.host)

    def test_cards_are_as_well_as_their_state(self, sensors: Plugin) -> None:
        *cards, old = sensors.discover()
        seen = [(card.id, card.health, card.cause, card.numa_nodes, card.nodes[0].path) for card in cards if isinstance(card, Device)]
        assert seen == [
            ("S1", Health.HEALTHY, "", (0,), "/dev/acme0"),
            ("S2", Health.UNHEALTHY, "state: lost", (0,), "/dev/acme1"),
            ("S3", Health.UNKNOWN, "state: not known", (0,), "/dev/acme2"),
        ]
        assert old == Skipped("acme3", "has no serial number: its firmware is too old")

    def test_a_card_that_cannot_be_read_hides_no_other(self, tree: Tree, sensors: Plugin) -> None:
        state = "/sys/devices/pci0000:00/0000:00:00.0/state"
        tree.remove(state)
        tree.link(state, "state")
        broken, *others = sensors.discover()
        assert broken == Skipped("acme0", f"{state} cannot be read: Too many levels of symbolic links")
        assert [one.id for one in others if isinstance(one, Device)] == ["S2", "S3"]

    def test_a_new_card_is_seen_and_stop_ends_the_watch(self, tree: Tree, sensors: Plugin) -> None:
        events = sensors.watch()
        tree.link("/sys/class/acme/acme9", tree.device("/sys/devices/virtual/acme/acme9", serial="S9", state="online"))
        next(events)
        assert "S9" in [one.id for one in sensors.discover() if isinstance(one, Device)]
        sensors.stop()
        assert list(events) == []


class TestCodecs:
    @pytest.fixture
    def codecs(self, tree: Tree) -> Plugin:
        for n in (0, 1):
            tree.file(f"/sys/class/acme_codec/codec{n}/serial", f"C{n}\n")
            tree.file(f"/sys/class/acme_codec/codec{n}/firmware", "h264\n")
        return make("03-config/codecs.py:Codecs", tree.host, {"firmware": "av1", "firmwareDirectory": "/opt/acme"})

    def test_allocate_numbers_the_codecs_of_a_container(self, codecs: Plugin) -> None:
        devices = [one for one in codecs.discover() if isinstance(one, Device)]
        edits = codecs.allocate(devices[1:])
        assert edits.nodes == (DeviceNode("/dev/codec1", "/dev/codec0"),)
        assert edits.mounts == (Mount("/opt/acme", "/firmware", True),)
        assert edits.envs == {"ACME_CODECS": "C1"}
        assert codecs.allocate(devices[1:]) == edits

    def test_prepare_loads_the_firmware_of_the_devices_held_and_may_be_repeated(self, tree: Tree, codecs: Plugin) -> None:
        devices = [one for one in codecs.discover() if isinstance(one, Device)]
        for _ in range(2):
            codecs.prepare(devices[:1])
            assert [tree.at(f"/sys/class/acme_codec/codec{n}/firmware").read_text().strip() for n in (0, 1)] == ["av1", "h264"]

    def test_prepare_fails_where_the_card_has_gone(self, tree: Tree, codecs: Plugin) -> None:
        devices = [one for one in codecs.discover() if isinstance(one, Device)]
        tree.remove("/sys/class/acme_codec/codec0")
        with pytest.raises(FileNotFoundError):
            codecs.prepare(devices[:1])

    def test_options_are_checked(self, tree: Tree) -> None:
        for raw, text in (
            ({"firmwareDirectory": "opt"}, "firmwareDirectory 'opt' must be an absolute path"),
            ({"firmwear": "av1"}, "unknown key 'firmwear', did you mean 'firmware'?"),
        ):
            with pytest.raises(ConfigError) as caught:
                make("03-config/codecs.py:Codecs", tree.host, raw)
            assert str(caught.value).endswith(text)


def entries(settings: Settings) -> list[PluginSettings]:
    assert settings.plugins
    return settings.plugins


@pytest.mark.parametrize("readme", sorted(EXAMPLES.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_yaml_and_links_of_a_readme_are_good(readme: Path) -> None:
    text = readme.read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        for entry in entries(convert(yaml.safe_load(block), Settings, str(readme))):
            plugin_config(load_class(f"{ROOT}/{entry.plugin}"), entry.config, entry.label)
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (readme.parent / link).exists(), link


def test_the_configuration_of_the_third_loads() -> None:
    (entry,) = entries(load(f"{EXAMPLES}/03-config/config.yaml", environ={}).settings)
    assert plugin_config(load_class(f"{ROOT}/{entry.plugin}"), entry.config, entry.label).firmware == "av1"
