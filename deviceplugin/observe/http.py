# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server for probes, Prometheus and the command line: on a TCP address and on a unix socket, with the same pages.

It must never harm the daemon: connections are few and short, requests small, a port in use is tried again, and nothing here can end the process.
"""

from __future__ import annotations

import http.server
import ipaddress
import logging
import os
import secrets
import selectors
import socket
import socketserver
import stat
import threading
import time
from typing import Any

from deviceplugin.config import listen_address
from deviceplugin.daemon import Daemon
from deviceplugin.kubelet.paths import SUN_PATH_MAX, listening
from deviceplugin.observe.client import STATUS_SUFFIX
from deviceplugin.observe.pages import Page, Pages

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 8
CONNECTION_LIMIT = 10.0
"""Seconds that a connection may last, however it spends them."""

MAX_FOLLOWERS = 8
"""Connections that follow the page, beside those: they last, and must not take the probes' places."""

IDLE_LIMIT = 5.0
MAX_REQUEST = 16 << 10
PATIENCE = 0.05
"""Seconds that a new client waits for a place: one that asks again and again is faster than our threads are at leaving."""

RETRY = 10.0
"""Seconds between two tries to bind an address that is in use."""

STALE_AFTER = 10.0
"""Seconds of age from which a socket that nobody serves counts as left behind: a younger one may belong to a daemon that is just starting."""


