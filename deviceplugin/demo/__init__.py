# SPDX-License-Identifier: Apache-2.0
"""``deviceplugin demo``: a node in miniature, where the real daemon serves simulated devices to a fake kubelet. Every figure shown is measured."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deviceplugin.demo.cameras import Cameras
from deviceplugin.demo.gpus import Gpus
from deviceplugin.demo.machine import Machine
from deviceplugin.demo.stage import Stage, StepFailed
from deviceplugin.observe.client import AskError
from deviceplugin.observe.tables import Screen
from deviceplugin.testing import CreateContainerConfigError, KubeletStopped, NotReached, SyncLoopBlocked

_NOT_AS_SAID = (StepFailed, NotReached, SyncLoopBlocked, KubeletStopped, CreateContainerConfigError, AskError, subprocess.TimeoutExpired, OSError)


MACHINES: dict[str, Callable[[], Machine]] = {"gpus": Gpus, "cameras": Cameras}


def main(*, machine: Machine | None = None, show_log: bool = False) -> int:
    """Plays every step on the given machine. 0 if each did what it says, else 1, with what went wrong and the daemon's last words."""
    machine = machine or Gpus()
    screen = Screen(sys.stdout)
    screen.line("A Kubernetes node in miniature: simulated hardware, a kubelet that keeps to the real")
    screen.line("one's rules, and the real daemon. Every number below is measured while you watch.")
    try:
        with _orderly_end(), Stage(screen, machine, show_log=show_log) as stage:
            for number, (title, step) in enumerate(machine.steps, 1):
                stage.begin(number, title)
                try:
                    step(stage)
                except BrokenPipeError:
                    raise
                except _NOT_AS_SAID as error:
                    stage.failed(error)
                    return 1
                stage.end()
            screen.line()
            screen.line(f"All {len(machine.steps)} steps did what they say, in {stage.seconds:.1f} s.", style="good")
            screen.line("Next, for your own hardware: deviceplugin check FILE, then deviceplugin run --config FILE")
    except BrokenPipeError:
        raise  # whoever watched has seen enough
    except (OSError, ValueError) as error:
        print(f"deviceplugin demo: cannot set the stage: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _orderly_end() -> Iterator[None]:
    """A terminal that is closed, too, must leave no daemon and no directory behind."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
