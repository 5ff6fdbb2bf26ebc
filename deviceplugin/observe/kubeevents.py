# SPDX-License-Identifier: Apache-2.0
"""Tells the API server of what happened to this node's devices, as Events of the node: ``kubectl describe node`` shows them.

Off unless ``kubernetesEvents`` is set: it is the one thing here that needs a service account. Nothing waits for it: what cannot be told now is told
later, what repeats is counted in one Event, and what is too much is dropped and said to be.
"""

from __future__ import annotations

import datetime
import hashlib
import http.client
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from deviceplugin.inventory import Transition
from deviceplugin.model import Health
from deviceplugin.observe.words import one_line

log = logging.getLogger(__name__)

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
NAMESPACE = "default"
"""Where Events of nodes are, as the kubelet's own."""

MAX_PENDING = 100
"""Things not told yet, beyond which the oldest is dropped."""

BURST = 25
REFILL = 10.0
"""So many Events at once, and one more each so many seconds: a card that flaps must not flood the cluster's store."""

TIMEOUT = 10.0
BACKOFF, BACKOFF_CAP = 1.0, 60.0
"""Seconds until the next try after a failure: the first time, and at most."""
_LONGEST = 1024  # of a message: ValidateEventUpdate and its like in the API server's validation


class Refused(Exception):
    """The API server will not take it, now or later; the text says why."""


class Event(Struct, frozen=True):
    """Something to tell. ``key`` is what it has in common with its like, which are one Event in the cluster."""

    reason: str
    message: str
    warning: bool
    key: str
    at: float
    count: int = 1


class ApiServer:
    """The API server, asked as a pod asks it. The token is read each time: the kubelet replaces it. Raises Refused and OSError."""

    def __init__(self, environ: Mapping[str, str] = os.environ, account: str = ACCOUNT) -> None:
        self._host = environ.get("KUBERNETES_SERVICE_HOST", "")
        self._port = int(environ.get("KUBERNETES_SERVICE_PORT", "443"))
        self._account = account

    def send(self, method: str, path: str, body: object, kind: str = "application/json") -> int:
        """The status of the answer. Anything but success, 404 and 409 is an exception."""
        if not self._host:
            raise Refused("KUBERNETES_SERVICE_HOST is not set: this is not a pod with a service account")
        with open(os.path.join(self._account, "token"), encoding="ascii") as file:
            token = file.read().strip()
        context = ssl.create_default_context(cafile=os.path.join(self._account, "ca.crt"))
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT, context=context)
        try:
            connection.request(method, path, json.dumps(body), {"Authorization": f"Bearer {token}", "Content-Type": kind})
            response = connection.getresponse()
            text = response.read(4096).decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"no sense in the answer: {type(error).__name__}") from error
        finally:
            connection.close()
        if response.status < 300 or response.status in (404, 409):
            return response.status
        if response.status == 429 or response.status >= 500:
            raise OSError(f"status {response.status}")
        raise Refused(f"status {response.status}: {_message(text)}")


