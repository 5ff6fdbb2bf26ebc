# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import pytest

from deviceplugin.cell import Cell
from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet.handlers import Handlers, Refused
from deviceplugin.model import Device, Sharing
from deviceplugin.plugin import Plugin
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET, snapshot_of


def serving(snapshot: Snapshot) -> Handlers:
    return Handlers(WIDGET, Cell(snapshot), Tally())


class Preparing(Plugin):
    resource = WIDGET

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[list[str]] = []
        self.error: Exception | None = None

    def prepare(self, devices: Sequence[Device]) -> None:
        if self.error:
            raise self.error
        self.prepared.append([one.id for one in devices])


def test_devices_are_prepared_each_once_and_in_order() -> None:
    plugin = Preparing()
    handlers = serving(snapshot_of(Device("a"), Device("b"), plugin=plugin, sharing=Sharing(2)))
    assert handlers.options().pre_start_required
    handlers.prestart(pb.PreStartContainerRequest(devices_ids=["b::1", "a::0", "b::0"]))
    assert plugin.prepared == [["a", "b"]]


def test_a_preparation_that_fails_keeps_the_container_from_starting() -> None:
    plugin = Preparing()
    plugin.error = OSError("reset failed")
    handlers = serving(snapshot_of(Device("a"), plugin=plugin))
    for ids, code in ((["a"], "INTERNAL"), (["ghost"], "NOT_FOUND")):
        with pytest.raises(Refused) as caught:
            handlers.prestart(pb.PreStartContainerRequest(devices_ids=ids))
        assert caught.value.code == code


def test_a_plugin_that_prepares_nothing_is_not_waited_for() -> None:
    handlers = serving(snapshot_of(Device("a")))
    assert not handlers.options().pre_start_required
    assert handlers.options().get_preferred_allocation_available
    assert handlers.prestart(pb.PreStartContainerRequest(devices_ids=["ghost"])) == pb.PreStartContainerResponse()
