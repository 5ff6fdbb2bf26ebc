# SPDX-License-Identifier: Apache-2.0
"""What happens on every machine. Each step says what it does, does it, waits for what should follow, and shows what did."""

from __future__ import annotations

import itertools
import os
import signal
import time

from deviceplugin.demo.stage import Daemon, Stage
from deviceplugin.observe import report
from deviceplugin.observe.tables import Cell
from deviceplugin.observe.words import count
from deviceplugin.testing import ContainerConfig, Pod


def build(stage: Stage) -> None:
    stage.furnish()
    stage.kubelet.start()
    stage.machine.show(stage)
    for line in stage.configuration.splitlines():
        stage.screen.line("      ", line, style="dim")


def start(stage: Stage) -> None:
    daemon = stage.start_daemon()
    registered = stage.kubelet.wait_for_event("register", stage.resource, timeout=stage.patience)
    listed = stage.list_after(0, stage.machine.count)
    stage.say("It found the hardware and registered ", stage.measured(registered.at - daemon.started_at), " after its process was started;")
    stage.say("the kubelet had the list of devices after ", stage.measured(listed - daemon.started_at))
    stage.say(f"The node now offers {stage.kubelet.allocatable(stage.resource)} x {stage.resource}")


def admit(stage: Stage, name: str, number: int) -> ContainerConfig:
    """A pod that is admitted, and what the runtime is told of its container."""
    pod = Pod.requesting(stage.resource, number, name=name)
    began = time.monotonic()
    admission = stage.kubelet.admit(pod)
    seconds = time.monotonic() - began
    stage.expect(bool(admission), f"the pod was refused: {admission.message}")
    stage.pods.append(pod)
    held = sorted(stage.kubelet.held(pod))
    stage.expect(len(held) == number, f"the pod holds {held}")
    stage.say(f"Pod {name} has limits {{{stage.resource}: {number}}}. Admitted in ", stage.measured(seconds), "; its container gets:")
    config = stage.kubelet.start_container(pod)
    stage.expect(bool(config.devices), "the container got no device file")
    return config


def refuse(stage: Stage, name: str, number: int) -> None:
    pod = Pod.requesting(stage.resource, number, name=name)
    free = stage.kubelet.allocatable(stage.resource) - len(stage.kubelet.allocated(stage.resource))
    admission = stage.kubelet.admit(pod)
    stage.expect(not admission, f"the pod was admitted, though {free} of {number} devices were free")
    stage.say(f"Pod {name} asks for {number}, and {free} {'is' if free == 1 else 'are'} free. The kubelet refuses it; its status says:")
    stage.quote(admission.message)
    stage.kubelet.delete_pod(pod)


def restart_kubelet(stage: Stage) -> None:
    held = _held(stage)
    mark = len(stage.kubelet.events)
    stage.kubelet.restart()
    up = stage.kubelet.wait_for_event("kubelet started", since=mark).at
    listed = stage.list_after(mark, stage.machine.count)
    stage.expect(_held(stage) == held, "a pod lost its devices")
    stage.say("The kubelet lost its memory and its socket. The daemon saw it and registered anew:")
    stage.say(f"all {stage.machine.count} devices back ", stage.measured(listed - up), " after the kubelet was up; both pods kept theirs")


def start_standby(stage: Stage) -> None:
    active = stage.active()
    _, ready = _ready_standby(stage)
    stage.say(f"As a rolling update does. It has looked at the hardware, sees that pid {active.pid} serves,")
    stage.say("and is ready to take over ", stage.measured(ready), " after its process was started")


def hand_over(stage: Stage) -> None:
    """The active daemon is told to go."""
    active, standby = stage.active(), stage.daemons[-1]
    held = _held(stage)
    mark = len(stage.kubelet.events)
    told = time.monotonic()
    active.signal(signal.SIGTERM)
    status = active.wait()
    gone = time.monotonic() - told
    stage.expect(status == 0, f"the exit status is {status}")
    registered = stage.kubelet.wait_for_event("registered", stage.resource, since=mark, timeout=stage.patience).at
    listed = stage.list_after(mark, stage.machine.count)
    ended = stage.kubelet.wait_for_event("stream ended", stage.resource, since=mark, timeout=stage.patience).at
    _expect_no_gap(stage, mark)
    stage.until(lambda: stage.role_of(standby) == "active", "the standby to say that it is active")
    # The kubelet forgot the standby on purpose, and knows it again once it has registered a last time, beside its own stream.
    stage.kubelet.wait_for_event("list", stage.resource, count=2, since=mark, timeout=stage.patience)
    _expect_no_gap(stage, mark)
    stage.expect(_held(stage) == held, "a pod lost its devices")
    stage.say(f"pid {active.pid} calls pid {standby.pid}, which registered ", stage.measured(registered - told), " after the signal, beside it;")
    stage.say("then it let go and ended with status 0, ", stage.measured(gone), " after the signal.")
    stage.say(
        "The kubelet had the new list ",
        stage.measured(ended - listed),
        " before the old one's end: ",
        Cell("never without devices", "good"),
        "; both pods",
    )
    stage.say("kept theirs")


