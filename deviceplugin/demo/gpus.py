# SPDX-License-Identifier: Apache-2.0
"""Eight GPUs in a hybrid cube mesh of NVLinks, as in a DGX-1V. One breaks for good, and one for a second."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from deviceplugin.demo import story
from deviceplugin.demo.machine import Machine, Step
from deviceplugin.demo.stage import Stage
from deviceplugin.observe.tables import Cell
from deviceplugin.observe.words import count
from deviceplugin.plugins.gpu import xid
from deviceplugin.testing import Pod, SimulatedHost
from deviceplugin.testing.nvml import Link, dgx1_v100, write_host

_BREAKS, _HEALS, _QUIET = 79, 13, 1.0
_CONFIG = f"""\
version: v1
plugins:
  - plugin: gpu
    config:
      faults:
        xids: {{{_HEALS}: {_QUIET:g}}}     # for this one error: healthy again after {_QUIET:g} s without it
"""

_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_CONTROL = (("nvidiactl", 195, 255), ("nvidia-uvm", 511, 0), ("nvidia-uvm-tools", 511, 1))

_ROWS = ((0, 3, 2, 1), (4, 7, 6, 5))
"""Where the picture has the GPUs. Its lines are the machine's links."""

Links = Mapping[frozenset[int], int]


class Gpus(Machine):
    """Simulated at NVML, the driver's library: the daemon loads one that answers for this machine, and all above it is the real thing."""

    resource = "nvidia.com/gpu"
    noun = "GPU"

    def __init__(self) -> None:
        self.scenario = dgx1_v100()
        self.count = len(self.scenario.gpus)
        self.links: Links = _links(self.scenario.links, [gpu.pci for gpu in self.scenario.gpus])
        self._numbers = {gpu.uuid: number for number, gpu in enumerate(self.scenario.gpus)}
        self.steps: Sequence[Step] = (
            (f"A machine with {self.count} GPUs, and a kubelet", story.build),
            ("Start the daemon", story.start),
            ("A pod asks for two GPUs", lambda stage: self._admit(stage, "finetune", 2)),
            ("Another pod asks for four", lambda stage: self._admit(stage, "training", 4)),
            ("A pod asks for more than is left", lambda stage: story.refuse(stage, "greedy", 4)),
            ("The kubelet restarts", story.restart_kubelet),
            ("Start a second daemon", story.start_standby),
            ("Tell the first one to go (SIGTERM)", story.hand_over),
            ("Start a third, and kill the one that serves (SIGKILL)", story.start_and_kill),
            ("A GPU that a pod uses breaks", self._break),
            ("That pod ends, and the next one asks for two", self._replace),
            ("A GPU fails for a moment", self._heal),
            ("Who has what: `deviceplugin devices`", story.show),
            ("Stop the daemon (SIGTERM)", story.stop),
        )

    def build(self, host: SimulatedHost) -> str:
        self.scenario.install(host.path(_LIBRARIES))
        write_host(self.scenario, host.root)
        for name, major, minor in (*_CONTROL, *((f"nvidia{gpu.minor}", 195, gpu.minor) for gpu in self.scenario.gpus)):
            host.device_file(f"/dev/{name}", major=major, minor=minor)
        os.makedirs(host.path("/sys/module/nvidia"))
        return _CONFIG

    def show(self, stage: Stage) -> None:
        stage.say(f"{self.count} x {self.scenario.gpus[0].name}; the kubelet runs and knows of none of them. Their NVLinks:")
        stage.screen.line()
        for line in picture(self.links, [gpu.numa for gpu in self.scenario.gpus], stage.screen.stream.encoding):
            stage.screen.line("      ", line)
        stage.screen.line()
        stage.say("The whole configuration:")

    def hit(self, gpu: int, code: int) -> None:
        """The driver reports an error of a GPU."""
        self.scenario.inject_xid(gpu, code)

    def _admit(self, stage: Stage, name: str, number: int) -> None:
        taken = {uuid for pod in stage.pods for uuid in stage.kubelet.held(pod)}
        free = self._numbered(stage.kubelet.healthy(stage.resource) - taken)
        config = story.admit(stage, name, number)
        files = sorted((device.container_path.removeprefix("/dev/") for device in config.devices), key=_natural)
        stage.say(f"  device files  {' '.join(files)}, all below /dev")
        shown = ",".join(f"{uuid[:12]}..." for uuid in config.environ["NVIDIA_VISIBLE_DEVICES"].split(","))
        stage.say(f"  variable      NVIDIA_VISIBLE_DEVICES={shown}")
        held = self._numbered(stage.kubelet.held(stage.pods[-1]))
        given = [name for name in files if re.fullmatch(r"nvidia\d+", name)]
        stage.expect(given == [f"nvidia{number}" for number in held], f"it holds GPUs {_list(held)} and got {' '.join(given)}")
        mine = _among(self.links, held)
        best = max(_among(self.links, choice) for choice in itertools.combinations(free, number))
        stage.expect(mine == best, f"GPUs {_list(held)} share {mine} NVLinks, and others of the free ones {best}")
        shared = Cell(f"{_list(held)}, which share {count(mine, 'NVLink')}", "good")
        stage.say("These are GPUs ", shared, f": no {number} of the {len(free)} free ones share more")

    def _break(self, stage: Stage) -> None:
        pod = stage.pods[0]
        victim = min(stage.kubelet.held(pod), key=self._numbers.__getitem__)
        seconds = self._fail(stage, pod, victim, _BREAKS)
        rows = (row for status in stage.ask_daemons() for resource in status.resources for row in resource.devices)
        cause = next((row.cause for row in rows if row.id == victim), "")
        stage.expect(cause == f"xid:{_BREAKS}", f"the daemon's status names the cause {cause!r}")
        stage.say(f"The driver reports XID {_BREAKS} for GPU {self._numbers[victim]} of pod {pod.name}: {xid.meaning(_BREAKS)}.")
        stage.say("After ", seconds, " the kubelet had it as ", Cell("Unhealthy", "bad"), f", and the status of pod {pod.name} says so;")
        stage.say(f"the other {self.count - 1} GPUs stayed healthy all the time. The daemon names the cause, {cause}, and only a reset ends it")

    def _replace(self, stage: Stage) -> None:
        pod = stage.pods.pop(0)
        broken = self._numbered(stage.kubelet.devices(stage.resource).keys() - stage.kubelet.healthy(stage.resource))
        stage.kubelet.delete_pod(pod)
        self._admit(stage, "retry", 2)
        stage.expect(not set(broken) & set(self._numbered(stage.kubelet.held(stage.pods[-1]))), f"it got GPU {_list(broken)}")
        stage.say(f"GPU {_list(broken)}, which broke, is free and was not given out")

    def _heal(self, stage: Stage) -> None:
        pod = stage.pods[0]
        victim = min(stage.kubelet.held(pod), key=self._numbers.__getitem__)
        began = time.monotonic()
        seconds = self._fail(stage, pod, victim, _HEALS)
        story.wait_status(stage, pod, victim, "Healthy")
        healed = time.monotonic() - began
        stage.expect(healed >= _QUIET, f"it was healthy again after {healed:.3f} s, and the configuration wants {_QUIET:g} s of quiet")
        stage.say(
            f"XID {_HEALS} for GPU {self._numbers[victim]} of pod {pod.name}: {xid.meaning(_HEALS)}. ", Cell("Unhealthy", "bad"), " after ", seconds
        )
        stage.say(
            f"Its rule here is {_QUIET:g} s without another: ",
            Cell("Healthy", "good"),
            " by itself ",
            Cell(f"{healed:.1f} s", "good"),
            " after the error,",
        )
        stage.say(f"and the node offers {stage.kubelet.allocatable(stage.resource)}")

    def _fail(self, stage: Stage, pod: Pod, victim: str, code: int) -> Cell:
        """An error of one of the pod's GPUs, which becomes unhealthy, and no other. How long that took."""
        before = stage.kubelet.healthy(stage.resource)
        mark = len(stage.kubelet.events)
        began = time.monotonic()
        self.hit(self._numbers[victim], code)
        listed = stage.list_after(mark, len(before) - 1)
        story.wait_status(stage, pod, victim, "Unhealthy")
        after = stage.kubelet.healthy(stage.resource)
        stage.expect(after == before - {victim}, f"GPUs {_list(self._numbered(before - after))} are not healthy any more")
        fewest = min(event.detail["healthy"] for event in stage.kubelet.events.of("list", stage.resource, since=mark))  # type: ignore[type-var]
        stage.expect(fewest == len(after), f"for a moment only {fewest} were healthy")
        siblings = {device: health for device, health in story.status_of(stage, pod).items() if device != victim}
        stage.expect(set(siblings.values()) == {"Healthy"}, f"the status of pod {pod.name} says {siblings}")
        return stage.measured(listed - began)

    def _numbered(self, uuids: Iterable[str]) -> list[int]:
        return sorted(self._numbers[uuid] for uuid in uuids)


