# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to the simulator in whatever order, it stays a resctrl: compared with a plain model of masks, modes and members."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deviceplugin.testing.resctrl import SCENARIOS, Scenario, SimResctrl, last_status, schemata, snapshot

NAMES = st.sampled_from([f"g{number}" for number in range(6)])
PATHS = st.sampled_from(["", *(f"g{number}" for number in range(6))])

FEW = {
    "intel": replace(SCENARIOS["skylake"], closids=5, ways=6, shareable=0b110000, bandwidth=None, rmids=40),
    "haswell": replace(SCENARIOS["haswell"], ways=7, shareable=0b1100000),
    "amd": replace(SCENARIOS["amd"], caches=SCENARIOS["amd"].caches[:3], ways=5, closids=4, bandwidth=None),
    "cdp": replace(SCENARIOS["cdp"], ways=6, shareable=0b1, closids=8, bandwidth=None),
}


def is_run(mask: int) -> bool:
    return "01" not in f"{mask:b}".rstrip("0") and mask != 0


@dataclass
class ModelGroup:
    """Masks by schema and domain."""

    masks: dict[str, dict[int, int]]
    exclusive: bool = False
    tasks: set[int] = field(default_factory=set)


class Model:
    """What there should be."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.schemas = ["L3CODE", "L3DATA"] if scenario.options == "cdp" else ["L3"]
        self.domains = {cache.id for cache in scenario.caches}
        self.every = (1 << scenario.ways) - 1
        self.limit = scenario.closids // len(self.schemas)
        self.groups = {"": ModelGroup(self.full(), tasks={1, 2})}

    def full(self) -> dict[str, dict[int, int]]:
        return {schema: dict.fromkeys(self.domains, self.every) for schema in self.schemas}

    def legal(self, mask: int) -> bool:
        if mask == 0:
            return self.scenario.min_ways == 0
        lowest = len(f"{mask:b}".rstrip("0").split("0")[-1])
        return mask <= self.every and (is_run(mask) or self.scenario.sparse) and lowest >= self.scenario.min_ways

    def held(self, domain: int, *, but: str, modes: tuple[bool, ...] = (False, True)) -> int:
        """The ways that others have of a cache, as code or data; of those alone that are exclusive, or are not, if so asked."""
        held = 0
        for name, group in self.groups.items():
            if name != but and group.exclusive in modes:
                for masks in group.masks.values():
                    held |= masks[domain]
        return held

    def may_have(self, name: str, domain: int, mask: int) -> bool:
        if not self.legal(mask) or mask & self.held(domain, but=name, modes=(True,)):
            return False
        return not self.groups[name].exclusive or not mask & (self.held(domain, but=name) | self.scenario.shareable)

    def beginning(self, name: str) -> dict[int, int] | None:
        """The mask that a new group gets in each domain, None where one has no room."""
        masks = {}
        for domain in self.domains:
            exclusive = self.held(domain, but=name, modes=(True,)) & ~self.held(domain, but=name, modes=(False,))
            usable = self.every & ~exclusive | self.scenario.shareable
            run = 0
            for way in range(self.scenario.ways):
                if usable >> way & 1:
                    run |= 1 << way
                elif run:
                    break
            if run.bit_count() < self.scenario.min_ways:
                return None
            masks[domain] = run
        return masks


class Resctrl(RuleBasedStateMachine):
    @initialize(name=st.sampled_from(sorted(FEW)))
    def begin(self, name: str) -> None:
        self.clock = 0.0
        self.sim = SimResctrl(FEW[name], clock=lambda: self.clock)
        self.model = Model(FEW[name])

    def fails(self, number: int, status: str, path: str, data: bytes) -> None:
        """A write that is refused, and changes nothing."""
        before = self.everything()
        with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is compared below
            self.sim.write(path, data)
        assert raised.value.errno == number
        assert last_status(self.sim).startswith(status)
        assert self.everything() == before

    def everything(self) -> dict[str, str]:
        found = snapshot(self.sim)
        return {path: text for path, text in found.items() if not path.endswith("last_cmd_status")}

    @rule(name=NAMES)
    def mkdir(self, name: str) -> None:
        self.clock += 10
        model = self.model
        masks = model.beginning(name)
        number = errno.EEXIST if name in model.groups else errno.ENOSPC if len(model.groups) == model.limit or masks is None else 0
        if number or masks is None:
            before = self.everything()
            with pytest.raises(OSError) as raised:  # noqa: PT011
                self.sim.mkdir(name)
            assert raised.value.errno == number
            assert self.everything() == before
            return
        self.sim.mkdir(name)
        model.groups[name] = ModelGroup({schema: dict(masks) for schema in model.schemas})

    @rule(name=NAMES)
    def rmdir(self, name: str) -> None:
        if name in self.model.groups:
            self.sim.rmdir(name)
            self.model.groups[""].tasks |= self.model.groups.pop(name).tasks
        else:
            with pytest.raises(FileNotFoundError):
                self.sim.rmdir(name)

    @rule(name=PATHS, data=st.data())
    def write(self, name: str, data: st.DataObject) -> None:
        """Some domains of some schemas, most of them as they should be."""
        model = self.model
        if name not in model.groups:
            with pytest.raises(FileNotFoundError):
                self.sim.write(f"{name}/schemata", b"L3:0=1\n")
            return
        named = data.draw(st.lists(st.sampled_from(model.schemas), min_size=1, unique=True))
        low, high = data.draw(st.integers(0, self.model.scenario.ways)), data.draw(st.integers(0, self.model.scenario.ways + 1))
        runs = st.just((1 << max(low, high)) - (1 << min(low, high)))
        masks = st.dictionaries(st.sampled_from(sorted(model.domains) or [0]), runs | st.integers(0, 2 * model.every), min_size=1)
        new = {schema: data.draw(masks) for schema in named}
        text = "".join(f"{schema}:{';'.join(f'{domain}={mask:x}' for domain, mask in values.items())}\n" for schema, values in new.items())
        path = f"{name}/schemata".lstrip("/")
        if all(domain in model.domains and model.may_have(name, domain, mask) for values in new.values() for domain, mask in values.items()):
            self.sim.write(path, text.encode())
            for schema, values in new.items():
                model.groups[name].masks[schema] |= values
        else:
            self.fails(errno.EINVAL, "", path, text.encode())

    @rule(name=PATHS, exclusive=st.booleans())
    def set_mode(self, name: str, exclusive: bool) -> None:
        self.mode(name, exclusive=exclusive)

    def mode(self, name: str, *, exclusive: bool) -> None:
        model = self.model
        if name not in model.groups:
            return
        group = model.groups[name]
        path = f"{name}/mode".lstrip("/")
        clash = any(
            mask & (model.held(domain, but=name) | model.scenario.shareable)
            for masks in group.masks.values()
            for domain, mask in masks.items()
        )  # fmt: skip
        if exclusive and clash and not group.exclusive:
            self.fails(errno.EINVAL, "Schemata overlaps", path, b"exclusive\n")
        else:
            self.sim.write(path, b"exclusive\n" if exclusive else b"shareable\n")
            group.exclusive = exclusive

    @rule(name=NAMES, shared=st.integers(1, 6))
    def part(self, name: str, shared: int) -> None:
        """The root group keeps some ways, and another gets the rest alone: what chance would seldom come to."""
        model = self.model
        if name not in model.groups:
            return
        low = (1 << shared) - 1
        root, rest = (low, model.every & ~low) if low & model.scenario.shareable else (model.every & ~low, low)
        for group, mask in (("", root), (name, rest & ~model.scenario.shareable)):
            if all(model.may_have(group, domain, mask) for domain in model.domains):
                masks = {schema: dict.fromkeys(model.domains, mask) for schema in model.schemas}
                text = "".join(f"{schema}:{';'.join(f'{domain}={mask:x}' for domain in values)}\n" for schema, values in masks.items())
                self.sim.write(f"{group}/schemata".lstrip("/"), text.encode())
                model.groups[group].masks = masks
        self.mode(name, exclusive=True)

    @rule(name=PATHS, data=st.data())
    def move_task(self, name: str, data: st.DataObject) -> None:
        model = self.model
        if name not in model.groups:
            return
        task = data.draw(st.sampled_from(sorted(task for group in model.groups.values() for task in group.tasks)))
        self.sim.write(f"{name}/tasks".lstrip("/"), f"{task}\n".encode())
        for group in model.groups.values():
            group.tasks.discard(task)
        model.groups[name].tasks.add(task)

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from([group for group in self.model.groups.values() if group.tasks]))
        group.tasks.add(self.sim.spawn(data.draw(st.sampled_from(sorted(group.tasks)))))

    @rule(name=PATHS, number=st.integers(5000, 5010))
    def move_nobody(self, name: str, number: int) -> None:
        if name in self.model.groups:
            self.fails(errno.ESRCH, f"No task {number}\n", f"{name}/tasks".lstrip("/"), f"{number}\n".encode())

    @precondition(lambda self: len(self.model.domains) > 1)
    @rule(data=st.data())
    def unplug(self, data: st.DataObject) -> None:
        domain = data.draw(st.sampled_from(sorted(self.model.domains)))
        self.sim.offline(*next(cache.cpus for cache in self.model.scenario.caches if cache.id == domain))
        self.model.domains.remove(domain)
        for group in self.model.groups.values():
            for masks in group.masks.values():
                del masks[domain]

    @rule()
    def plug(self) -> None:
        """A domain comes back with everything for everyone, whatever their mode."""
        model = self.model
        for cache in model.scenario.caches:
            if cache.id not in model.domains:
                self.sim.bring_online(*cache.cpus)
                model.domains.add(cache.id)
                for group in model.groups.values():
                    for masks in group.masks.values():
                        masks[cache.id] = model.every

    @rule()
    def remount(self) -> None:
        self.sim.umount()
        assert self.sim.list("") == []
        self.sim.mount(self.model.scenario.options)
        model = self.model
        everyone = {task for group in model.groups.values() for task in group.tasks}
        model.groups = {"": ModelGroup(model.full(), tasks=everyone)}

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        for name, group in self.model.groups.items():
            assert schemata(self.sim, name) == group.masks
            assert self.sim.read(f"{name}/mode".lstrip("/")) == (b"exclusive\n" if group.exclusive else b"shareable\n")
            assert set(map(int, self.sim.read(f"{name}/tasks".lstrip("/")).split())) == group.tasks
        assert {name for name in self.sim.list("") if name.startswith("g")} == set(self.model.groups) - {""}

    @invariant()
    def masks_are_legal_and_classes_enough(self) -> None:
        assert len(self.model.groups) <= self.model.limit
        for name in self.model.groups:
            assert all(self.model.legal(mask) for masks in schemata(self.sim, name).values() for mask in masks.values())

    @invariant()
    def every_cpu_is_in_one_group(self) -> None:
        listed = [self.sim.read(f"{name}/cpus".lstrip("/")) for name in self.model.groups]
        masks = [int(text.replace(b",", b""), 16) for text in listed]
        assert sum(mask.bit_count() for mask in masks) == len(self.sim.online)
        assert sum(masks) == sum(1 << cpu for cpu in self.sim.online)


Resctrl.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestResctrl = Resctrl.TestCase
