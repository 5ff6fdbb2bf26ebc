# SPDX-License-Identifier: Apache-2.0
"""Whether a container still has what it was given: seen after it has started."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deviceplugin.plugins.fpga import CannotStart
from deviceplugin.testing.fpga import NLB0, NLB3, Fpgas
from tests.unit.fpga.bench import Bench

P0 = "0000-3b-00.0-p0"


def test_all_is_as_it_was_given(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0")
    fpgas.opae("0000:5e:00.0")
    fpgas.xrt("0000:af:00.0")
    plugin = bench()
    devices = list(plugin.look().values())
    for device in devices:
        plugin.plugin.allocate([device])
    assert [(verdict.enforced, verdict.detail) for verdict in plugin.judge(*devices)] == [(True, "")] * 3


def test_function_that_is_not_the_one_that_was_asked_for(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    device = plugin.one()
    card.ports[0].afu = NLB3
    (verdict,) = plugin.judge(device)
    assert verdict.enforced is False
    assert verdict.detail == f"{P0} should have the function {NLB0}, and has {NLB3}"
    card.ports[0].afu = NLB0
    assert [one.enforced for one in plugin.judge(device)] == [True]


def test_renumbered_ports_after_a_reboot(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    """The kubelet passes on what it was answered before the reboot: the file of what is now another port."""
    fpgas.dfl("0000:3b:00.0")
    fpgas.dfl("0000:5e:00.0")
    plugin = bench()
    device = plugin.look()[P0]
    plugin.plugin.allocate([device])
    plugin.plugin.prepare([device])
    plugin.restart()
    fpgas.reboot(reverse=True)
    device = plugin.look()[P0]
    with pytest.raises(CannotStart, match=f"{P0} was given out as /dev/dfl-port.0, and is /dev/dfl-port.1 now.*delete the pod"):
        plugin.plugin.prepare([device])
    (verdict,) = plugin.judge(device)
    assert (verdict.enforced, "/dev/dfl-port.1 now" in verdict.detail) == (False, True)
    plugin.plugin.allocate([device])  # the next pod gets it as it is now
    plugin.plugin.prepare([device])
    assert [one.enforced for one in plugin.judge(device)] == [True]


def test_containers_from_before_the_plugin_kept_a_record(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0")
    fpgas.dfl("0000:5e:00.0")
    plugin = bench()
    assert [one.enforced for one in plugin.judge(plugin.look()[P0])] == [True]
    fpgas.reboot(reverse=True)
    plugin.restart()
    with pytest.raises(CannotStart, match="was given out as"):
        plugin.plugin.prepare([plugin.look()[P0]])


def test_card_that_was_pulled_out(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    device = plugin.one()
    card.unplug()
    assert plugin.look() == {}
    assert [one.enforced for one in plugin.judge(device)] == [None]
    with pytest.raises(CannotStart, match="delete the pod"):
        plugin.plugin.prepare([device])


def test_file_that_leads_elsewhere(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    card = fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    device = plugin.one()
    fpgas.host.populate({card.ports[0].node: {"device": "c 10:200"}})
    plugin.look()
    (verdict,) = plugin.judge(device)
    assert (verdict.enforced, verdict.detail) == (False, "node: /dev/dfl-port.0 is the device 10:200, and the driver's is 238:0")


def test_what_is_left_on_the_node(bench: Callable[..., Bench], fpgas: Fpgas) -> None:
    fpgas.dfl("0000:3b:00.0")
    plugin = bench()
    assert list(plugin.plugin.uninstall(False)) == []
    plugin.look()
    assert list(plugin.plugin.uninstall(False)) == ["directory /var/lib/deviceplugin/fpga"]
    assert list(plugin.plugin.uninstall(True)) == ["directory /var/lib/deviceplugin/fpga"]
    assert list(plugin.plugin.uninstall(True)) == []
