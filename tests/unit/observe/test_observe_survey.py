# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from threading import Event

from deviceplugin.config import Deadlines, PluginSettings, ResourceSettings, Settings
from deviceplugin.daemon import make_plan
from deviceplugin.model import Device, Health, Host, Skipped
from deviceplugin.observe import report
from deviceplugin.observe.survey import Survey, survey
from deviceplugin.observe.tables import Screen
from tests.unit.observe.told import Told


def look(
    *found: Device | Skipped,
    error: Exception | None = None,
    resources: dict[str, ResourceSettings] | None = None,
    labels: tuple[str, ...] = ("told",),
) -> Survey:
    cls = type("Told", (Told,), {"found": found, "error": error})
    settings = Settings(version="v1", plugins=[PluginSettings(plugin="told", name=label) for label in labels], resources=resources or {})
    return survey(make_plan(settings, Host(), dict.fromkeys(labels, cls)))


def text(found: Survey) -> str:
    stream = io.StringIO()
    report.show_survey(Screen(stream, terminal=False), found)
    return stream.getvalue()


def test_what_would_be_advertised_is_shown_with_what_is_left_out_and_why() -> None:
    found = look(
        Device("good", numa_nodes=[1], attributes={"model": "T4"}),
        Device("sick", numa_nodes=[0], health=Health.UNHEALTHY, cause="xid: 79"),
        Device("bad", nodes=["dev/x"]),
        Skipped("0000:01:00.0", "bound to vfio-pci"),
    )
    assert found.ok
    lines = text(found).splitlines()
    assert lines[1].split() == ["example.com/told", "told", "2", "1", "1"]
    assert lines[4].split() == ["example.com/told", "good", "healthy", "1", "none", "model=T4"]
    assert lines[5].split() == ["example.com/told", "sick", "unhealthy:", "xid:", "79", "0", "none"]
    assert "left out by plugin told: 0000:01:00.0: bound to vfio-pci" in lines
    assert any(line.startswith("left out by plugin told: bad: device bad: device file 'dev/x'") for line in lines)
    assert report.verdict(found) == "1 resource, 2 devices, 2 left out"


def test_a_list_that_the_kubelet_would_not_take_is_an_error_with_advice() -> None:
    found = look(Device("x" * 50), resources={"example.com/told": ResourceSettings(replicas=100_000)})
    assert not found.ok
    (error,) = found.errors
    assert error.startswith("example.com/told: a list of 100000 devices takes ")
    assert "lower replicas" in error


def test_a_failing_discovery_is_an_error() -> None:
    found = look(error=OSError("no driver"))
    assert found.errors == ("plugin told: discover() failed: OSError: no driver",)
    assert text(found) == "error: plugin told: discover() failed: OSError: no driver\n"


def test_two_plugins_with_one_resource_are_an_error() -> None:
    (error,) = look(Device("a"), labels=("one", "two")).errors
    assert error == "example.com/told: plugins one and two both have devices for it: rename one of the resources"


def test_rules_for_a_resource_that_nobody_has_are_a_warning_with_the_nearest_name() -> None:
    found = look(Device("a"), resources={"example.com/tolt": ResourceSettings(replicas=2)})
    assert found.ok
    assert found.warnings == ("resources.example.com/tolt: no plugin has such a resource here, did you mean 'example.com/told'?",)


def test_replicas_are_one_line_a_device() -> None:
    found = look(Device("a"), Device("b"), resources={"example.com/told": ResourceSettings(replicas=5)})
    assert [line.split()[1:3] for line in text(found).splitlines()[4:]] == [["a", "(x5)"], ["b", "(x5)"]]


def test_thousands_of_things_left_out_are_a_few_lines_and_a_number() -> None:
    found = look(*(Skipped(f"d{i}", "broken") for i in range(5000)))
    assert text(found).count("\n") == 2 + report.SHOWN + 1
    assert "and 4990 more, which -o json has" in text(found)


def test_a_plugin_that_hangs_is_an_error_and_does_not_hang_the_check() -> None:
    block = Event()
    cls = type("Told", (Told,), {"block": block})
    settings = Settings(version="v1", plugins=[PluginSettings(plugin="told", name="told", deadlines=Deadlines(discover=0.05))])
    try:
        found = survey(make_plan(settings, Host(), {"told": cls}))
    finally:
        block.set()
    assert found.errors == ("plugin told: discover() did not answer within 0.05 s",)
