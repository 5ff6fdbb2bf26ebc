# SPDX-License-Identifier: Apache-2.0
"""The steps, in order. Each says what it does, does it, waits for what should follow, and shows what did."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from deviceplugin.demo.stage import Stage
from deviceplugin.observe import report
from deviceplugin.observe.tables import Cell
from deviceplugin.observe.words import count
from deviceplugin.testing import ContainerConfig, Pod


def build(stage: Stage) -> None:
    machine = stage.machine
    machine.build(stage.host)
    stage.kubelet.start()
    stage.say(f"{count(machine.count, machine.noun)} plugged in; the kubelet runs and knows of none of them. The whole configuration:")
    for line in machine.config.splitlines():
        stage.screen.line("      ", line, style="dim")


def start(stage: Stage) -> None:
    daemon = stage.start_daemon()
    registered = stage.kubelet.wait_for_event("register", stage.resource, timeout=stage.patience)
    listed = stage.list_after(0, stage.machine.count)
    stage.say("It found the hardware and registered ", stage.measured(registered.at - daemon.started_at), " after its process was started;")
    stage.say("the kubelet had the list of devices after ", stage.measured(listed - daemon.started_at))
    stage.say(f"The node now offers {stage.kubelet.allocatable(stage.resource)} x {stage.resource}")


def first_pod(stage: Stage) -> None:
    _admit(stage, "viewer", 1)


def second_pod(stage: Stage) -> None:
    _admit(stage, "recorder", 2)


def refused_pod(stage: Stage) -> None:
    pod = Pod.requesting(stage.resource, 2, name="greedy")
    free = stage.kubelet.allocatable(stage.resource) - len(stage.kubelet.allocated(stage.resource))
    admission = stage.kubelet.admit(pod)
    stage.expect(not admission, f"the pod was admitted, though {free} of 2 devices were free")
    stage.say(f"Pod greedy asks for 2 and {free} is free. The kubelet refuses it; its status says:")
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
    began = time.monotonic()
    standby = stage.start_daemon()
    stage.until(lambda: stage.role_of(standby) == "standby", "the second daemon to be ready")
    ready = time.monotonic() - began
    active = stage.daemons[0]
    stage.expect(stage.kubelet.streams(stage.resource) == 1, "the kubelet heard of both")
    stage.say(f"As a rolling update does. It has looked at the hardware, sees that pid {active.pid} serves,")
    stage.say("and is ready to take over ", stage.measured(ready), " after its process was started")


def kill_active(stage: Stage) -> None:
    active, standby = stage.daemons
    held = _held(stage)
    mark = len(stage.kubelet.events)
    killed = time.monotonic()
    active.signal(signal.SIGKILL)
    active.wait()
    listed = stage.list_after(mark, stage.machine.count)
    ended = stage.kubelet.wait_for_event("stream ended", stage.resource, since=mark).at
    stage.expect(_held(stage) == held, "a pod lost its devices")
    stage.until(lambda: stage.role_of(standby) == "active", "the standby to say that it is active")
    stage.say(f"pid {active.pid} is gone; pid {standby.pid} took over ", stage.measured(listed - killed), " after the kill.")
    stage.say("The kubelet was without devices for ", stage.measured(max(0.0, listed - ended)), "; both pods kept theirs")


def show(stage: Stage) -> None:
    def known() -> bool:
        daemons = stage.ask_daemons()
        return any(one.held_by for status in daemons for resource in status.resources for one in resource.devices)

    stage.until(known, "the daemon to learn who holds what")
    report.show_daemons(stage.screen.indented(4), stage.ask_daemons())


def unplug(stage: Stage) -> None:
    pod, device = _victim(stage)
    began = time.monotonic()
    what = stage.machine.unplug(stage.host, device)
    stage.kubelet.wait_until(lambda: _status(stage, pod) == "Unhealthy", f"the status of pod {pod.name} to say Unhealthy", timeout=stage.patience)
    seconds = time.monotonic() - began
    stage.say(what)
    stage.say("After ", stage.measured(seconds), f" the status of pod {pod.name}, which holds {device}, says ", Cell("Unhealthy", "bad"))
    stage.say(f"The node offers {stage.kubelet.allocatable(stage.resource)} healthy ones; this one stays listed for as long as the pod holds it")


def plug(stage: Stage) -> None:
    pod, device = _victim(stage)
    began = time.monotonic()
    what = stage.machine.plug(stage.host, device)
    stage.kubelet.wait_until(lambda: _status(stage, pod) == "Healthy", f"the status of pod {pod.name} to say Healthy", timeout=stage.patience)
    seconds = time.monotonic() - began
    offered = stage.kubelet.allocatable(stage.resource)
    for line in what.splitlines():
        stage.say(line)
    stage.say("After ", stage.measured(seconds), f" the status of pod {pod.name} says ", Cell("Healthy", "good"), f", and the node offers {offered}")


def stop(stage: Stage) -> None:
    daemon = stage.daemons[-1]
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    status = daemon.wait()
    seconds = time.monotonic() - began
    stage.expect(status == 0, f"the exit status is {status}")
    left = [name for name in os.listdir(stage.paths.device_plugins) if name.endswith(".sock") and name != "kubelet.sock"]
    mine = [name for name in left if f"-{daemon.pid}-" in name]
    stage.expect(not mine, f"it left {mine} behind")
    stage.say(f"pid {daemon.pid} ended with status {status} after ", stage.measured(seconds), " and left no socket behind")


def _admit(stage: Stage, name: str, number: int) -> None:
    pod = Pod.requesting(stage.resource, number, name=name)
    began = time.monotonic()
    admission = stage.kubelet.admit(pod)
    seconds = time.monotonic() - began
    stage.expect(bool(admission), f"the pod was refused: {admission.message}")
    stage.pods.append(pod)
    held = sorted(stage.kubelet.held(pod))
    stage.expect(len(held) == number, f"the pod holds {held}")
    stage.say(f"Pod {name} has limits {{{stage.resource}: {number}}}. Admitted in ", stage.measured(seconds), "; its container gets:")
    _tell(stage, stage.kubelet.start_container(pod))


def _tell(stage: Stage, config: ContainerConfig) -> None:
    stage.expect(bool(config.devices), "the container got no device file")
    for device in config.devices:
        stage.say(f"  device file  {device.container_path} ({device.permissions})")
    for key, value in sorted(config.environ.items()):
        stage.say(f"  variable     {key}={value}")


def _held(stage: Stage) -> dict[str, set[str]]:
    return {pod.name: stage.kubelet.held(pod) for pod in stage.pods}


def _victim(stage: Stage) -> tuple[Pod, str]:
    """The pod and the device that have the accident."""
    pod = stage.pods[0]
    return pod, min(stage.kubelet.held(pod))


def _status(stage: Stage, pod: Pod) -> str:
    """What the pod's status says of its device."""
    return next(iter(stage.kubelet.pod_status(pod)[pod.containers[0].name][stage.resource].values()))


STEPS: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("A machine with hardware, and a kubelet", build),
    ("Start the daemon", start),
    ("A pod asks for a {noun}", first_pod),
    ("Another pod asks for two", second_pod),
    ("A pod asks for more than is left", refused_pod),
    ("The kubelet restarts", restart_kubelet),
    ("Start a second daemon", start_standby),
    ("Kill the first one (SIGKILL)", kill_active),
    ("Who has what: `deviceplugin devices`", show),
    ("Unplug a {noun} that a pod uses", unplug),
    ("Plug it in again", plug),
    ("Stop the daemon (SIGTERM)", stop),
)
