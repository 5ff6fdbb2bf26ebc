# SPDX-License-Identifier: Apache-2.0
"""Events of the node, told to an API server that may be away, slow, full, or of another mind."""

from __future__ import annotations

import http.server
import json
import queue
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deviceplugin.inventory import Transition
from deviceplugin.model import Health
from deviceplugin.observe import kubeevents
from deviceplugin.observe.kubeevents import ApiServer, KubeEvents, Refused

Answer = int | Exception


def change(unit: str = "gpu-1", after: Health = Health.UNHEALTHY, cause: str = "xid: 79", before: Health | None = Health.HEALTHY) -> Transition:
    return Transition(0.0, "gpu", unit, before, after, cause)


class Told(ApiServer):
    """An API server that answers as told: from ``answers`` while there are some, and then with what an empty store would."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__({})
        self.answers = list(answers)
        self.asked: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self.names: set[str] = set()

    def send(self, method: str, path: str, body: object, kind: str = "application/json") -> int:
        self.asked.put((method, path, json.loads(json.dumps(body))))
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if method == "PATCH":
            return 200 if path.rpartition("/")[2] in self.names else 404
        assert isinstance(body, dict)
        known = body["metadata"]["name"] in self.names
        self.names.add(body["metadata"]["name"])
        return 409 if known else 201

    def next(self) -> tuple[str, str, Any]:
        return self.asked.get(timeout=5)


class Time:
    """Seconds since the epoch, as the test says."""

    now = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tell() -> Iterator[Callable[[ApiServer], KubeEvents]]:
    running: list[KubeEvents] = []

    def start(server: ApiServer) -> KubeEvents:
        running.append(KubeEvents("node-1", server, Time()))
        running[-1].start()
        return running[-1]

    yield start
    for one in running:
        one.stop()


def test_a_change_of_health_is_an_event_of_the_node(tell: Callable[[ApiServer], KubeEvents]) -> None:
    server = Told()
    tell(server).transitions([change(), change("gpu-2", Health.HEALTHY, "", Health.UNHEALTHY), change("gpu-3", Health.HEALTHY, "", None)])
    method, path, body = server.next()
    assert (method, path) == ("POST", "/api/v1/namespaces/default/events")
    assert body["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}
    assert (body["reason"], body["type"], body["message"], body["count"]) == ("DeviceUnhealthy", "Warning", "gpu: gpu-1 is unhealthy: xid: 79", 1)
    assert body["firstTimestamp"] == "2026-11-18T11:06:40Z"
    _, _, body = server.next()
    assert (body["reason"], body["type"], body["message"]) == ("DeviceHealthy", "Normal", "gpu: gpu-2 is healthy")
    assert server.asked.empty(), "that a device is there and well is no news"


def test_what_repeats_is_counted_in_one_event(tell: Callable[[ApiServer], KubeEvents]) -> None:
    server = Told()
    one = tell(server)
    one.transitions([change()])
    first = server.next()[2]["metadata"]["name"]
    one.transitions([change()])
    method, path, body = server.next()
    assert (method, path.rpartition("/")[2], body["count"]) == ("PATCH", first, 2)
    server.names.clear()  # it has expired
    one.transitions([change()])
    assert server.next()[0] == "PATCH"
    method, _, body = server.next()
    assert (method, body["count"]) == ("POST", 1)


def test_another_instance_has_told_it_before(tell: Callable[[ApiServer], KubeEvents]) -> None:
    server = Told(409, 200)
    tell(server).transitions([change()])
    assert [server.next()[0] for _ in range(2)] == ["POST", "PATCH"]


def test_an_api_server_that_is_away_is_told_later_and_holds_up_nobody(
    tell: Callable[[ApiServer], KubeEvents], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kubeevents, "BACKOFF", 0.001)
    server = Told(*(OSError("connection refused") for _ in range(5)))
    one = tell(server)
    one.transitions([change()])
    assert [server.next()[2]["reason"] for _ in range(6)] == ["DeviceUnhealthy"] * 6
    one.transitions([change("gpu-2")])
    assert "gpu-2" in server.next()[2]["message"]
    assert len([record for record in caplog.records if "cannot be told" in record.getMessage()]) == 1, "once, not for each try"


def test_a_refusal_is_said_with_what_to_do_and_the_event_is_given_up(
    tell: Callable[[ApiServer], KubeEvents], caplog: pytest.LogCaptureFixture
) -> None:
    server = Told(Refused('status 403: events is forbidden: User "x" cannot create resource "events"'))
    one = tell(server)
    one.transitions([change()])
    server.next()
    one.refused("c.yaml: unknown key 'x'")
    body = server.next()[2]
    assert (body["reason"], body["message"]) == ("ConfigurationRefused", "c.yaml: unknown key 'x'")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "events is forbidden" in said
    assert "a service account that may create and patch Events" in said


def test_a_flood_is_bounded_and_said(caplog: pytest.LogCaptureFixture) -> None:
    one = KubeEvents("node-1", Told(), Time())
    one.transitions(change(f"gpu-{i}") for i in range(kubeevents.MAX_PENDING + 30))
    assert len(one._pending) == kubeevents.MAX_PENDING
    event = one._take()
    assert event is not None
    assert "gpu-30 " in event.message, "the oldest went"
    assert "30 Events were dropped" in caplog.text


def test_so_many_at_once_and_then_one_now_and_then() -> None:
    clock = Time()
    one = KubeEvents("node-1", Told(), clock)
    assert [one._until_token() for _ in range(kubeevents.BURST)] == [0.0] * kubeevents.BURST
    assert one._until_token() == kubeevents.REFILL
    clock.now -= 1e6  # the wall clock is set back: nothing is owed for that
    assert one._until_token() == 2 * kubeevents.REFILL
    clock.now += 1e6
    assert one._until_token() == 0.0


def test_a_name_from_hardware_cannot_break_out_of_its_line() -> None:
    server = Told()
    one = KubeEvents("node-1", server, Time())
    one.transitions([change("gpu\n\x1b[31m", cause="é" * 5000)])
    event = one._take()
    assert event is not None
    one._send(event)
    message = server.next()[2]["message"]
    assert "\\n\\x1b[31m" in message
    assert len(message.encode()) <= 1024


class Cluster(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of ``answers`` and keeps what was asked."""

    answers: list[tuple[int, bytes]]
    asked: list[tuple[str, str, str | None]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.command, self.path, self.headers["Authorization"]))
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PATCH(self) -> None:
        self.do_POST()

    def log_message(self, *_args: Any) -> None:
        """Quiet."""


