# SPDX-License-Identifier: Apache-2.0
"""One story of a node, told on the fake kubelet and on a real one. Both must end it with the same words: that is what makes the fake honest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

RESOURCE = "example.com/stage"


@dataclass(frozen=True)
class Ask:
    """A pod: devices for its app container, and for an init container before it."""

    name: str
    count: int = 0
    init: int = 0
    resource: str = RESOURCE


class Stage(ABC):
    """A node with a kubelet and our daemon, which serves one device of RESOURCE for each file that is plugged in. Device ids are the files' names."""

    @abstractmethod
    def plug(self, name: str) -> None: ...

    @abstractmethod
    def unplug(self, name: str) -> None: ...

    @abstractmethod
    def start_plugin(self) -> None: ...

    @abstractmethod
    def kill_plugin(self) -> None: ...

    @abstractmethod
    def restart_kubelet(self) -> None:
        """Kills the kubelet and starts it; containers run on."""

    @abstractmethod
    def wait_healthy(self, count: int) -> None:
        """Waits until the kubelet would give out or has given out this many devices."""

    @abstractmethod
    def create(self, ask: Ask) -> str:
        """Creates the pod and says what became of it: "Running", or "Failed", the reason and the message."""

    @abstractmethod
    def delete(self, name: str) -> None: ...

    @abstractmethod
    def held(self, name: str) -> frozenset[str]:
        """The devices that podresources says the pod's app container holds."""

    @abstractmethod
    def wait_held(self, name: str, devices: frozenset[str]) -> None:
        """Waits until podresources says so: after a restart it lists a pod only once the kubelet has taken it up again."""

    @abstractmethod
    def files(self, name: str) -> frozenset[str]:
        """The device files that the app container was given."""

    @abstractmethod
    def wait_health(self, name: str, health: Mapping[str, str]) -> None:
        """Waits until the pod's status shows exactly these devices, with this health each."""


@dataclass
class Story:
    """Plays on a stage and keeps the words."""

    stage: Stage
    words: list[str] = field(default_factory=list)

    def say(self, text: object) -> None:
        self.words.append(str(text))

    def create(self, ask: Ask) -> None:
        self.say(f"{ask.name}: {self.stage.create(ask)}")

    def play(self) -> list[str]:
        stage = self.stage
        for name in ("a", "b", "c"):
            stage.plug(name)
        stage.start_plugin()
        stage.wait_healthy(3)
        self.admissions()
        self.hardware()
        self.restarts()
        self.ends()
        return self.words

    def admissions(self) -> None:
        stage = self.stage
        self.create(Ask("one", 1))
        self.create(Ask("two", 2))
        self.say(f"held: {len(stage.held('one'))} and {len(stage.held('two'))}, in common {len(stage.held('one') & stage.held('two'))}")
        self.say(f"files as held: {stage.files('one') == stage.held('one') and stage.files('two') == stage.held('two')}")
        self.create(Ask("late", 1))
        stage.delete("late")
        stage.delete("one")
        self.create(Ask("init", 1, init=1))
        self.say(f"init: {len(stage.held('init'))}, in common with two {len(stage.held('init') & stage.held('two'))}")
        self.create(Ask("stranger", 1, resource="example.com/unknown"))
        self.say(f"stranger: holds {len(stage.held('stranger'))}")
        stage.delete("stranger")

    def hardware(self) -> None:
        stage = self.stage
        lost, kept = sorted(stage.held("two"))
        stage.wait_health("two", {lost: "Healthy", kept: "Healthy"})
        stage.unplug(lost)
        stage.wait_healthy(2)
        stage.wait_health("two", {lost: "Unhealthy", kept: "Healthy"})
        self.create(Ask("refused", 1))
        stage.delete("refused")
        stage.plug(lost)
        stage.wait_healthy(3)
        stage.wait_health("two", {lost: "Healthy", kept: "Healthy"})
        self.say("lost and found")

    def restarts(self) -> None:
        stage = self.stage
        before = stage.held("two")
        stage.restart_kubelet()
        stage.wait_healthy(3)
        stage.wait_held("two", before)
        self.create(Ask("full", 1))
        stage.delete("full")
        stage.kill_plugin()
        stage.wait_healthy(0)
        self.create(Ask("orphan", 1))
        stage.delete("orphan")
        stage.start_plugin()
        stage.wait_healthy(3)
        stage.wait_held("two", before)
        self.say("restarted")

    def ends(self) -> None:
        stage = self.stage
        stage.delete("two")
        stage.delete("init")
        self.create(Ask("all", 3))
        self.say(f"all: {len(stage.held('all'))}")
        stage.delete("all")
        self.create(Ask("greedy", 4))
        stage.delete("greedy")


UNAVAILABLE = (
    "Failed: UnexpectedAdmissionError: Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/stage. "
)

EXPECTED = [
    "one: Running",
    "two: Running",
    "held: 1 and 2, in common 0",
    "files as held: True",
    f"late: {UNAVAILABLE}Requested: 1, Available: 0, which is unexpected",
    "init: Running",
    "init: 1, in common with two 0",
    "stranger: Running",
    "stranger: holds 0",
    f"refused: {UNAVAILABLE}Requested: 1, Available: 0, which is unexpected",
    "lost and found",
    f"full: {UNAVAILABLE}Requested: 1, Available: 0, which is unexpected",
    "orphan: Failed: UnexpectedAdmissionError: Pod was rejected: Allocate failed due to no healthy devices present; "
    "cannot allocate unhealthy devices example.com/stage, which is unexpected",
    "restarted",
    "all: Running",
    "all: 3",
    f"greedy: {UNAVAILABLE}Requested: 4, Available: 3, which is unexpected",
]