def start_and_kill(stage: Stage) -> None:
    """A standby for the one that serves, which then dies."""
    standby, ready = _ready_standby(stage)
    stage.say(f"pid {standby.pid} stands by ", stage.measured(ready), " after its process was started")
    kill_active(stage)


def kill_active(stage: Stage) -> None:
    active, standby = stage.active(), stage.daemons[-1]
    held = _held(stage)
    mark = len(stage.kubelet.events)
    killed = time.monotonic()
    active.signal(signal.SIGKILL)
    active.wait()
    stage.kubelet.wait_for_event("register", stage.resource, since=mark, timeout=stage.patience)
    listed = stage.list_after(mark, stage.machine.count)
    stage.until(lambda: stage.role_of(standby) == "active", "the standby to say that it is active")
    stage.expect(_held(stage) == held, "a pod lost its devices")
    stage.say(f"pid {active.pid} is gone; pid {standby.pid} took over ", stage.measured(listed - killed), " after the kill.")
    stage.say("The kubelet was without devices for ", stage.measured(seconds_without(stage, mark)), "; both pods kept theirs")


def show(stage: Stage) -> None:
    """Once the daemon has learnt who holds what."""
    holders = {f"{pod.name}/{device}" for pod in stage.pods for device in stage.kubelet.held(pod)}

    def told() -> set[str]:
        rows = [one for status in stage.ask_daemons() for resource in status.resources for one in resource.devices]
        return {f"{who.pod}/{one.id}" for one in rows for who in one.held_by or ()}

    stage.until(lambda: told() == holders, "the daemon to learn who holds what")
    report.show_daemons(stage.screen.indented(4), stage.ask_daemons())


def stop(stage: Stage) -> None:
    daemon = stage.active()
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    status = daemon.wait()
    seconds = time.monotonic() - began
    stage.expect(status == 0, f"the exit status is {status}")
    left = [name for name in os.listdir(stage.paths.device_plugins) if name.endswith(".sock") and name != "kubelet.sock"]
    mine = [name for name in left if f"-{daemon.pid}-" in name]
    stage.expect(not mine, f"it left {mine} behind")
    stage.say(f"pid {daemon.pid} ended with status {status} after ", stage.measured(seconds), " and left no socket behind")


def status_of(stage: Stage, pod: Pod) -> dict[str, str]:
    """What the pod's status says of its devices."""
    return dict(stage.kubelet.pod_status(pod)[pod.containers[0].name][stage.resource])


def wait_status(stage: Stage, pod: Pod, device: str, health: str) -> None:
    what = f"the status of pod {pod.name} to say {health}"
    stage.kubelet.wait_until(lambda: status_of(stage, pod)[device] == health, what, timeout=stage.patience)


def _ready_standby(stage: Stage) -> tuple[Daemon, float]:
    """A daemon more, and how long it took to be ready."""
    streams = stage.kubelet.streams(stage.resource)
    standby = stage.start_daemon()
    stage.until(lambda: stage.role_of(standby) == "standby", "the second daemon to be ready")
    ready = time.monotonic() - standby.started_at
    stage.expect(stage.kubelet.streams(stage.resource) == streams, f"the kubelet heard of {count(len(stage.daemons), 'daemon')}")
    return standby, ready


def _held(stage: Stage) -> dict[str, set[str]]:
    return {pod.name: stage.kubelet.held(pod) for pod in stage.pods}


def _expect_no_gap(stage: Stage, mark: int) -> None:
    gap = seconds_without(stage, mark)
    stage.expect(gap == 0.0, f"the kubelet was without all its devices for {gap * 1000:.1f} ms")


def seconds_without(stage: Stage, mark: int) -> float:
    """Seconds since event ``mark`` in which the kubelet had fewer devices than there are.

    Its count changes with a list and with the end of a stream alone, and each is an event, so nothing falls between two looks.
    """
    seconds, since = 0.0, None
    for event in itertools.islice(stage.kubelet.events, mark, None):
        if event.resource != stage.resource or event.kind not in ("list", "disconnected"):
            continue
        if event.kind == "list" and event.detail["healthy"] == stage.machine.count:
            seconds += 0.0 if since is None else event.at - since
            since = None
        elif since is None:
            since = event.at
    return seconds if since is None else seconds + time.monotonic() - since
