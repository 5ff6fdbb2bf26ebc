# SPDX-License-Identifier: Apache-2.0
"""Keeps one resource registered: looks, lets :mod:`lifecycle` decide, and does it. One thread per resource."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from msgspec import Struct

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.kubelet.endpoint import Endpoint, EndpointError, clear_leftovers
from deviceplugin.kubelet.handlers import Handlers, Refused
from deviceplugin.kubelet.lifecycle import Action, Facts, Outcome, Phase, State, announced, wake_at, watched
from deviceplugin.kubelet.paths import Paths, SocketId, identify, listening
from deviceplugin.tally import Tally

log = logging.getLogger(__name__)

POLL = 5.0
"""Seconds between two looks when no event calls for one: events may be lost."""

REGISTER_TIMEOUT = 30.0
"""The kubelet dials back and asks for our options inside the Register call, for up to 10 s, within our deadline."""


BESIDE = 0.8
"""Seconds that a handover may take. The instance that goes waits a little longer for the answer."""

SETTLE = 1.0
"""Seconds from a handover to the registration that ends it: the kubelet must have noticed by then that the other instance's stream is over."""


class Decoy(Handlers):
    """What a registration that shall fail leads to."""

    def options(self) -> pb.DevicePluginOptions:
        raise Refused("UNIMPLEMENTED", "this socket is there to be refused")


class Standing(Struct, frozen=True):
    """How a resource stands with the kubelet, for people."""

    phase: Phase
    endpoint: str
    streams: int
    lag: int
    registrations: int
    error: str