def certificate(folder: Path, name: str) -> None:
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", *subject]
    subprocess.run([*made, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"], check=True, capture_output=True)


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What the kubelet mounts into a pod."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing: it makes the server's certificate")
    certificate(tmp_path, "ca")
    (tmp_path / "token").write_text("first\n")
    return tmp_path


def test_the_server_is_known_by_its_certificate_and_the_token_is_read_each_time(account: Path) -> None:
    handler = type("Handler", (Cluster,), {"answers": [(201, b"{}"), (403, b'{"message": "no\\nway"}'), (503, b""), (404, b"")], "asked": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as httpd:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(account / "ca.crt", account / "ca.key")
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(httpd.server_address[1])}
            server = ApiServer(environ, str(account))
            assert server.send("POST", "/api/v1/x", {}) == 201
            (account / "token").write_text("second\n")
            with pytest.raises(Refused, match=r"^status 403: no\\nway$"):
                server.send("PATCH", "/api/v1/y", {})
            with pytest.raises(OSError, match="status 503"):
                server.send("POST", "/", {})
            assert server.send("PATCH", "/", {}) == 404
            assert [one[2] for one in handler.asked[:2]] == ["Bearer first", "Bearer second"]  # type: ignore[attr-defined]
            certificate(account, "other")
            (account / "other.crt").rename(account / "ca.crt")
            with pytest.raises(ssl.SSLCertVerificationError):
                server.send("POST", "/", {})
        finally:
            httpd.shutdown()
            thread.join()


def test_outside_a_pod_it_says_so() -> None:
    with pytest.raises(Refused, match="KUBERNETES_SERVICE_HOST is not set"):
        ApiServer({}).send("POST", "/", {})