class _Reader:
    """What a client sends, up to a limit: without one, the headers of a request may take megabytes."""

    def __init__(self, inner: Any, limit: int) -> None:
        self._inner = inner
        self._left = limit

    @property
    def exhausted(self) -> bool:
        return self._left <= 0

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._inner.readline(self._left if size < 0 else min(size, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._inner.close()

    @property
    def closed(self) -> bool:
        return bool(self._inner.closed)


class _Handler(http.server.BaseHTTPRequestHandler):
    rfile: _Reader  # type: ignore[assignment]
    timeout = IDLE_LIMIT
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile = _Reader(self.rfile, MAX_REQUEST)

    def do_GET(self) -> None:
        if self.rfile.exhausted:
            self._answer(Page(431, f"the request has more than {MAX_REQUEST} bytes\n"))
            return
        refusal = self.server.pages.refusal(self.path, self.headers.get("Host", ""), local=self._is_local())
        if refusal is not None:
            self._answer(refusal)
        elif self.path == "/live":
            self._live()
        else:
            self._answer(self._page())

    def do_POST(self) -> None:
        """What changes something is for whoever may open the socket: root."""
        if self.server.address_family != socket.AF_UNIX:
            self._refuse()
        elif self.rfile.exhausted:
            self._answer(Page(431, f"the request has more than {MAX_REQUEST} bytes\n"))
        else:
            self._answer(self._page())

    def _page(self) -> Page:
        pages = self.server.pages
        try:
            return pages.post(self.path) if self.command == "POST" else pages.get(self.path, self.headers.get("Accept", ""))
        except Exception as error:  # ours, and whoever asks must not take it for a broken line
            log.exception("http: %s cannot be made", self.path.partition("?")[0])
            return Page(500, f"{type(error).__name__}: {error}\n")

    def _live(self) -> None:
        if not self.server.may_follow(self.request):
            self._answer(Page(503, f"{MAX_FOLLOWERS} follow already\n", headers=(("Retry-After", "5"),)))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            for message in self.server.pages.live.follow():
                self.wfile.write(message)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _refuse(self) -> None:
        self._answer(Page(405, f"{self.command} is not known here: only GET and HEAD\n", headers=(("Allow", "GET, HEAD"),)))

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

    def _is_local(self) -> bool:
        if self.server.address_family == socket.AF_UNIX:
            return True
        address = ipaddress.ip_address(self.client_address[0].partition("%")[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    def _answer(self, page: Page) -> None:
        body = page.body if isinstance(page.body, bytes) else page.body.encode("utf-8", "backslashreplace")
        self.send_response(page.status)
        for key, value in (("Content-Type", page.kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"), *page.headers):
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "deviceplugin"

    def address_string(self) -> str:
        return "unix" if self.server.address_family == socket.AF_UNIX else str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        log.debug("http %s: " + format, self.address_string(), *args)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers at most :data:`MAX_CONNECTIONS` clients at once and none for longer than :data:`CONNECTION_LIMIT`."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32
    timeout = 0.0

    def __init__(self, family: int, address: Any, pages: Pages) -> None:
        self.address_family = family
        self.pages = pages
        self._open: dict[Any, float] = {}
        self._following: set[Any] = set()
        self._guard = threading.Condition()
        self._ending = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        return connection, address or ("unix", 0)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._guard:
            if self._guard.wait_for(lambda: len(self._open) < MAX_CONNECTIONS, PATIENCE):
                self._open[request] = time.monotonic()
                return True
        log.debug("http: more than %d connections; one is refused", MAX_CONNECTIONS)
        request.setblocking(False)
        try:
            request.recv(MAX_REQUEST)  # what is left unread would reset the connection, and the answer with it
        except OSError as error:
            log.debug("http: a refused client has not asked yet: %s", error)
        try:
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        except OSError as error:
            log.debug("http: a refused client is gone: %s", error)
        return False

    def may_follow(self, request: Any) -> bool:
        """Whether there is a place for one more that lasts; then it has it, and its other place is free."""
        with self._guard:
            if len(self._following) >= MAX_FOLLOWERS:
                return False
            self._open.pop(request, None)
            self._following.add(request)
            self._guard.notify_all()
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.pop(request, None)
            self._following.discard(request)
            self._guard.notify_all()
        super().shutdown_request(request)

    def serve(self) -> None:
        """Accepts clients until :meth:`end`, and hangs up on those who take too long. Sleeps while there are none."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while not self._ending:
                if any(key.fileobj is self.socket for key, _ in selector.select(0.5 if self._open else None)):
                    self.handle_request()
                limit = time.monotonic() - CONNECTION_LIMIT
                with self._guard:
                    late = [request for request, since in self._open.items() if since < limit]
                for request in late:
                    _hang_up(request)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("http: a connection failed", exc_info=True)

    def end(self) -> None:
        """Closes the listening socket and every connection soon; does not wait for it."""
        self._ending = True
        with self._guard:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)
            requests = [*self._open, *self._following]
        for request in requests:
            _hang_up(request)

    def server_close(self) -> None:
        super().server_close()
        with self._guard:
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1


class StatusServer:
    """Serves the pages on ``settings.listen`` and on a unix socket in the lock directory, where ``deviceplugin devices`` finds every daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.socket_path = os.path.join(daemon.paths.locks, f"{os.getpid()}-{secrets.token_hex(4)}{STATUS_SUFFIX}")
        self._pages = Pages(daemon)
        self._wanted = daemon.plan.settings.listen
        self._wake = threading.Event()
        self._stopping = False
        self._unix: _Server | None = None
        self._tcp: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    @property
    def address(self) -> tuple[str, int] | None:
        """Where TCP clients are answered now, None if nowhere."""
        tcp = self._tcp
        return tcp.server_address[:2] if tcp is not None else None  # type: ignore[return-value]

    def start(self) -> None:
        self._open_unix()
        self._thread.start()

    def listen(self, address: str) -> None:
        """Goes over to another TCP address."""
        self._wanted = address
        self._wake.set()

    def stop(self) -> None:
        """Ends both, within half a second."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=0.5)  # it may be looking up a name
        self._pages.live.stop()
        if self._tcp is not None:
            self._tcp.end()
        if self._unix is not None:
            self._unix.end()
            _remove(self.socket_path)

    def _open_unix(self) -> None:
        directory = os.path.dirname(self.socket_path)
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            sweep(directory)
            if len(os.fsencode(self.socket_path)) > SUN_PATH_MAX:
                log.warning("status: %s: a socket's path may have %d characters; `deviceplugin devices` cannot ask", self.socket_path, SUN_PATH_MAX)
                return
            self._unix = _Server(socket.AF_UNIX, self.socket_path, self._pages)
            os.chmod(self.socket_path, 0o600)
        except OSError as error:
            log.warning("status: no socket at %s: %s; `deviceplugin devices` cannot ask", self.socket_path, error.strerror or error)
            return
        _serve(self._unix, "status-unix")

    def _run(self) -> None:
        """Keeps the TCP server where it is wanted."""
        current = said = ""
        while not self._stopping:
            self._wake.clear()
            wanted, pause = self._wanted, None
            if wanted != current:
                if self._tcp is not None:
                    self._tcp.end()
                    self._tcp = None
                current = ""
                if wanted:
                    try:
                        self._tcp = _bind(wanted, self._pages)
                    except OSError as error:
                        pause = RETRY
                        text = f"cannot listen on {wanted}: {error.strerror or error}"
                        if text != said:  # once per reason, not once per try
                            log.error("status: %s; trying again every %g s", text, RETRY)
                        said = text
                    else:
                        current, said = wanted, ""
                        log.info("status: metrics and probes on http://%s", f"*{wanted}" if wanted.startswith(":") else wanted)
            self._wake.wait(pause)


def _hang_up(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        log.debug("http: already gone: %s", error)


def sweep(directory: str) -> None:
    """Removes the status sockets of daemons that were killed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(STATUS_SUFFIX) and _abandoned(entry):
                _remove(entry.path)


def _abandoned(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False  # its daemon has ended in order meanwhile
    return stat.S_ISSOCK(found.st_mode) and time.time() - found.st_mtime > STALE_AFTER and not listening(entry.path)


def _bind(text: str, pages: Pages) -> _Server:
    host, port = listen_address(text)
    if not host:
        dual = socket.has_dualstack_ipv6()
        server = _Server(socket.AF_INET6 if dual else socket.AF_INET, ("::" if dual else "0.0.0.0", port), pages)  # noqa: S104 - asked for
    else:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = _Server(family, address, pages)
    _serve(server, "status-tcp")
    return server


def _serve(server: _Server, name: str) -> None:
    threading.Thread(target=server.serve, name=name, daemon=True).start()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.debug("cannot remove %s: %s", path, error)