class Registrar:
    """The registration of one resource. :meth:`wake` may be called from any thread whenever something may have changed."""

    def __init__(self, handlers: Handlers, paths: Paths, tally: Tally, *, watcher: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.resource = handlers.resource
        self.registrations = 0
        self._handlers = handlers
        self._paths = paths
        self._tally = tally
        self._watcher = watcher
        self._directory = paths.plugins_registry if watcher else paths.device_plugins
        self._clock = clock
        self._state = State(since=clock())
        self._endpoint: Endpoint | None = None
        self._spare: Endpoint | None = None
        self._companions: list[Endpoint] = []
        self._settle_at: float | None = None
        self._served = threading.Condition()
        self._channel: grpc.Channel | None = None
        self._dialled: SocketId | None = None
        self._call: Any = None
        self._outcome: Outcome | None = None
        self._error = ""
        self._wake = threading.Event()
        self._stopping = False
        self._stopped: list[threading.Event] = []
        self._thread = threading.Thread(target=self._run, name=f"register-{self.resource}", daemon=True)

    def prepare(self) -> None:
        """Makes the socket and the connection to the kubelet in advance, so that a standby has only to announce itself.

        Not with the plugin watcher, to which a socket that is there is announced.
        """
        if self._watcher:
            return
        try:
            self._spare = self._new_endpoint()
            self._spare.rehearse()
            self._dialled = identify(self._paths.kubelet_socket)
            if self._dialled is not None and listening(self._paths.kubelet_socket):
                self._channel = self._dial()
                # A call that nobody implements connects; waiting for the channel would leave a thread that polls it, and a close that takes 0.2 s.
                self._channel.unary_unary("/v1beta1.Registration/Nothing")(b"", timeout=1.0, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                log.debug("%s: not connected to the kubelet in advance: %s", self.resource, error.code().name)
                self._hang_up()
        except (EndpointError, OSError) as error:
            log.debug("%s: not all is ready in advance: %s", self.resource, error)

    def start(self) -> None:
        self._thread.start()

    def start_beside(self, timeout: float = BESIDE) -> bool:
        """Starts while another instance's stream still lives, as :mod:`handover` says. Whether the kubelet reads from us and has no record of it."""
        self._settle_at = self._clock() + timeout + SETTLE
        self._thread.start()
        with self._served:
            served = self._served.wait_for(lambda: self._state.phase is Phase.SERVING and self._lists_sent(), timeout)
        if not served:
            return False
        try:
            decoy = Endpoint(self._paths.device_plugins, Decoy(self.resource, self._handlers.snapshots, self._tally), self._tally, lambda: None)
        except (EndpointError, OSError) as error:
            log.warning("%s: no socket for the handover: %s", self.resource, error)
            return False
        try:
            with self._dial() as channel:
                refusal = self._ask(channel, decoy).exception(timeout)
        except grpc.FutureTimeoutError:
            refusal = None
        finally:
            self._stopped.append(decoy.stop(0.0))
        # UNKNOWN is the code of the kubelet's own errors: it got as far as asking the decoy.
        return refusal is not None and refusal.code() is grpc.StatusCode.UNKNOWN

    def wake(self) -> None:
        self._wake.set()

    def stop(self, grace: float = 0.5) -> None:
        """Ends the streams, waits for that, and removes our socket. Another instance may register as soon as this returns."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)
        self._retire(grace)
        spare, self._spare = self._spare, None
        if spare is not None:
            self._stopped.append(spare.stop(0.0))
        self._stopped += [one.stop(grace) for one in self._companions]
        for done in self._stopped:
            done.wait(grace + 0.5)

    def standing(self) -> Standing:
        endpoint = self._endpoint
        return Standing(
            self._state.phase,
            endpoint.name if endpoint else "",
            endpoint.streams if endpoint else 0,
            endpoint.lag() if endpoint else 0,
            self.registrations,
            self._error,
        )

    def _run(self) -> None:
        clear_leftovers(self._directory, self.resource)
        while not self._stopping:
            self._wake.clear()
            looked = self._clock()
            try:
                # A decision may call for the next one at once: retire, then announce again.
                while self._step() is not Action.NONE and not self._stopping:
                    looked = self._clock()
            except Exception:  # a bug of ours must not end the thread: nobody else would register the resource again
                log.exception("%s: registering went wrong; trying again", self.resource)
                self._outcome = Outcome.FAILED
                self._wake.wait(1.0)
                continue
            dues = (wake_at(self._state), self._settle_at)
            # What was due before the last look was seen by it; what came due since then was not.
            self._wake.wait(max(0.0, min([POLL, *(due - self._clock() for due in dues if due is not None and due > looked)])))

    def _step(self) -> Action:
        self._settle()
        endpoint = self._endpoint
        taken = endpoint is not None and endpoint.notified is not None and endpoint.notified[0]
        facts = Facts(
            now=self._clock(),
            kubelet=identify(self._paths.kubelet_socket),
            intact=endpoint is None or endpoint.intact,
            streams=endpoint.streams if endpoint else 0,
            opened=endpoint.streams_opened if endpoint else 0,
            outcome=Outcome.ACCEPTED if taken else self._outcome,
        )
        before = self._state
        self._state, action = (watched if self._watcher else announced)(before, facts, random.random)
        if self._state.phase is Phase.SERVING and before.phase is not Phase.SERVING:
            self._error = ""
            self._hang_up()
            with self._served:
                self._served.notify_all()
            log.info("%s: the kubelet reads the list of devices (%s)", self.resource, endpoint.name if endpoint else "")
        if action is Action.RETIRE:
            if before.phase is Phase.SERVING:
                log.info("%s: the kubelet no longer reads the list; registering anew", self.resource)
            self._retire()
        elif action is Action.ANNOUNCE:
            self._announce()
        return action

    def _settle(self) -> None:
        """The last step of a handover: to register once more, beside our own stream. Neither is ended by us while the other lives."""
        for one in [c for c in self._companions if c.streams == 0]:
            self._companions.remove(one)
            self._stopped.append(one.stop(0.0))
        if self._settle_at is None or self._clock() < self._settle_at or self._state.phase is not Phase.SERVING or self._endpoint is None:
            return
        self._settle_at = None
        self._companions.append(self._endpoint)
        self._endpoint = None
        self._state = State(since=self._clock())

    def _lists_sent(self) -> bool:
        return self._endpoint is not None and self._endpoint.streams > 0 and self._endpoint.lag() == 0

    def _new_endpoint(self) -> Endpoint:
        return Endpoint(self._directory, self._handlers, self._tally, self._changed, publish=self._watcher)

    def _announce(self) -> None:
        if not self._watcher and not listening(self._paths.kubelet_socket):
            self._fail(Outcome.FAILED, f"{self._paths.kubelet_socket} is there, but no kubelet listens on it")
            return
        spare, self._spare = self._spare, None
        try:
            if spare is not None and not spare.intact:
                self._stopped.append(spare.stop(0.0))
                spare = None
            self._endpoint = spare or self._new_endpoint()
        except (EndpointError, OSError) as error:
            self._fail(Outcome.FAILED, str(error))
            return
        self.registrations += 1
        self._tally.count("registrations", resource=self.resource)
        if not self._watcher:
            self._register(self._endpoint)

    def _register(self, endpoint: Endpoint) -> None:
        """Calls the kubelet; the answer comes to :meth:`_answered`."""
        if self._channel is not None and self._dialled != self._state.kubelet:
            self._hang_up()
        if self._channel is None:
            self._channel = self._dial()
        call = self._ask(self._channel, endpoint)
        self._call = call
        call.add_done_callback(self._answered)

    def _ask(self, channel: grpc.Channel, endpoint: Endpoint) -> Any:
        register = channel.unary_unary(
            "/v1beta1.Registration/Register", request_serializer=pb.RegisterRequest.SerializeToString, response_deserializer=pb.Empty.FromString
        )
        options = pb.DevicePluginOptions() if isinstance(endpoint.handlers, Decoy) else self._handlers.options()
        request = pb.RegisterRequest(version="v1beta1", endpoint=endpoint.name, resource_name=self.resource, options=options)
        return register.future(request, timeout=REGISTER_TIMEOUT)

    def _dial(self) -> grpc.Channel:
        # The kubelet's other callers say localhost too; gRPC would send the socket's path, which some servers refuse.
        options = (("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1))
        return grpc.insecure_channel(f"unix:{self._paths.kubelet_socket}", options=options)

    def _answered(self, call: Any) -> None:
        if call is not self._call or call.cancelled():
            return
        error = call.exception()
        if error is None:
            self._outcome = Outcome.ACCEPTED
            self._wake.set()
            return
        code, details = error.code(), error.details() or ""
        self._tally.count("registration_failures", resource=self.resource, code=code.name)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._fail(Outcome.UNKNOWN, f"the kubelet did not answer Register within {REGISTER_TIMEOUT:g} s")
        elif "is invalid" in details or "not supported by kubelet" in details:
            self._fail(Outcome.REFUSED, f"the kubelet refuses {self.resource} for good: {details}")
        else:
            self._fail(Outcome.FAILED, f"Register failed: {code.name}: {details}")

    def _fail(self, outcome: Outcome, text: str) -> None:
        if text != self._error:  # once per reason, not once per try
            (log.error if outcome is Outcome.REFUSED else log.warning)("%s: %s; trying again", self.resource, text)
        self._error = text
        self._outcome = outcome
        self._wake.set()

    def _changed(self) -> None:
        endpoint = self._endpoint
        if endpoint is not None and endpoint.notified is not None and not endpoint.notified[0] and endpoint.notified[1] != self._error:
            self._error = endpoint.notified[1]
            log.error("%s: the kubelet refuses the registration: %s", self.resource, self._error)
        with self._served:
            self._served.notify_all()
        self._wake.set()

    def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        self._call, self._outcome = None, None
        if channel is not None:
            channel.close()

    def _retire(self, grace: float = 0.0) -> None:
        self._hang_up()
        endpoint, self._endpoint = self._endpoint, None
        self._stopped = [done for done in self._stopped if not done.is_set()]
        if endpoint is not None:
            self._stopped.append(endpoint.stop(grace))
