# SPDX-License-Identifier: Apache-2.0
"""Reads that fail as a driver makes them fail, with the system's own errors, and one that does not come back."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from deviceplugin import Device, Health, Host
from deviceplugin.plugins.mic import Mic
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.faulty_tree import FaultyTree
from deviceplugin.testing.mic import SimulatedMics
from tests.unit.mic.test_mic_probe import HAS

SERVABLE = os.access("/dev/fuse", os.W_OK) and os.geteuid() == 0
pytestmark = pytest.mark.skipif(not SERVABLE, reason="serving a tree takes /dev/fuse, and root to mount it")


@pytest.mark.parametrize("flavour", HAS)
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO, errno.EAGAIN])
def test_each_file_in_turn(tmp_path: Path, flavour: str, number: int) -> None:
    machine = SimulatedHost(tmp_path / "machine")
    mics = SimulatedMics(machine, flavour)  # type: ignore[arg-type]
    bad, good = mics.add(), mics.add()
    tree = FaultyTree(machine.root)
    with tree.served() as root:
        plugin = Mic(host=Host(root))

        def look() -> dict[str, Device]:
            found = [one for one in plugin.discover() if isinstance(one, Device)]
            return {str(one.attributes["pci_address"]): one for one in found}

        before = look()
        for file in HAS[flavour]:
            path = f"{bad.directory}/{file}" if "device/" not in file else f"{bad.pci}/{file[7:]}"
            tree.fail(path, number)
            after = look()
            assert after[good.address] == before[good.address]
            assert after[bad.address].id == before[bad.address].id
            if file == "state":
                assert after[bad.address].health is Health.UNKNOWN
                assert after[bad.address].cause == f"state: {os.strerror(number)}"
            tree.mend(path)
            assert look() == before


def test_a_card_that_does_not_answer_is_waited_for_by_nobody_else(tmp_path: Path) -> None:
    """The framework gives a look up and keeps what it had; here it only counts that the look goes on once the card answers."""
    machine = SimulatedHost(tmp_path / "machine")
    mics = SimulatedMics(machine, "mpss3")
    card = mics.add()
    tree = FaultyTree(machine.root)
    with tree.served() as root:
        plugin = Mic(host=Host(root))
        stuck = tree.hang(f"{card.directory}/state")
        found: list[object] = []
        looking = threading.Thread(target=lambda: found.extend(plugin.discover()))
        looking.start()
        assert stuck.entered.wait(5)
        assert looking.is_alive()
        assert not plugin.allocate([]).nodes  # other hooks go on
        stuck.release()
        looking.join(5)
        assert [one.health for one in found if isinstance(one, Device)] == [Health.HEALTHY]
