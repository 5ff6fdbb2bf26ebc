# SPDX-License-Identifier: Apache-2.0
"""Where the demonstration takes place: a directory that is a machine, its kubelet, and daemons as processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar

from deviceplugin.demo.machine import Machine
from deviceplugin.kubelet.paths import Paths
from deviceplugin.observe import client
from deviceplugin.observe.status import Status
from deviceplugin.observe.tables import Cell, Screen
from deviceplugin.observe.words import duration
from deviceplugin.testing import Kubelet, Pod, SimulatedHost


class StepFailed(Exception):
    """A step did not do what it says."""


class Daemon:
    """One daemon process and its log."""

    def __init__(self, root: str, config: str, log: str) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("DEVICEPLUGIN_")}
        command = [sys.executable, "-m", "deviceplugin", "run", "--config", config, "--root", root, "--listen", ""]
        self.log = log
        self.started_at = time.monotonic()
        with open(log, "wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ)
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(Stage.patience)

    def end(self) -> None:
        if self.running:
            self.signal(signal.SIGKILL)
        self._process.wait()


class Stage:
    """What the steps act on, and how they tell of it."""

    patience: ClassVar[float] = 10.0
    """Seconds that anything may take before the step has failed."""

    def __init__(self, screen: Screen, machine: Machine, *, show_log: bool = False) -> None:
        self.screen = screen
        self.machine = machine
        self.resource = machine.resource
        self.daemons: list[Daemon] = []
        self.pods: list[Pod] = []
        self._show_log = show_log
        self._shown: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._player: threading.Thread | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Stage:
        # A short name: the paths of unix sockets below it are limited to 107 characters.
        self.root = tempfile.mkdtemp(prefix="dp-", dir="/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else None)  # noqa: S108 - made with mkdtemp
        try:
            self.paths = Paths.below(self.root)
            self.host = SimulatedHost(self.root)
            self.kubelet = Kubelet(self.root)
            self.config = os.path.join(self.root, "config.yaml")
            self.configuration = ""
        except BaseException:
            shutil.rmtree(self.root)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
        for daemon in self.daemons:
            daemon.end()
        self.kubelet.stop()
        if self._player is not None:
            self._player.join(0.5)  # it finds nothing there any more, or waits for what will not come: what it makes of that nobody hears
        shutil.rmtree(self.root)

    def play(self, steps: Callable[[], object], failed: Callable[[BaseException], object]) -> None:
        """Acts on a thread of its own, until the curtain falls; then whatever goes wrong was to be expected. ``failed`` hears what does before."""

        def act() -> None:
            try:
                steps()
            except BaseException as error:  # noqa: BLE001 - all of it is for the main thread
                failed(error)

        self._player = threading.Thread(target=act, name="steps", daemon=True)
        self._player.start()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    # Telling

    def begin(self, number: int, title: str) -> None:
        if self._closed:
            raise StepFailed("the stage was cleared")
        self.screen.line()
        self.screen.line(Cell(f"{number:2}. ", "dim"), Cell(title, "bold"))

    def say(self, *parts: Cell | str) -> None:
        self.screen.line("    ", *parts)

    def quote(self, text: str) -> None:
        """Somebody else's words, in full."""
        for line in textwrap.wrap(text, min(self.screen.width or 100, 100) - 6, break_long_words=False):
            self.screen.line("      ", line, style="warn")

    def measured(self, seconds: float) -> Cell:
        """A duration that was measured."""
        return Cell(duration(seconds), "good")

    def end(self) -> None:
        if self._show_log:
            self._tell_log()

    def failed(self, error: BaseException) -> None:
        if self._closed:
            return
        self._tell_log()
        for line in str(error).splitlines() or [type(error).__name__]:
            self.screen.line("    ", line, style="bad")
        self.screen.line("This step did not do what it says.", style="bad")

    def _tell_log(self) -> None:
        for daemon in self.daemons:
            with open(daemon.log, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
            for line in lines[self._shown.get(daemon.log, 0) :]:
                self.screen.line(f"    | pid {daemon.pid} {line}", style="dim")
            self._shown[daemon.log] = len(lines)

    # Acting

    def furnish(self) -> None:
        """Puts the hardware into the machine, and the daemon's configuration beside it."""
        self.configuration = self.machine.build(self.host)
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(self.configuration)

    def active(self) -> Daemon:
        """The daemon that has run for longest: the others stand by."""
        return next(daemon for daemon in self.daemons if daemon.running)

    def start_daemon(self) -> Daemon:
        with self._lock:
            if self._closed:
                raise StepFailed("the stage was cleared")
            daemon = Daemon(self.root, self.config, os.path.join(self.root, f"daemon-{len(self.daemons) + 1}.log"))
            self.daemons.append(daemon)
        return daemon

    def list_after(self, mark: int, healthy: int) -> float:
        """Waits until the kubelet, after event number ``mark``, received a list and counts ``healthy`` devices. When the list came."""
        listed = self.kubelet.wait_for_event("list", self.resource, since=mark, timeout=self.patience)
        self.kubelet.wait_for(self.resource, healthy=healthy, timeout=self.patience)
        return listed.at

    def expect(self, true: bool, text: str) -> None:
        """``text`` says what was expected and is not so."""
        if not true:
            raise StepFailed(text)

    def until(self, truth: Callable[[], bool], what: str) -> None:
        """Looks every 10 ms until it is true."""
        pause, deadline = threading.Event(), time.monotonic() + self.patience
        while not truth():
            self.expect(time.monotonic() < deadline, f"waited {self.patience:g} s for {what}")
            pause.wait(0.01)

    def ask_daemons(self) -> tuple[Status, ...]:
        """The status of every daemon, as ``deviceplugin devices`` asks for it."""
        return client.ask_all(self.paths.locks)[0]

    def role_of(self, daemon: Daemon) -> str:
        """What a daemon says it is for the resource, empty while it does not say."""
        return next((one.role for status in self.ask_daemons() if status.pid == daemon.pid for one in status.resources), "")
