# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from deviceplugin.daemon import Daemon
from deviceplugin.model import Device
from deviceplugin.observe import client
from deviceplugin.observe import http as server
from deviceplugin.observe.http import StatusServer
from deviceplugin.observe.pages import Pages
from tests.unit.observe.told import Make


def eventually(truth: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not truth():
        assert time.monotonic() < deadline, "did not come true"
        pause.wait(0.01)


@pytest.fixture
def daemon(make: Make) -> Daemon:
    return make(Device("a"))


@pytest.fixture
def status(daemon: Daemon) -> Iterator[StatusServer]:
    running = StatusServer(daemon)
    running.listen("127.0.0.1:0")
    running.start()
    eventually(lambda: running.address)
    yield running
    running.stop()


def get(status: StatusServer, target: str, method: str = "GET") -> tuple[int, str, str]:
    assert status.address is not None
    connection = http.client.HTTPConnection(*status.address, timeout=5)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def raw(status: StatusServer) -> socket.socket:
    assert status.address is not None
    return socket.create_connection(status.address, timeout=5)


def test_each_page_answers(status: StatusServer) -> None:
    assert get(status, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    code, _, body = get(status, "/readyz")
    assert code == 503
    assert body.startswith("[-] resource/example.com/told: active, not serving: no kubelet at ")
    assert body.endswith("\nnot ready\n")
    code, kind, body = get(status, "/metrics")
    assert (code, kind.partition(";")[0]) == (200, "text/plain")
    assert 'deviceplugin_devices{health="healthy",resource="example.com/told"} 1.0' in body
    code, kind, body = get(status, "/devices")
    assert (code, kind) == (200, "application/json")
    assert json.loads(body)["resources"][0]["devices"][0]["id"] == "a"
    assert "scan-told" in get(status, "/debug/threads")[2]
    assert get(status, "/nothing")[0] == 404


def test_prometheus_may_ask_for_openmetrics(daemon: Daemon) -> None:
    page = Pages(daemon).get("/metrics", "application/openmetrics-text; version=1.0.0")
    assert page.kind.startswith("application/openmetrics-text")
    assert isinstance(page.body, bytes)
    families = openmetrics(page.body.decode())  # type: ignore[no-untyped-call]
    assert any(family.name == "deviceplugin_devices" for family in families)


def test_verbose_readiness_has_a_line_for_each_check(status: StatusServer) -> None:
    lines = get(status, "/readyz?verbose")[2].splitlines()
    assert lines[0] == "[+] config: applied"
    assert lines[1].startswith("[+] plugin/told: 1 device, looked ")
    assert lines[-1] == "not ready"


def test_a_node_without_devices_is_ready(make: Make) -> None:
    page = Pages(make()).get("/readyz")
    assert (page.status, page.body) == (200, "ready\n")


def test_head_has_the_headers_and_no_body(status: StatusServer) -> None:
    code, _, body = get(status, "/devices", "HEAD")
    assert (code, body) == (200, "")


def test_only_get_and_head_are_answered(status: StatusServer) -> None:
    assert [get(status, "/", method)[0] for method in ("POST", "PUT", "DELETE")] == [405, 405, 405]


def test_the_stacks_are_for_this_machine_only(daemon: Daemon) -> None:
    pages = Pages(daemon)
    refused = pages.refusal("/debug/threads?x", "10.0.0.1", local=False)
    assert refused is not None
    assert refused.status == 403
    assert pages.refusal("/debug/threads", "127.0.0.1", local=True) is None


@pytest.mark.parametrize("host", ["", "localhost", "localhost:9808", "127.0.0.1:9808", "[::1]:9808", "10.2.3.4", "node-1"])
@pytest.mark.parametrize("path", ["/", "/live", "/devices?x=1", "/metrics"])
def test_the_machine_is_asked_by_its_own_names(daemon: Daemon, host: str, path: str) -> None:
    assert Pages(daemon).refusal(path, host, local=True) is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9808", "127.0.0.1.evil.example", "[evil", "node-1.evil.example", "x" * 9999])
def test_a_web_site_that_points_its_name_here_learns_nothing_of_pods(daemon: Daemon, host: str) -> None:
    pages = Pages(daemon)
    for path in ("/", "/live", "/devices", "/debug/threads", "/devices?"):
        found = pages.refusal(path, host, local=True)
        assert found is not None
        assert found.status == 403
        assert len(found.body) < 300
    assert pages.refusal("/metrics", host, local=True) is None
    assert pages.refusal("/readyz", host, local=True) is None


def test_a_request_larger_than_the_limit_is_not_read_to_its_end(status: StatusServer) -> None:
    with raw(status) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(20)))
        # The end of the headers never comes.
        assert connection.recv(4096).startswith(b"HTTP/1.0 431 ")


def test_a_client_that_sends_nothing_is_hung_up_on(status: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTION_LIMIT", 0.1)
    with raw(status) as connection:
        connection.sendall(b"GET / HT")
        assert connection.recv(1) == b""


def test_a_page_that_cannot_be_made_is_an_error_of_ours_and_is_logged(
    status: StatusServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Pages, "get", lambda *_arguments: 1 / 0)
    assert get(status, "/metrics") == (500, "text/plain; charset=utf-8", "ZeroDivisionError: division by zero\n")
    assert "http: /metrics cannot be made" in caplog.text


def test_a_client_that_asks_again_and_again_is_always_answered(status: StatusServer) -> None:
    assert {get(status, "/healthz")[0] for _ in range(100)} == {200}


def test_a_refused_client_that_has_asked_reads_why(status: StatusServer) -> None:
    held = [raw(status) for _ in range(server.MAX_CONNECTIONS)]
    assert get(status, "/healthz")[0] == 503
    for connection in held:
        connection.close()


def test_two_hundred_clients_at_once_harm_nobody(status: StatusServer) -> None:
    """Some are answered, the others are told to come again, none waits for long."""
    codes: list[int] = []

    def ask() -> None:
        try:
            codes.append(get(status, "/devices")[0])
        except (OSError, http.client.HTTPException):
            codes.append(0)

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 in codes
    assert set(codes) <= {200, 503, 0}
    eventually(lambda: get(status, "/healthz")[0] == 200)


@pytest.mark.parametrize("target", ["/../../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/\x00", "http://[", "/" + "a" * 8000, "*", "?"])
def test_no_path_of_a_request_reaches_the_file_system(status: StatusServer, target: str) -> None:
    with raw(status) as connection:
        connection.sendall(b"GET " + target.encode() + b" HTTP/1.0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.split()[1] in (b"400", b"404"), answer[:200]
    assert b"root:" not in answer


def test_more_clients_than_the_limit_are_refused_and_the_next_one_is_not(status: StatusServer) -> None:
    held = [raw(status) for _ in range(server.MAX_CONNECTIONS)]
    with raw(status) as one_more:
        assert one_more.recv(4096).startswith(b"HTTP/1.0 503 ")
    for connection in held:
        connection.close()

    def answered() -> bool:
        return get(status, "/healthz")[0] == 200

    eventually(answered)


def test_a_port_in_use_is_taken_once_it_is_free(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(server, "RETRY", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        running = StatusServer(daemon)
        running.listen(address)
        running.start()
        try:
            eventually(lambda: "cannot listen on" in caplog.text)
            other.close()
            eventually(lambda: running.address)
            assert get(running, "/healthz")[0] == 200
        finally:
            running.stop()
    assert caplog.text.count(f"cannot listen on {address}: Address already in use") == 1


def test_another_address_is_taken_on_while_running(status: StatusServer) -> None:
    before = status.address
    status.listen("[::1]:0" if socket.has_ipv6 else "localhost:0")
    eventually(lambda: status.address not in (None, before))
    assert get(status, "/healthz")[0] == 200
    status.listen("")
    eventually(lambda: status.address is None)


def test_the_command_line_asks_over_a_socket_that_only_its_user_may_use(status: StatusServer, daemon: Daemon) -> None:
    assert stat.S_IMODE(os.stat(status.socket_path).st_mode) == 0o600
    daemons, errors = client.ask_all(daemon.paths.locks)
    assert errors == ()
    assert [one.resources[0].name for one in daemons] == ["example.com/told"]
    status.stop()
    assert not os.path.exists(status.socket_path)
    assert client.ask_all(daemon.paths.locks) == ((), ())


def test_a_daemon_that_was_killed_is_passed_over_and_its_socket_removed_later(daemon: Daemon) -> None:
    left = os.path.join(daemon.paths.locks, f"1-dead{client.STATUS_SUFFIX}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(left)
    assert client.ask_all(daemon.paths.locks) == ((), ())
    server.sweep(daemon.paths.locks)
    assert os.path.exists(left), "it may belong to a daemon that is just starting"
    old = time.time() - 2 * server.STALE_AFTER
    os.utime(left, (old, old))
    server.sweep(daemon.paths.locks)
    assert not os.path.exists(left)


def test_sweeping_passes_over_what_its_daemon_removes_meanwhile(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [os.path.join(daemon.paths.locks, f"{number}-dead{client.STATUS_SUFFIX}") for number in (1, 2)]
    old = time.time() - 2 * server.STALE_AFTER
    for path in left:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        os.utime(path, (old, old))

    def both_go(_path: str) -> bool:
        for path in left:
            os.unlink(path)
        return True

    monkeypatch.setattr(server, "listening", both_go)
    server.sweep(daemon.paths.locks)
    assert not any(os.path.exists(path) for path in left)


def test_a_daemon_that_does_not_answer_is_named(daemon: Daemon) -> None:
    path = os.path.join(daemon.paths.locks, f"1-mute{client.STATUS_SUFFIX}")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        daemons, (error,) = client.ask_all(daemon.paths.locks, timeout=0.05)
    assert daemons == ()
    assert error == f"{path}: timed out"


def test_a_directory_too_deep_for_a_socket_costs_only_the_socket(daemon: Daemon, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon.paths = type(daemon.paths)("", "", "", str(root / ("d" * 100)), "")
    running = StatusServer(daemon)
    running.listen("127.0.0.1:0")
    running.start()
    try:
        eventually(lambda: running.address)
        assert get(running, "/healthz")[0] == 200
    finally:
        running.stop()
    assert "a socket's path may have 107 characters" in caplog.text


def test_stopping_does_not_wait_for_clients(status: StatusServer) -> None:
    with raw(status) as connection:
        connection.sendall(b"GET / HT")
        began = time.monotonic()
        status.stop()
        assert time.monotonic() - began < 2.5
