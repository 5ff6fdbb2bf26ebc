# SPDX-License-Identifier: Apache-2.0
"""An administrator's word that a unit is well again, from the command line to the fault that is forgotten."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from deviceplugin import cli
from deviceplugin.config import HealthSettings, RecoveryRule
from deviceplugin.daemon import Daemon
from deviceplugin.model import Device, Health
from deviceplugin.observe import client, pardon
from deviceplugin.observe.http import StatusServer
from tests.unit.observe.told import Make, Told

NEVER = HealthSettings(recovery={"broken": RecoveryRule(after="never")})
SICK = Device("a", unit="card", health=Health.UNHEALTHY, cause="broken")
WELL = Device("a", unit="card")


@pytest.fixture
def serve(make: Make) -> Iterator[Callable[..., Daemon]]:
    servers: list[StatusServer] = []

    def start(*found: Device, **settings: object) -> Daemon:
        daemon = make(*found, health=NEVER, **settings)
        servers.append(StatusServer(daemon))
        servers[-1].start()
        return daemon

    yield start
    for one in servers:
        one.stop()


def plugin(daemon: Daemon) -> Told:
    return cast(Told, daemon.scanners["told"].hooks.plugin)


def health(daemon: Daemon) -> str:
    return daemon.scanners["told"].inventory.snapshots["example.com/told"].rows[0].health.value


def forgive(root: Path, unit: str, *more: str) -> int:
    return cli.main(["forgive", unit, "--root", str(root), *more])


def on_record(root: Path) -> list[str]:
    return list(json.loads((root / "var/lib/deviceplugin/health-told.json").read_text())["units"])


def test_a_fault_that_no_rule_forgives_is_forgiven_on_request_and_stays_so(
    serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = serve(SICK)
    plugin(daemon).found = (WELL,)
    daemon.scanners["told"].forgive("another").result(10)  # a look later
    assert (health(daemon), on_record(root)) == ("unhealthy", ["card"])
    assert forgive(root, "card") == 0
    assert capsys.readouterr() == ("told: card: broken is forgiven; it is healthy now\n", "")
    assert (health(daemon), on_record(root)) == ("healthy", [])


def test_a_device_stands_for_its_unit(serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = serve(SICK)
    plugin(daemon).found = (WELL,)
    assert forgive(root, "a", "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["forgiven"] == [{"plugin": "told", "unit": "card", "cause": "broken", "health": "healthy", "why": ""}]


def test_a_fault_that_is_still_seen_is_no_success(serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = serve(SICK)
    assert forgive(root, "card") == 1
    assert capsys.readouterr().out == "told: card: broken is forgiven; it is unhealthy still: broken\n"
    assert (health(daemon), on_record(root)) == ("unhealthy", ["card"])


def test_a_unit_that_is_gone_is_forgiven_too(serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = serve(SICK)
    plugin(daemon).found = ()
    daemon.scanners["told"].forgive("another").result(10)
    assert on_record(root) == ["card"]
    assert forgive(root, "card") == 0
    assert on_record(root) == []
    assert capsys.readouterr().out == "told: card: broken is forgiven; it is not here\n"


def test_who_names_nothing_that_is_ill_is_told_what_is(serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(SICK, Device("b"))
    for name in ("b", "nothing", "../../etc", "a b&c=d\n", "\udcff"):
        assert forgive(root, name) == 1
        assert "has no fault on record; there are: card (told: broken)" in capsys.readouterr().err


def test_a_look_that_fails_is_told(serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = serve(SICK)
    plugin(daemon).error = OSError("bus error")
    assert forgive(root, "card") == 1
    assert "broken is forgiven; not looked at yet: plugin told: discover() failed: OSError: bus error" in capsys.readouterr().out


def test_a_look_that_takes_long_is_not_waited_for(
    serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = serve(SICK)
    block = threading.Event()
    plugin(daemon).block = block
    monkeypatch.setattr(pardon, "PATIENCE", 0.05)
    assert forgive(root, "card") == 1
    assert "not looked at yet: a look takes long" in capsys.readouterr().out
    plugin(daemon).found = (WELL,)
    block.set()
    daemon.scanners["told"].forgive("another").result(10)
    assert health(daemon) == "healthy"


def test_without_a_daemon_nothing_is_forgiven(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forgive(root, "card") == 1
    assert "no daemon runs here" in capsys.readouterr().err
    assert forgive(root, "card", "-o", "json") == 1
    assert json.loads(capsys.readouterr().out) == {"version": "v1", "forgiven": [], "errors": []}


def test_every_instance_forgives_and_it_is_told_once(serve: Callable[..., Daemon], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [serve(SICK), serve(SICK)]
    for daemon in both:
        plugin(daemon).found = (WELL,)
    assert forgive(root, "card") == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert [health(daemon) for daemon in both] == ["healthy", "healthy"]


def test_only_the_socket_of_root_can_ask_for_it(make: Make) -> None:
    daemon = make(SICK, health=NEVER)
    server = StatusServer(daemon)
    server.listen("127.0.0.1:0")
    server.start()
    while server.address is None:
        threading.Event().wait(0.01)
    plugin(daemon).found = (WELL,)
    connection = http.client.HTTPConnection(*server.address, timeout=5)
    connection.request("POST", "/forgive?unit=card")
    assert connection.getresponse().status == 405
    connection.close()
    daemon.scanners["told"].forgive("another").result(10)
    assert health(daemon) == "unhealthy"
    assert os.stat(server.socket_path).st_mode & 0o777 == 0o600
    server.stop()


@pytest.mark.parametrize(
    "target", ["/forgive", "/forgive?unit=", "/forgive?unit=a&unit=b", "/devices?unit=card", "/", "//[", "/forgive?" + "x" * 9000]
)
def test_what_is_no_such_request_changes_nothing(serve: Callable[..., Daemon], target: str) -> None:
    daemon = serve(SICK)
    (path,) = client.sockets(daemon.paths.locks)
    with pytest.raises(client.AskError, match="answered 404"):
        client.fetch(path, target, method="POST")
    plugin(daemon).found = (WELL,)
    daemon.scanners["told"].forgive("another").result(10)
    assert health(daemon) == "unhealthy"