class KubeEvents:
    """Takes what happened from any thread and tells it on its own."""

    def __init__(self, node: str, server: ApiServer | None = None, clock: Callable[[], float] = time.time) -> None:
        self._node = node
        self._server = server or ApiServer()
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[str, Event] = {}
        self._dropped = 0
        self._counts: dict[str, int] = {}
        self._tokens, self._filled = float(BURST), clock()
        self._complaint = ""
        self._wake = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kube-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends soon; what was not told is not told."""
        self._over.set()
        self._wake.set()

    def transitions(self, changes: Iterable[Transition]) -> None:
        """Changes of health. That a unit is there and well at first sight is no news."""
        for one in changes:
            if one.before is None and one.after is Health.HEALTHY:
                continue
            well = one.after is Health.HEALTHY
            reason = {Health.HEALTHY: "DeviceHealthy", Health.UNHEALTHY: "DeviceUnhealthy", Health.UNKNOWN: "DeviceUnknown"}[one.after]
            what = f"{one.plugin}: {one.unit} is {one.after.value}" + (f": {one.cause}" if one.cause else "")
            self._add(Event(reason, what, not well, f"{reason}/{one.plugin}/{one.unit}/{one.cause}", self._clock()))

    def refused(self, error: str) -> None:
        """A configuration was not applied."""
        self._add(Event("ConfigurationRefused", error, True, f"ConfigurationRefused/{error}", self._clock()))

    def _add(self, event: Event) -> None:
        with self._lock:
            waiting = self._pending.pop(event.key, None)
            self._pending[event.key] = replace(event, count=waiting.count + 1) if waiting else event
            if len(self._pending) > MAX_PENDING:
                del self._pending[next(iter(self._pending))]
                self._dropped += 1
        self._wake.set()

    def _run(self) -> None:
        delay = BACKOFF
        while not self._over.is_set():
            event = self._take()
            if event is None:
                self._wake.wait()
                self._wake.clear()
                continue
            if not self._over.wait(self._until_token()):
                delay = self._tell(event, delay)

    def _tell(self, event: Event, delay: float) -> float:
        """Seconds to wait after the next failure."""
        try:
            self._send(event)
        except Refused as error:
            self._complain(
                f"the API server refuses Events: {error}; kubernetesEvents needs a service account that may create and patch Events in default"
            )
        except (OSError, ValueError) as error:
            self._complain(f"the API server cannot be told of Events: {error}; trying again")
            with self._lock:
                newer = self._pending.pop(event.key, None)
                merged = replace(event, count=event.count + newer.count) if newer else event
                self._pending = {event.key: merged, **self._pending}
            self._over.wait(delay)
            return min(delay * 2, BACKOFF_CAP)
        else:
            self._complain("")
        return BACKOFF

    def _take(self) -> Event | None:
        with self._lock:
            if not self._pending:
                return None
            if self._dropped:
                log.warning("%d Events were dropped: too much happened while the API server could not be told", self._dropped)
                self._dropped = 0
            return self._pending.pop(next(iter(self._pending)))

    def _until_token(self) -> float:
        """Takes a token and returns the seconds until it is there."""
        now = self._clock()
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._filled) / REFILL) - 1.0
        self._filled = now
        return max(0.0, -self._tokens * REFILL)

    def _send(self, event: Event) -> None:
        name = f"{self._node}.{hashlib.sha256(event.key.encode()).hexdigest()[:16]}"
        path = f"/api/v1/namespaces/{NAMESPACE}/events"
        known = self._counts.get(name, 0)
        stamp = datetime.datetime.fromtimestamp(event.at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if known or self._server.send("POST", path, self._body(name, event, stamp)) == 409:
            count = max(known, 1) + event.count
            change = {"count": count, "lastTimestamp": stamp, "message": _short(event.message)}
            if self._server.send("PATCH", f"{path}/{name}", change, "application/merge-patch+json") == 404:  # it has expired
                count = event.count
                self._server.send("POST", path, self._body(name, event, stamp))
        else:
            count = event.count
        self._counts[name] = count
        if len(self._counts) > 10 * MAX_PENDING:  # the oldest has expired in the cluster by now, or will be counted from one again
            del self._counts[next(iter(self._counts))]

    def _body(self, name: str, event: Event, stamp: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": NAMESPACE},
            # The kubelet's own Events of its node have the name for a uid, and `kubectl describe node` looks for that.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node},
            "reason": event.reason,
            "message": _short(event.message),
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": "deviceplugin", "host": self._node},
            "reportingComponent": "deviceplugin",
            "reportingInstance": self._node,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": event.count,
        }

    def _complain(self, text: str) -> None:
        if text and text != self._complaint:  # once per reason, not once per try
            log.warning("%s", text)
        self._complaint = text


def _short(text: str) -> str:
    plain = one_line(text)
    return plain if len(plain.encode()) <= _LONGEST else plain.encode()[: _LONGEST - 4].decode("utf-8", "ignore") + " ..."


def _message(text: str) -> str:
    """What the API server says went wrong, on one line."""
    try:
        return one_line(str(json.loads(text)["message"]))[:200]
    except (ValueError, KeyError, TypeError):
        return one_line(text)[:200]
