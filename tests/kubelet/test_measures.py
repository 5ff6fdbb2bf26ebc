# SPDX-License-Identifier: Apache-2.0
"""What plugins measure is shown by device and by the pod that holds it, and no plugin can spoil the page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deviceplugin import Device, Measure, Measurement
from deviceplugin.config import Deadlines, ResourceSettings
from deviceplugin.daemon import Daemon
from deviceplugin.observe import measures, metrics
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.serving import RESOURCE, Rack, serving, wait_until

POWER = {"card_power_watts": Measure("Power.", labels=("rail",))}
Figures = Callable[[Any], Iterator[Any]]


def rack(figures: Figures, *devices: Device, declared: dict[str, Measure] | None = None, label: str = "", **settings: Any) -> Rack:
    hooks: dict[str, Any] = {"measures": POWER if declared is None else declared, "measure": figures}
    return Rack(*devices, label=label, settings=settings, **hooks)


def samples(daemon: Daemon, name: str) -> list[tuple[dict[str, str], float]]:
    text = generate_latest(metrics.registry(daemon)).decode()
    return [(one.labels, one.value) for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]


def holders_known(daemon: Daemon, number: int) -> None:
    daemon.podresources.refresh()
    wait_until(lambda: len(daemon.podresources.holdings.get().by_device) == number, "the kubelet's view")


def test_a_figure_is_the_pods_that_holds_the_device_alone(kubelet: Kubelet) -> None:
    def figures(_plugin: Any) -> Iterator[Measurement]:
        for device in ("a", "b", "card-b"):
            yield Measurement("card_power_watts", 12.5, device, ("3v3",))

    with serving(kubelet, rack(figures, Device("a"), Device("b", unit="card-b"))) as daemon:
        kubelet.wait_for(RESOURCE, healthy=2)
        pod = Pod.requesting(RESOURCE, 1, name="trainer")
        assert kubelet.admit(pod)
        holders_known(daemon, 1)
        (held,) = kubelet.held(pod)
        found = {labels["device"]: labels for labels, _ in samples(daemon, "deviceplugin_card_power_watts")}
        mine = {"a"} if held == "a" else {"b", "card-b"}
        assert {device for device, labels in found.items() if labels["pod"] == "trainer"} == mine
        assert found[held] == {"plugin": "device", "device": held, "namespace": "default", "pod": "trainer", "container": "main", "rail": "3v3"}
        assert samples(daemon, "deviceplugin_device_held") == [
            ({"resource": RESOURCE, "device": held, "namespace": "default", "pod": "trainer", "container": "main"}, 1.0)
        ]


def test_of_a_shared_device_nobody_can_say_whose_figure_it_is(kubelet: Kubelet) -> None:
    def figures(_plugin: Any) -> Iterator[Measurement]:
        yield Measurement("card_power_watts", 1, "a", ("12v",))

    with serving(kubelet, rack(figures, Device("a")), resources={RESOURCE: ResourceSettings(replicas=4)}) as daemon:
        kubelet.wait_for(RESOURCE, healthy=4)
        assert kubelet.admit(Pod.requesting(RESOURCE, 2, name="one"))
        holders_known(daemon, 2)
        assert [labels["pod"] for labels, _ in samples(daemon, "deviceplugin_card_power_watts")] == ["one"]
        assert kubelet.admit(Pod.requesting(RESOURCE, 1, name="two"))
        holders_known(daemon, 3)
        assert [labels["pod"] for labels, _ in samples(daemon, "deviceplugin_card_power_watts")] == [""]
        assert [(labels["pod"], value) for labels, value in samples(daemon, "deviceplugin_device_held")] == [("one", 2.0), ("two", 1.0)]


@pytest.mark.parametrize(
    "figure",
    [
        "12 W",
        Measurement("card_weight_kilograms", 1, "a", ("x",)),
        Measurement("card_power_watts", 1, "a"),
        Measurement("card_power_watts", "much", "a", ("x",)),  # type: ignore[arg-type]
        None,
    ],
)
def test_a_figure_that_was_not_declared_is_left_out_and_said_once(kubelet: Kubelet, caplog: pytest.LogCaptureFixture, figure: Any) -> None:
    def figures(_plugin: Any) -> Iterator[Any]:
        yield figure
        yield Measurement("card_power_watts", 2, "a", ("x",))

    with serving(kubelet, rack(figures, Device("a"))) as daemon:
        collector = measures.Measures(daemon)
        for _ in range(3):
            families = {one.name: one for one in collector.collect()}
            assert [one.value for one in families["deviceplugin_card_power_watts"].samples] == [2]
        assert len([one for one in caplog.records if "not as its measures say" in one.getMessage()]) == 1


def test_two_plugins_that_mean_different_things_by_one_name(kubelet: Kubelet, caplog: pytest.LogCaptureFixture) -> None:
    def figures(plugin: Any) -> Iterator[Measurement]:
        yield Measurement("card_power_watts", 2, "a", ("x",) * len(plugin.measures["card_power_watts"].labels))

    first = rack(figures, Device("a"), label="first")
    second = Rack("c", resource="vendor.example/other", measures={"card_power_watts": Measure("Other.")}, measure=figures)  # type: ignore[arg-type]
    with serving(kubelet, first, second) as daemon:
        assert [labels["plugin"] for labels, _ in samples(daemon, "deviceplugin_card_power_watts")] == ["first"]
    assert "plugin other: another plugin measures card_power_watts too" in caplog.text


def test_a_plugin_that_raises_or_hangs_costs_its_own_figures_only(kubelet: Kubelet, caplog: pytest.LogCaptureFixture) -> None:
    gate, calls = threading.Event(), []

    def hanging(_plugin: Any) -> Iterator[Measurement]:
        calls.append(1)
        gate.wait()
        return iter(())

    def raising(_plugin: Any) -> Iterator[Measurement]:
        raise OSError("no sensor")

    first = rack(hanging, Device("a"), label="hanging", deadlines=Deadlines(measure=0.05))
    second = Rack("c", resource="vendor.example/other", measures=POWER, measure=raising)  # type: ignore[arg-type]
    with serving(kubelet, first, second) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        collector = measures.Measures(daemon)
        for _ in range(3):
            assert "deviceplugin_device_held" in {one.name for one in collector.collect()}
        assert len(calls) == 1, "a call that hangs is not made again"
        assert kubelet.admit(Pod.requesting(RESOURCE, 1))
        gate.set()
    text = "\n".join(one.getMessage() for one in caplog.records)
    assert "measure() did not answer within 0.05 s; it has no metrics meanwhile" in text
    assert "plugin other: measure() failed: OSError: no sensor; it has no metrics meanwhile" in text


def test_figures_are_asked_for_once_a_second_at_most(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def figures(_plugin: Any) -> Iterator[Measurement]:
        calls.append(1)
        yield Measurement("card_power_watts", len(calls), "a", ("x",))

    with serving(kubelet, rack(figures, Device("a"))) as daemon:
        collector = measures.Measures(daemon)

        def value() -> float:
            return next(one for one in collector.collect() if one.name == "deviceplugin_card_power_watts").samples[0].value

        assert [value(), value(), value()] == [1, 1, 1]
        monkeypatch.setattr(measures, "FRESH", 0.0)
        assert value() == 2


def test_the_number_of_series_is_bounded(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MAX_SERIES", 3)

    def figures(_plugin: Any) -> Iterator[Measurement]:
        return (Measurement("card_power_watts", number, str(number), ("x",)) for number in range(100))

    with serving(kubelet, rack(figures, *(Device(str(i)) for i in range(8)))) as daemon:
        kubelet.wait_for(RESOURCE, healthy=8)
        assert kubelet.admit(Pod.requesting(RESOURCE, 5))
        holders_known(daemon, 5)
        assert len(samples(daemon, "deviceplugin_card_power_watts")) == 3
        assert len(samples(daemon, "deviceplugin_device_held")) == 3
        assert samples(daemon, "deviceplugin_device_held_omitted") == [({"resource": RESOURCE}, 2.0)]
