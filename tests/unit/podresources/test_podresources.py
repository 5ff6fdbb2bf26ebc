# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from deviceplugin.kubelet import podresources
from deviceplugin.kubelet import podresources_v1_pb2 as pb
from deviceplugin.kubelet.podresources import UNUSED_LOOKS, Holder, Holdings, PodResources, aggregate
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET

WAIT = 10


def listing(*rows: tuple[str, str, str, list[str]]) -> pb.ListPodResourcesResponse:
    """Rows of pod, container, resource and ids."""
    response = pb.ListPodResourcesResponse()
    for pod, container, resource, ids in rows:
        one = response.pod_resources.add(name=pod, namespace="ns").containers.add(name=container)
        one.devices.add(resource_name=resource, device_ids=ids)
    return response


class Kubelet:
    """Answers List with :attr:`answer`, or fails with it."""

    def __init__(self, path: Path) -> None:
        self.answer: pb.ListPodResourcesResponse | grpc.StatusCode = listing()
        self.server = grpc.server(ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(self.list, pb.ListPodResourcesRequest.FromString, pb.ListPodResourcesResponse.SerializeToString)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler}),))
        self.server.add_insecure_port(f"unix:{path}")
        self.server.start()

    def list(self, _request: Any, context: Any) -> Any:
        if isinstance(self.answer, grpc.StatusCode):
            context.abort(self.answer, "too many requests")
        return self.answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kubelet.sock"


@pytest.fixture
def kubelet(path: Path) -> Iterator[Kubelet]:
    one = Kubelet(path)
    yield one
    one.server.stop(None).wait()


def test_a_device_on_several_numa_nodes_is_held_once() -> None:
    found = aggregate(listing(("p", "c", WIDGET, ["a"]), ("p", "c", WIDGET, ["a", "b"])))
    assert found == {(WIDGET, "a"): (Holder("ns", "p", "c"),), (WIDGET, "b"): (Holder("ns", "p", "c"),)}


def test_containers_that_share_a_device_are_all_told_in_order() -> None:
    found = aggregate(listing(("p2", "c", WIDGET, ["a"]), ("p1", "init", WIDGET, ["a"]), ("p1", "app", WIDGET, ["a"])))
    assert found[WIDGET, "a"] == (Holder("ns", "p1", "app"), Holder("ns", "p1", "init"), Holder("ns", "p2", "c"))


def test_resources_with_equal_ids_are_told_apart() -> None:
    found = aggregate(listing(("p", "c", WIDGET, ["a"]), ("q", "c", "example.com/other", ["a"])))
    assert {key: [one.pod for one in holders] for key, holders in found.items()} == {(WIDGET, "a"): ["p"], ("example.com/other", "a"): ["q"]}


def test_nothing_held_is_an_empty_view() -> None:
    assert aggregate(pb.ListPodResourcesResponse()) == {}
    assert Holdings().holders(WIDGET, "a") == ()


def test_before_the_kubelet_has_answered_nothing_is_known(path: Path) -> None:
    one = PodResources(str(path), Tally())
    assert not one.holdings.get().fresh
    view = one.ask()
    assert (view.fresh, view.error, view.taken_at) == (False, f"no socket at {path}", 0.0)


def test_the_kubelets_answer_is_the_view(path: Path, kubelet: Kubelet) -> None:
    kubelet.answer = listing(("p", "c", WIDGET, ["a"]))
    one = PodResources(str(path), Tally())
    view = one.ask()
    assert view.fresh
    assert view.taken_at > 0
    assert view.holders(WIDGET, "a") == (Holder("ns", "p", "c"),)
    assert one.holdings.get() is view


def test_an_error_keeps_the_last_view_and_says_that_it_is_old(path: Path, kubelet: Kubelet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    kubelet.answer = listing(("p", "c", WIDGET, ["a"]))
    tally = Tally()
    one = PodResources(str(path), tally)
    good = one.ask()
    kubelet.answer = grpc.StatusCode.RESOURCE_EXHAUSTED
    old = one.ask()
    assert (old.fresh, old.by_device, old.taken_at) == (False, good.by_device, good.taken_at)
    assert "RESOURCE_EXHAUSTED: too many requests" in old.error
    one.ask()
    assert tally.value("podresources_failures", code="RESOURCE_EXHAUSTED") == 2
    kubelet.answer = listing()
    assert one.ask().by_device == {}
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("podresources")]
    assert ["not known" in line for line in lines] == [True, False], "each change is said once"
    assert "answers again" in lines[1]


def test_a_kubelet_that_went_away_is_an_error_too(path: Path) -> None:
    kubelet = Kubelet(path)
    kubelet.answer = listing(("p", "c", WIDGET, ["a"]))
    one = PodResources(str(path), Tally())
    one.ask()
    kubelet.server.stop(None).wait()
    path.unlink(missing_ok=True)
    view = one.ask()
    assert not view.fresh
    assert view.holders(WIDGET, "a")


def test_whoever_waits_for_a_view_gets_each_new_one(path: Path, kubelet: Kubelet) -> None:
    views: queue.SimpleQueue[bool] = queue.SimpleQueue()
    one = PodResources(str(path), Tally(), lambda: views.put(one.holdings.get().fresh), period=3600)
    one.start()
    assert views.get(timeout=WAIT) is True
    kubelet.answer = grpc.StatusCode.INTERNAL
    one.refresh()
    assert views.get(timeout=WAIT) is False
    one.stop()
    one._thread.join(WAIT)
    assert not one._thread.is_alive()


def test_while_nothing_is_held_the_kubelet_is_asked_less_often(path: Path, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podresources, "SETTLE", 0.0)
    monkeypatch.setattr(podresources, "UNUSED", 3600.0)
    views: queue.SimpleQueue[Holdings] = queue.SimpleQueue()
    one = PodResources(str(path), Tally(), lambda: views.put(one.holdings.get()), period=0.01)
    one.start()
    for _ in range(1 + UNUSED_LOOKS):
        assert views.get(timeout=WAIT).by_device == {}
    with pytest.raises(queue.Empty):
        views.get(timeout=0.3)
    kubelet.answer = listing(("p", "c", WIDGET, ["a"]))
    one.refresh()
    for _ in range(5):  # of themselves, since it is held
        assert views.get(timeout=WAIT).holders(WIDGET, "a")
    kubelet.answer = grpc.StatusCode.INTERNAL
    while views.get(timeout=WAIT).fresh:
        pass
    for _ in range(5):  # of themselves, since it is not known
        assert not views.get(timeout=WAIT).fresh
    one.stop()
    one._thread.join(WAIT)
    assert not one._thread.is_alive()
