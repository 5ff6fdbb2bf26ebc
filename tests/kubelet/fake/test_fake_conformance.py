# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Kubelet, NotReached, PluginConformance, conformance
from deviceplugin.testing.plugin_calls import oversized
from tests.kubelet.fake.reference import Reference
from tests.kubelet.fake.scripted import RESOURCE, Refuse, Scripted, healthy


class TestReference(PluginConformance):
    resource = RESOURCE

    def serving(self, kubelet: Kubelet) -> AbstractContextManager[object]:
        return Reference(kubelet)


def serve(kubelet: Kubelet, devices: list[pb.Device], *, prefers: bool = False) -> Scripted:
    plugin = Scripted(kubelet, devices)
    plugin.options = lambda: pb.DevicePluginOptions(get_preferred_allocation_available=prefers)
    plugin.register()
    kubelet.wait_for_event("list", RESOURCE)
    return plugin


def test_a_second_registration_while_a_stream_is_open_is_found(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")):
        conformance.one_stream(kubelet, RESOURCE)
        with serve(kubelet, healthy("a")):
            kubelet.wait_for_event("stream opened", RESOURCE, count=2)
            with pytest.raises(AssertionError, match="has 2 ListAndWatch streams"):
                conformance.one_stream(kubelet, RESOURCE)
    kubelet.wait_for_event("stream ended", RESOURCE, count=2)
    with serve(kubelet, healthy("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
        with pytest.raises(AssertionError, match="called Register while a stream was open"):
            conformance.one_stream(kubelet, RESOURCE)


@pytest.mark.parametrize(
    ("devices", "finding"),
    [
        (healthy("a", "a"), "lists an id twice"),
        (healthy(""), "has 0 characters"),
        (healthy("x" * 64), "has 64 characters"),
        ([pb.Device(ID="a", health="OK")], "has health 'OK'"),
        ([pb.Device(ID="a", health="Healthy", topology=pb.TopologyInfo())], "has an empty topology"),
        (healthy("a", nodes=[-1]), "they go from 0 to 63"),
    ],
)
def test_a_list_that_the_kubelet_would_misread_is_found(kubelet: Kubelet, devices: list[pb.Device], finding: str) -> None:
    with serve(kubelet, devices), pytest.raises(AssertionError, match=finding):
        conformance.lists_well(kubelet, RESOURCE)


def test_a_list_without_a_change_is_found(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as plugin:
        conformance.stays_quiet(kubelet, RESOURCE, seconds=0.05)
        plugin.relist(healthy("a"))
        kubelet.wait_for_event("list", RESOURCE, count=2)
        with pytest.raises(AssertionError, match="sent the same list twice"):
            conformance.stays_quiet(kubelet, RESOURCE, seconds=0.05)


def answer(**fields: object) -> Callable[[list[str]], pb.ContainerAllocateResponse]:
    return lambda ids: pb.ContainerAllocateResponse(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("allocate", "finding"),
    [
        (lambda ids: None, "for 1 container gave 0"),
        (lambda ids: pb.ContainerAllocateResponse(envs={"IDS": ",".join(ids)}), "in another order gave another answer"),
        (answer(devices=[pb.DeviceSpec(container_path="x", host_path="/x", permissions="rw")]), "paths are not absolute"),
        (answer(devices=[pb.DeviceSpec(container_path="/x", host_path="/x", permissions="rx")]), "permissions 'rx'"),
        (answer(), "Allocate of 'no-such-device' succeeded"),
    ],
)
def test_a_wrong_allocate_is_found(kubelet: Kubelet, allocate: Callable[[list[str]], pb.ContainerAllocateResponse | None], finding: str) -> None:
    with serve(kubelet, healthy("a", "b")) as plugin:
        plugin.allocate = allocate
        with pytest.raises(AssertionError, match=finding):
            conformance.allocates_well(kubelet, RESOURCE)


def test_an_unknown_id_must_be_named(kubelet: Kubelet) -> None:
    def vague(ids: list[str]) -> pb.ContainerAllocateResponse:
        if "no-such-device" in ids:
            raise Refuse("bad request")
        return pb.ContainerAllocateResponse()

    with serve(kubelet, healthy("a")) as plugin:
        plugin.allocate = vague
        with pytest.raises(AssertionError, match="without naming it"):
            conformance.allocates_well(kubelet, RESOURCE)


@pytest.mark.parametrize(
    ("prefer", "finding"),
    [
        (lambda available, required, size: sorted(available)[: size + 1], "not 1 different ids"),
        (lambda available, required, size: ([*required, min(available)] * size)[:size], "not 2 different ids"),
        (lambda available, required, size: sorted(available)[:size], "one that is required is missing"),
        (lambda available, required, size: [*required, "zz", "zy", "zx"][:size], "not all of these are available"),
        (lambda available, required, size: (required + [one for one in available if one not in required])[:size], "in another order"),
    ],
)
def test_a_wrong_preference_is_found(kubelet: Kubelet, prefer: Callable[[list[str], list[str], int], list[str]], finding: str) -> None:
    with serve(kubelet, healthy("a", "b", "c"), prefers=True) as plugin:
        plugin.prefer = prefer
        with pytest.raises(AssertionError, match=finding):
            conformance.prefers_well(kubelet, RESOURCE)


def test_a_plugin_that_offers_no_preference_is_not_asked(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")) as plugin:
        conformance.prefers_well(kubelet, RESOURCE)
        conformance.takes_large_requests(kubelet, RESOURCE)
        assert not plugin.calls("GetPreferredAllocation")


def test_the_large_request_is_larger_than_grpcs_default(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a"), prefers=True) as plugin:
        plugin.prefer = lambda available, required, size: available[:size]
        assert oversized(kubelet, RESOURCE) == ["a"]
        (request,) = plugin.calls("GetPreferredAllocation")
        assert request.ByteSize() > 4 * 1024 * 1024
        conformance.takes_large_requests(kubelet, RESOURCE)


def test_a_plugin_that_stays_away_after_a_restart_is_found(kubelet: Kubelet) -> None:
    with serve(kubelet, healthy("a")), pytest.raises(NotReached, match=f"{RESOURCE} with 1 healthy"):
        conformance.comes_back(kubelet, RESOURCE, within=0.2)


def test_descriptors_that_pile_up_are_found(kubelet: Kubelet) -> None:
    kept: list[socket.socket] = []

    class Leaky(Reference):
        def _plugin(self) -> Scripted:
            kept.extend(socket.socket() for _ in range(2))
            return super()._plugin()

    with Leaky(kubelet):
        kubelet.wait_for(RESOURCE, healthy=3)
        with pytest.raises(AssertionError, match=r"from \d+ to \d+ file descriptors in 3 kubelet restarts"):
            conformance.leaks_nothing(kubelet, RESOURCE, pid=os.getpid(), restarts=3)
    for one in kept:
        one.close()


def test_a_socket_left_behind_or_taken_along_is_found(kubelet: Kubelet) -> None:
    with Reference(kubelet):
        kubelet.wait_for(RESOURCE, healthy=3)
    with pytest.raises(AssertionError, match=r"removed \['other.sock'\]"):
        conformance.withdraws(kubelet, RESOURCE, {"other.sock"})
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.path.join(kubelet.device_plugins, "left.sock"))
        with pytest.raises(AssertionError, match=r"left \['left.sock'\] behind"):
            conformance.withdraws(kubelet, RESOURCE, set())
