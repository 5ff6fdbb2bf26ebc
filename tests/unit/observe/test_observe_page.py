# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import datetime
import html.parser
import re
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.daemon import Daemon
from deviceplugin.model import Device, Health
from deviceplugin.observe import http as server
from deviceplugin.observe import live, page, status
from deviceplugin.observe.http import StatusServer
from deviceplugin.observe.pages import Pages
from deviceplugin.observe.picture import MAX_UNITS, Unit, draw
from deviceplugin.observe.status import ConnectionStatus, ContainerStatus, HealthEvent, Status
from tests.unit.observe.told import Make

VOID = {"meta", "br", "tr", "td", "th", "li", "path", "rect", "circle"}


class Reader(html.parser.HTMLParser):
    """The tags, classes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def classes(self, name: str) -> int:
        return sum(key == "class" and name in (value or "").split() for key, value in self.attributes)


@pytest.fixture
def picture(make: Make) -> Status:
    return status.take(make(Device("a", numa_nodes=[0], attributes={"index": 1}), Device("b", numa_nodes=[1, 2], attributes={"index": 0})))


def change(picture: Status, **values: Any) -> Status:
    """With these values in every device."""
    resources = tuple(
        msgspec.structs.replace(one, devices=tuple(msgspec.structs.replace(device, **values) for device in one.devices)) for one in picture.resources
    )
    return msgspec.structs.replace(picture, resources=resources)


def test_every_device_is_drawn_on_its_numa_node_with_its_health_and_holder(picture: Status) -> None:
    held = (ContainerStatus("default", "trainer", "main"),)
    text = page.fragment(change(picture, held_by=held, health="unhealthy", cause="xid: 79"))
    reader = Reader(text)
    said = "\n".join(reader.text)
    assert re.findall("NUMA nodes? [0-9, ]*[0-9]", said) == ["NUMA node 0", "NUMA nodes 1, 2"]
    assert (reader.classes("card"), reader.classes("unhealthy"), reader.classes("held")) == (2, 2, 3)  # and once in the key
    assert said.count("default/trainer/main") == said.count("unhealthy: xid: 79") == 2


def test_what_is_held_and_not_enforced_is_said_in_words_and_drawn(picture: Status) -> None:
    held = (ContainerStatus("default", "trainer", "main"),)
    text = page.fragment(change(picture, held_by=held, enforced=False, enforcement="hard", enforcement_detail="no task inside"))
    assert Reader(text).classes("loose") == 3
    assert text.count("NOT ENFORCED: no task inside") == 2
    assert "2 NOT ENFORCED" in text


def test_many_slots_are_drawn_in_proportion(make: Make) -> None:
    one = status.take(make(Device("a")))
    (resource,) = one.resources
    (device,) = resource.devices
    held = (ContainerStatus("ns", "pod", "main"),)
    devices = tuple(msgspec.structs.replace(device, id=f"a::{i}", held_by=held if i < 250 else ()) for i in range(1000))
    text = page.fragment(msgspec.structs.replace(one, resources=(msgspec.structs.replace(resource, devices=devices),)))
    reader = Reader(text)
    assert reader.classes("held") == page.MAX_SLOTS // 4 + 1
    assert 'aria-label="250 of 1000 held"' in text


def test_what_nothing_tells_apart_is_one_bar(make: Make) -> None:
    ways = [Device(f"l3.{cache}.{n:02}", numa_nodes=[cache], attributes={"cache": cache}, capacity={"ways": 1}) for cache in (0, 1) for n in range(9)]
    picture = status.take(make(*ways, Device("other", numa_nodes=[0], attributes={"cache": 7})))
    (resource,) = picture.resources
    held = (ContainerStatus("ns", "pod", "main"),)
    devices = tuple(msgspec.structs.replace(one, held_by=held if one.id in ("l3.0.02", "l3.0.03") else ()) for one in resource.devices)
    text = page.fragment(msgspec.structs.replace(picture, resources=(msgspec.structs.replace(resource, devices=devices),)))
    assert Reader(text).classes("card") == 3
    assert "l3.0.00 … l3.0.08" in text
    (bar,) = re.findall('aria-label="2 of 9 held">(.*?)</div>', text)
    kinds = ["held" if "held" in cell else "" for cell in re.findall("<i.*?></i>", bar)]
    assert kinds == ["", "", "held", "held", "", "", "", "", ""], "in their places"
    assert 'title="l3.0.02: ns/pod/main"' in bar


NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;", "a\nb\rc", "\x00\x1b[31m", "é\u202e"]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_becomes_part_of_the_page(picture: Status, name: str) -> None:
    event = HealthEvent(picture.taken_at, name, name, name, name, name)
    plain = msgspec.structs.replace(picture, events=(msgspec.structs.replace(event, plugin="x", unit="x", before="x", after="x", cause="x"),))
    nasty = msgspec.structs.replace(
        change(
            picture,
            unit=name,
            device=name,
            cause=name,
            enforcement_detail=name,
            held_by=(ContainerStatus(name, name, name),),
            attributes={"model": name},
        ),
        node=name,
        host=name,
        config_error=name,
        events=(event,),
    )
    same = msgspec.structs.replace(change(plain, held_by=(ContainerStatus("x", "x", "x"),), attributes={"model": "x"}), config_error="x")
    allowed = set(Reader(page.document(same)).tags)
    reader = Reader(page.document(nasty))
    assert set(reader.tags) <= allowed
    assert not {key for key, _ in reader.attributes if key.startswith("on") or key in ("src", "style", "href")}
    assert "\x1b" not in page.document(nasty)


@given(st.text(), st.text())
def test_any_text_is_escaped_in_the_drawing(name: str, kind: str) -> None:
    units = [Unit(f"u{name}", name, name, "healthy", (0,)), Unit("v", "v", "v", "unknown")]
    reader = Reader(draw(units, [ConnectionStatus(f"u{name}", "v", kind, 3), ConnectionStatus("v", f"hub {name}", kind, 1)]))
    assert set(reader.tags) <= {"svg", "path", "title", "rect", "text", "g", "circle"}


def test_only_what_is_connected_is_drawn_and_not_more_than_can_be_read() -> None:
    units = [Unit(str(i), str(i), str(i), "healthy") for i in range(MAX_UNITS + 10)]
    assert draw(units, []) == ""
    assert Reader(draw(units, [ConnectionStatus("1", "2", "NVLink", 2)])).tags.count("circle") == 2
    ring = [ConnectionStatus(str(i), str((i + 1) % len(units)), "NVLink", 1) for i in range(len(units))]
    assert Reader(draw(units, ring)).tags.count("circle") == MAX_UNITS
    hubs = draw(units, [ConnectionStatus("1", "switch", "NVLink", 1), ConnectionStatus("gone", "2", "NVLink", 1)])
    assert (Reader(hubs).tags.count("rect"), Reader(hubs).tags.count("path")) == (1, 1)


def test_time_passing_changes_nothing(picture: Status) -> None:
    later = msgspec.structs.replace(
        change(picture, age_seconds=1000.0),
        taken_at=picture.taken_at + datetime.timedelta(seconds=1000),
        uptime_seconds=picture.uptime_seconds + 1000,
        plugins=tuple(msgspec.structs.replace(one, looked_seconds_ago=7.0) for one in picture.plugins),
    )
    assert page.fragment(later) == page.fragment(picture)


def test_a_browser_gets_the_page_and_a_terminal_the_list(make: Make) -> None:
    pages = Pages(make(Device("a")))
    found = pages.get("/", "text/html,application/xhtml+xml;q=0.9")
    assert found.kind == "text/html; charset=utf-8"
    assert isinstance(found.body, str)
    assert dict(found.headers)["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"(src|href)=|url\(|https?://", found.body.replace("http://www.w3.org", "")), "no other file is needed"
    assert "/metrics" in str(pages.get("/", "*/*").body)


def test_the_policy_is_that_of_what_is_served(picture: Status) -> None:
    text = page.document(picture)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert f"{directive} 'sha256-{page._digest(inside)}'" in page.POLICY


@pytest.fixture
def running(make: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Daemon, StatusServer]]:
    monkeypatch.setattr(live, "PERIOD", 0.02)
    daemon = make(Device("a"))
    one = StatusServer(daemon)
    one.start()
    yield daemon, one
    one.stop()


class Follower:
    """A client that follows the page over the unix socket."""

    def __init__(self, one: StatusServer) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(one.socket_path)
        self.socket.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.kind = next(
            (line.split(b":", 1)[1].strip() for line in iter(self.file.readline, b"\r\n") if line.lower().startswith(b"content-type")), b""
        )

    def message(self) -> str:
        """The next message's data."""
        lines: list[bytes] = []
        while True:
            line = self.file.readline()
            assert line, "the stream ended"
            if line.startswith(b"data: "):
                lines.append(line[6:-1])
            elif line == b"\n" and lines:
                return b"\n".join(lines).decode()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def sicken(daemon: Daemon) -> None:
    plugin = daemon.scanners["told"].hooks.plugin
    type(plugin).found = (Device("a", health=Health.UNHEALTHY, cause="broken"),)  # type: ignore[attr-defined]
    daemon.scanners["told"].wake()


