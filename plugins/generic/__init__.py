# SPDX-License-Identifier: Apache-2.0
"""Device files with no code, from configuration: serial ports, cameras, /dev/fuse, USB sticks. See docs/generic.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct, field

from deviceplugin import Device, Host, Plugin, Skipped, sysfs
from deviceplugin.events import Events
from deviceplugin.plugins.generic import health, identity
from deviceplugin.plugins.generic.config import DeviceSpec, Entry, GenericConfig, Group, Path, fill
from deviceplugin.plugins.generic.matching import Finder, Match
from deviceplugin.plugins.generic.pairing import Column, pair

_USB = "/dev/bus/usb"

__all__ = ["Generic", "GenericConfig"]


class Generic(Plugin):
    """Device files from configuration. One instance serves every resource that the configuration names."""

    Config = GenericConfig
    config: GenericConfig

    def __init__(self, config: GenericConfig | None = None, host: Host | None = None) -> None:
        super().__init__(config or GenericConfig(), host)

    def discover(self) -> Iterator[Device | Skipped]:
        """The devices of every group. What is not there is told as Skipped, with the reason, and is no error."""
        domain = self.config.domain
        pools = {f"{domain}/{spec.name}": "that of a pool" for spec in self.config.devices if spec.naming == "pooled"}
        look = _Look(domain, Finder(self.host), resources=pools)
        for spec in self.config.devices:
            for number, group in enumerate(spec.groups, 1):
                yield from look.group(spec, number, group)
        yield from look.finder.skipped

    def watch(self) -> Iterator[object]:
        """Each time something comes, goes or changes its mode where a path may match, or a USB device does."""
        groups = [group for spec in self.config.devices for group in spec.groups]
        paths = [path.watched for group in groups for path in group.paths]
        usb = any(group.usb for group in groups)
        if usb:  # for where uevents cannot be had; a bus that comes later is seen in the directory above
            paths += [_USB, *(f"{_USB}/{bus}" for bus in sysfs.entries(self.host, _USB))]
        return iter(Events(self.host, paths=paths, subsystems=["usb"] if usb else []))


class _Look(Struct):
    """One discovery: what was matched, and which device has which file."""

    domain: str
    finder: Finder
    owners: dict[str, tuple[str, Entry]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    resources: dict[str, str] = field(default_factory=dict)

    def group(self, spec: DeviceSpec, number: int, group: Group) -> Iterator[Device | Skipped]:
        entries = group.entries
        columns = [self.finder.find(entry, group.identity) for entry in entries]
        what = f"{self.domain}/{spec.name}, group {number}"
        missing = [entry for entry, matches in zip(entries, columns, strict=True) if not matches and not entry.optional]
        for entry in missing or (entries if not any(columns) else ()):
            yield Skipped(what, _nothing(entry))
        rows = pair([Column(len(matches), entry.limit, entry.optional) for entry, matches in zip(entries, columns, strict=True)])
        for matches in columns:
            for match in matches[len(rows) :]:
                yield Skipped(match.path, f"is left over: {what} has no partner for it")
        for row in rows:
            matches = [matches[i] for matches, i in zip(columns, row, strict=True) if i is not None]
            yield from self._devices(spec, what, group, matches)

    def _devices(self, spec: DeviceSpec, what: str, group: Group, matches: Sequence[Match]) -> Iterator[Device | Skipped]:
        device_id = identity.slug(spec.name, _name(group, matches))
        first = next((match for match in matches if match.nodes), matches[0])
        values = {
            "id": device_id,
            "name": spec.name,
            "path": first.path,
            "containerPath": first.container_path,
            "basename": first.path.rpartition("/")[2],
            "serial": first.serial,
        }
        resource, reason = self._resource(spec, values)
        reason = reason or self._claim(device_id, what, matches)
        if reason:
            yield Skipped(device_id, reason)
            return
        state, cause = health.worst([health.judge(self.finder.host, match) for match in matches])
        facts = {"path": first.path, "serial": first.serial}
        for slot in range(group.count):
            # The first slot has the plain id, so that raising the count later leaves it what it was.
            values["id"] = device_id if slot == 0 else f"{device_id}@{slot}"
            yield Device(
                values["id"],
                unit=device_id,
                resource=resource,
                health=state,
                cause=cause,
                numa_nodes=sorted({match.numa for match in matches if match.numa is not None}),
                nodes=[node for match in matches for node in match.nodes],
                mounts=[mount for match in matches for mount in match.mounts],
                envs={key: fill(text, values) for key, text in group.envs.items()},
                annotations={key: fill(text, values) for key, text in group.annotations.items()},
                cdi=[fill(text, values) for text in group.cdi],
                attributes={key: value for key, value in facts.items() if 0 < len(value) <= 64},
            )

    def _resource(self, spec: DeviceSpec, values: dict[str, str]) -> tuple[str, str]:
        """The name of the resource, and why the device cannot have it."""
        if spec.naming == "pooled":
            return f"{self.domain}/{spec.name}", ""
        name = re.sub("[^-A-Za-z0-9_.]+", "-", fill(spec.resource_name or "{id}", values)).strip("-_.")
        resource = f"{self.domain}/{name}"
        if not 1 <= len(name) <= 63:
            return (
                resource,
                f"the name of its resource, {name!r}, has {len(name)} characters, 1 to 63 are allowed: give {spec.name} another resourceName",
            )
        mine = f"that of {values['id']}"
        other = self.resources.setdefault(resource, mine)
        if other != mine:
            return resource, f"would be the resource {resource}, which is {other}: put {{id}} or another thing that differs into resourceName"
        return resource, ""

    def _claim(self, device_id: str, what: str, matches: Sequence[Match]) -> str:
        """Takes the files for a device. Why not, if another has one of them: what two containers hold under two names, the kubelet gives twice."""
        if device_id in self.ids:
            return f"has the id of another device, in {self.ids[device_id]}: its hardware cannot be told apart; identity: path uses the paths"
        place = f"device {device_id} of {what}"
        taken: dict[str, tuple[str, Entry]] = {}
        for match in matches:
            for file in match.files:
                other, owner = self.owners.get(file) or taken.get(file) or (place, match.entry)
                if owner is not match.entry and not (owner.shared and match.entry.shared):
                    return (
                        f"{file} is also in {other}, and a device file can be in one device only: leave it out of {other} or of {what}, "
                        "or say shared: true in both"
                    )
                taken[file] = (place, match.entry)
        self.ids[device_id] = what
        for file, claim in taken.items():
            self.owners.setdefault(file, claim)
        return ""


def _name(group: Group, matches: Sequence[Match]) -> str:
    """The identity of a device with several members.

    One member that is in no other device gives its own, so that what is plugged in beside it does not change the id.
    """
    entries = group.entries
    own = [entry for entry in entries if (not entry.optional or len(entries) == 1) and entry.limit == 1]
    own.sort(key=lambda entry: isinstance(entry, Path) and entry.type == "Mount")
    for entry in own:
        for match in matches:
            if match.entry is entry:
                return match.identity
    if all(isinstance(entry, Path) and entry.literal and entry.optional for entry in entries):
        return "any-" + identity.of_path(entries[0].text)
    return "-".join(match.identity for match in matches)


def _nothing(entry: Entry) -> str:
    return f"no file matches {entry.text}" if isinstance(entry, Path) else f"there is no {entry.text}"
