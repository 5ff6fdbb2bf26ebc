# SPDX-License-Identifier: Apache-2.0
"""``deviceplugin demo``: a node in miniature, where the real daemon serves simulated devices to a fake kubelet. Every figure shown is measured."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
from collections.abc import Callable

from deviceplugin.demo.cameras import Cameras
from deviceplugin.demo.gpus import Gpus
from deviceplugin.demo.machine import Machine
from deviceplugin.demo.stage import Stage, StepFailed
from deviceplugin.observe.client import AskError
from deviceplugin.observe.tables import Screen
from deviceplugin.signals import Signals
from deviceplugin.testing import CreateContainerConfigError, KubeletStopped, NotReached, SyncLoopBlocked

_NOT_AS_SAID = (StepFailed, NotReached, SyncLoopBlocked, KubeletStopped, CreateContainerConfigError, AskError, subprocess.TimeoutExpired, OSError)


MACHINES: dict[str, Callable[[], Machine]] = {"gpus": Gpus, "cameras": Cameras}


def main(*, machine: Machine | None = None, show_log: bool = False) -> int:
    """Plays every step on the given machine. 0 if each did what it says, else 1, with what went wrong and the daemon's last words.

    A signal ends it in order: the status is 128 and the signal's number then.
    """
    machine = machine or Gpus()
    screen = Screen(sys.stdout)
    screen.line("A Kubernetes node in miniature: simulated hardware, a kubelet that keeps to the real")
    screen.line("one's rules, and the real daemon. Every number below is measured while you watch.")
    outcome: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    # A terminal that is closed, too, must leave no daemon and no directory behind.
    ends = Signals((signal.SIGHUP, signal.SIGINT, signal.SIGTERM), lambda number: outcome.put(128 + number))
    try:
        with ends, Stage(screen, machine, show_log=show_log) as stage:
            # On a thread of its own, so that a signal interrupts nothing: an exception in the middle of a step could leave a lock held that the
            # clearing up needs.
            stage.play(lambda: outcome.put(_play(stage)), outcome.put)
            end = outcome.get()
    except (OSError, ValueError) as error:
        print(f"deviceplugin demo: cannot set the stage: {error}", file=sys.stderr)
        return 1
    if isinstance(end, BaseException):
        raise end  # for one, that whoever watched has seen enough
    return end


def _play(stage: Stage) -> int:
    for number, (title, step) in enumerate(stage.machine.steps, 1):
        stage.begin(number, title)
        try:
            step(stage)
        except BrokenPipeError:
            raise
        except _NOT_AS_SAID as error:
            stage.failed(error)
            return 1
        stage.end()
    stage.screen.line()
    stage.screen.line(f"All {len(stage.machine.steps)} steps did what they say, in {stage.seconds:.1f} s.", style="good")
    stage.screen.line("Next, for your own hardware: deviceplugin check FILE, then deviceplugin run --config FILE")
    return 0
