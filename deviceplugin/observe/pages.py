# SPDX-License-Identifier: Apache-2.0
"""What the status server answers, as plain functions from a path to a page."""

from __future__ import annotations

import ipaddress
import os
import sys
import threading
import traceback
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import msgspec

from deviceplugin.daemon import Daemon
from deviceplugin.observe import status
from deviceplugin.observe.live import Live
from deviceplugin.observe.readiness import Check, liveness, readiness, ready
from deviceplugin.observe.words import one_line

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

TEXT = "text/plain; charset=utf-8"

_PRIVATE = frozenset({"/", "/live", "/devices", "/debug/threads"})

HTML = "text/html; charset=utf-8"

INDEX = """\
/                 the devices, drawn (for browsers)
/metrics          for Prometheus
/healthz          whether the process lives
/readyz           whether it is ready; ?verbose says what that depends on
/devices          everything, as JSON
/debug/threads    what each thread does (from this machine only)
"""


class Page(msgspec.Struct, frozen=True):
    status: int
    body: str | bytes
    kind: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


class Pages:
    """Safe from any thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.live = Live(daemon)
        self._registry: CollectorRegistry | None = None
        self._lock = threading.Lock()

    def refusal(self, target: str, host: str, *, local: bool) -> Page | None:
        """Why whoever asks may not have the page, None if he may. ``local`` is whether he is on this machine, ``host`` what he calls it.

        A web site that a browser on this machine visits can have its own name lead here, and would read the answers as its own (DNS rebinding). So
        what tells of devices and pods is given under an address, localhost or the node's name only. Prometheus may use any name for its page.
        """
        path = target.partition("?")[0]
        if path == "/debug/threads" and not local:
            return Page(403, "only from this machine\n")
        if path in _PRIVATE and not _is_own(host, self._daemon.host.node_name):
            return Page(403, f"{path} is not for the name {one_line(host)[:100]!r}: use the address, localhost or the node's name\n")
        return None

    def get(self, target: str, accept: str = "") -> Page:
        """The page at a request's target."""
        try:
            parts = urlsplit(target)
        except ValueError:
            return Page(400, "not a path\n")
        match parts.path:
            case "/":
                return self._home() if "text/html" in accept else Page(200, INDEX)
            case "/metrics":
                return self._metrics(accept)
            case "/healthz" | "/livez":
                dead = liveness(self._daemon)
                return Page(503, f"threads that ended: {', '.join(dead)}\n") if dead else Page(200, "ok\n")
            case "/readyz":
                return _ready(readiness(self._daemon), verbose="verbose" in parse_qs(parts.query, keep_blank_values=True))
            case "/devices":
                return Page(200, msgspec.json.encode(status.take(self._daemon)) + b"\n", "application/json")
            case "/debug/threads":
                return Page(200, threads())
        return Page(404, f"nothing here; there is\n{INDEX}")

    def post(self, target: str) -> Page:
        """What a request that changes something answers. For root's own socket only."""
        path, _, query = target.partition("?")
        units = parse_qs(query).get("unit", [])
        if path != "/forgive" or len(units) != 1:
            return Page(404, "nothing to do here; there is /forgive?unit=NAME\n")
        from deviceplugin.observe import pardon

        return Page(200, msgspec.json.encode(pardon.forgive(self._daemon, units[0])) + b"\n", "application/json")

    def _home(self) -> Page:
        from deviceplugin.observe import page

        headers = (("Content-Security-Policy", page.POLICY), ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"))
        return Page(200, page.document(status.take(self._daemon)), HTML, headers)

    def _metrics(self, accept: str) -> Page:
        from prometheus_client.exposition import choose_encoder  # 40 ms that only a scraped daemon spends

        from deviceplugin.observe import metrics

        with self._lock:
            if self._registry is None:
                self._registry = metrics.registry(self._daemon)
        encode, kind = choose_encoder(accept)
        return Page(200, encode(self._registry), kind)


def _is_own(host: str, node: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name in ("", "localhost", node, os.uname().nodename):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _ready(checks: tuple[Check, ...], *, verbose: bool) -> Page:
    """In the shape that kube-apiserver gave such pages: a line for each check, then the verdict."""
    well = ready(checks)
    lines = [f"[{'+' if one.ok else '-' if one.vital else '!'}] {one.name}: {one_line(one.text)}" for one in checks if verbose or not one.ok]
    return Page(200 if well else 503, "\n".join([*lines, "ready" if well else "not ready", ""]))


def threads() -> str:
    """The stack of every thread."""
    names = {thread.ident: thread for thread in threading.enumerate()}
    parts = []
    for ident, frame in sorted(sys._current_frames().items()):
        thread = names.get(ident)
        # The kernel's number, as top -H has it.
        title = f"{thread.name}{' (daemon)' if thread.daemon else ''} [{thread.native_id}]" if thread else f"not a Python thread [{ident}]"
        parts.append(f"{title}\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