def test_a_change_reaches_every_follower_at_once_and_nothing_else_does(running: tuple[Daemon, StatusServer]) -> None:
    daemon, one = running
    followers = [Follower(one) for _ in range(3)]
    assert {(one.status, one.kind) for one in followers} == {(200, b"text/event-stream")}
    first = {follower.message() for follower in followers}
    assert len(first) == 1
    assert "unhealthy" not in first.pop()
    sicken(daemon)
    after = [follower.message() for follower in followers]
    assert all("unhealthy: broken" in text for text in after)
    for follower in followers:
        follower.close()


def test_those_who_follow_leave_the_probes_their_places_and_too_many_are_refused(running: tuple[Daemon, StatusServer]) -> None:
    _, one = running
    followers = [Follower(one) for _ in range(server.MAX_FOLLOWERS)]
    for follower in followers:
        follower.message()
    late = Follower(one)
    assert late.status == 503
    late.close()
    from deviceplugin.observe import client

    assert client.fetch(one.socket_path, "/healthz") == b"ok\n"
    for follower in followers:
        follower.close()


def test_a_follower_is_let_go_when_the_server_stops(running: tuple[Daemon, StatusServer]) -> None:
    _, one = running
    follower = Follower(one)
    follower.message()
    one.stop()
    assert follower.file.read() == b""
    follower.close()


def test_nothing_is_rendered_for_nobody_and_once_for_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    real = page.fragment

    def counted(what: Status) -> str:
        rendered.append("x")
        return real(what)

    monkeypatch.setattr(page, "fragment", counted)
    shared = live.Live(make(Device("a")))
    assert rendered == []
    streams = [shared.follow() for _ in range(5)]
    for stream in streams:
        assert next(stream).startswith(b"retry:")
        assert next(stream).startswith(b"data: ")
    assert rendered == ["x"]
    shared.stop()
    assert list(streams[0]) == []


def test_a_heartbeat_finds_dead_connections(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PERIOD", 0.01)
    monkeypatch.setattr(live, "HEARTBEAT", 0.03)
    stream = live.Live(make(Device("a"))).follow()
    assert [next(stream)[:5] for _ in range(3)] == [b"retry", b"data:", b":\n\n"]