def picture(links: Links, numa: Sequence[int], encoding: str) -> list[str]:
    """The GPUs and their links: those between neighbours of the picture as lines, the rest in words."""
    try:
        "═║─│".encode(encoding)
        across, down = {0: "  ", 1: "──", 2: "══"}, {0: " ", 1: "│", 2: "║"}
    except UnicodeEncodeError:
        across, down = {0: "  ", 1: "--", 2: "=="}, {0: " ", 1: "|", 2: "H"}
    rest = dict(links)
    lines = []
    for number, row in enumerate(_ROWS):
        if number:
            lines.append(" " * 7 + "    ".join(down[rest.pop(frozenset(pair), 0)] for pair in zip(_ROWS[number - 1], row, strict=True)))
        text = str(row[0]) + "".join(f" {across[rest.pop(frozenset(pair), 0)]} {pair[1]}" for pair in itertools.pairwise(row))
        lines.append(f"CPU {numa[row[0]]}  {text}")
    lines[0] += f"      {across[2]} two NVLinks, {across[1]} one"
    words = [f"{a}-{b}" for (a, b), n in sorted((sorted(pair), n) for pair, n in rest.items()) if n == 1]
    lines[1] += f"      and one each: {' '.join(words)}"
    return lines


def _links(links: Iterable[Link], addresses: Sequence[str]) -> Links:
    """How many links each pair of GPUs shares. Both ends of a link are told of."""
    ends = Counter(frozenset((link.gpu, addresses.index(link.remote))) for link in links)
    return {pair: n // 2 for pair, n in ends.items()}


def _among(links: Links, gpus: Collection[int]) -> int:
    return sum(links.get(frozenset(pair), 0) for pair in itertools.combinations(gpus, 2))


def _list(numbers: Sequence[int]) -> str:
    """``1``, ``1 and 2``, ``1, 2 and 3``."""
    words = list(map(str, numbers))
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _natural(name: str) -> tuple[bool, int, str]:
    """Files with a number come last, by their number."""
    number = re.search(r"\d+$", name)
    return number is not None, int(number[0]) if number else 0, name
