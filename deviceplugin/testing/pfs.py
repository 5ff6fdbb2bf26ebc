# SPDX-License-Identifier: Apache-2.0
"""Parallel file systems on a simulated machine: mounts, clients, the programs that change them, containers, and a server's token buckets.

::

    host = SimulatedHost(root)
    pfs = SimulatedPfs(host)
    pfs.mount("lustre", "10.0.0.1@tcp:/scratch", "/mnt/scratch")
    plugin = Pfs(config, Host(root), pfs)  # in place of programs: mount, umount, lctl, lfs, mmgetstate, stat
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deviceplugin.plugins.pfs.commands import CommandFailed
from deviceplugin.testing.containers import ContainerConfig
from deviceplugin.testing.host import SimulatedHost

_NODE = "/proc/1"
_RULE = re.compile(r"start (?P<name>[A-Za-z0-9_]{1,15}) jobid=\{(?P<pattern>[^}]+)\} rate=(?P<rate>\d+)")


class SimulatedPfs:
    """The clients and mounts of a :class:`SimulatedHost`, which may come from a tree of data. Stands in for the plugin's commands."""

    def __init__(self, host: SimulatedHost) -> None:
        self.host = host
        self.commands: list[tuple[str, ...]] = []
        """The argument lists of everything that was run, but for statfs."""
        self.hung: set[str] = set()
        """Mount points that do not answer."""
        self.absent: set[str] = set()
        """Directories that are not there."""
        self.failing: dict[str, str] = {}
        """What a program complains of each time it is run, by its name."""
        self.mmgetstate = "active"
        self._numbers = itertools.count(1000)
        self._lock = threading.RLock()
        if not os.path.exists(host.path(f"{_NODE}/mountinfo")):
            host.write(f"{_NODE}/mountinfo", "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
        host.link(f"{_NODE}/ns/mnt", "mnt:[1]")

    # The node's mount table

    def mount(self, fstype: str, source: str, target: str, options: str = "", *, device: str = "", root: str = "/") -> str:
        """Mounts something, and makes what a client shows of it. Returns the file system's number."""
        number = next(self._numbers)
        device = device or f"0:{number}"
        with self._lock:
            known = self._lines()
            self.host.write(f"{_NODE}/mountinfo", "".join([*known, _line(number, device, root, target, fstype, source, options)]))
        if fstype == "lustre":
            self._lustre(source.partition(":/")[2].partition("/")[0], self.instance(device), known)
        if fstype == "beegfs":
            self._beegfs(f"{number:X}-1", dict(one.partition("=")[::2] for one in options.split(",")).get("cfgFile", ""))
        return device

    def unmount(self, target: str) -> None:
        """Takes the last mount at a target away. :raises LookupError: nothing is mounted there."""
        with self._lock:
            lines = self._lines()
            found = next((line for line in reversed(lines) if line.split(" ")[4] == _escaped(target)), None)
            if found is None:
                raise LookupError(f"{target} is not mounted")
            lines.remove(found)
            self.host.write(f"{_NODE}/mountinfo", "".join(lines))
        number, _, device = found.split(" ")[:3]
        if not any(line.split(" ")[2] == device for line in lines):
            self._forget(number, device)

    def mounted(self, below: str = "/") -> dict[str, str]:
        """The numbers of the file systems below a directory, by where they are mounted."""
        return {line.split(" ")[4]: line.split(" ")[2] for line in self._lines() if line.split(" ")[4].startswith(below)}

    # Lustre's client

    @staticmethod
    def instance(device: str) -> str:
        """What the names of a mount's connections end in."""
        return f"ffff8881{int(device.partition(':')[2]):08x}"

    def set_import(self, target: str, state: str) -> None:
        """Gives every connection to a target, ``OST0000``, another state: ``DISCONN``, ``IDLE``."""
        for kind in ("osc", "mdc"):
            for top in ("/sys/kernel/debug/lustre", "/proc/fs/lustre"):
                for name in self._names(f"{top}/{kind}"):
                    path = f"{top}/{kind}/{name}/import"
                    if f"-{target}-" in name:
                        self.host.write(path, re.sub(r"state: \S+", f"state: {state}", self.host.read(path)))

    def settings(self, device: str, key: str) -> set[str]:
        """The values of a setting of a mount's connections."""
        names = [name for name in self._names("/sys/fs/lustre/osc") if name.endswith(self.instance(device))]
        return {self.host.read(f"/sys/fs/lustre/osc/{name}/{key}").strip() for name in names}

    # Containers

    def start(self, pid: int, config: ContainerConfig, *, group: str = "", drop: Sequence[str] = ()) -> None:
        """A process of a container, with what the kubelet told the runtime. ``drop`` are variables that it was started without."""
        environ = {name: value for name, value in config.environ.items() if name not in drop}
        self.process(pid, environ, group=group or f"/kubepods/{pid}", mounts={one.container_path: one.host_path for one in config.mounts})

    def process(self, pid: int, environ: Mapping[str, str], *, group: str, mounts: Mapping[str, str]) -> None:
        """A process in a mount namespace of its own. ``mounts`` are the node's paths by where it sees them."""
        own = [_line(next(self._numbers), "0:900", "/", "/", "overlay", "overlay", "")]
        for inside, path in mounts.items():
            above = max((line for line in self._lines() if _covers(line.split(" ")[4], path)), key=lambda line: len(line.split(" ")[4]))
            fields = above.split(" ")
            below = path[len(fields[4].rstrip("/")) :]
            fields[3], fields[4] = (fields[3].rstrip("/") + below) or "/", inside
            own.append(" ".join(fields))
        self.host.write(f"/proc/{pid}/environ", "\0".join(f"{name}={value}" for name, value in {"PATH": "/bin", **environ}.items()) + "\0")
        self.host.write(f"/proc/{pid}/cgroup", f"0::{group}\n")
        self.host.write(f"/proc/{pid}/mountinfo", "".join(own))
        self.host.link(f"/proc/{pid}/ns/mnt", f"mnt:[{group}]")

    def end(self, pid: int) -> None:
        """The process has ended."""
        self.host.remove(f"/proc/{pid}")

    # What the plugin runs

    def run(self, argv: Sequence[str], limit: float, lock: str = "") -> str:
        """One program. :raises CommandFailed: as it would in the plugin."""
        self.commands.append(tuple(argv))
        name = os.path.basename(argv[0])
        if name in self.failing:
            raise CommandFailed(f"{name} failed: {self.failing[name]}")
        programs: Mapping[str, Callable[[Sequence[str]], str]] = {
            "mount": self._run_mount,
            "umount": self._run_umount,
            "lfs": self._run_lfs,
            "lctl": self._run_lctl,
            "mmgetstate": lambda _argv: f"mmgetstate::HEADER:version:reserved:reserved:nodeName:state:\nmmgetstate::0:1:::n1:{self.mmgetstate}:\n",
        }
        if name not in programs:
            raise CommandFailed(f"{argv[0]} cannot be run: No such file or directory")
        return programs[name](argv)

    def statfs(self, locks: Mapping[str, str], limit: float) -> dict[str, str]:
        """Whether each mount point answers, at once."""
        hangs = {path: f"hang: {path} does not answer within {limit:g} s (process 4711 was killed)" for path in self.hung}
        absent = {path: f"statfs: cannot read file system information for '{path}': No such file or directory" for path in self.absent}
        return {path: hangs.get(path) or absent.get(path, "") for path in locks}

    def _run_mount(self, argv: Sequence[str]) -> str:
        options = argv[argv.index("-o") + 1] if "-o" in argv else ""
        self.mount(argv[argv.index("-t") + 1], argv[-2], argv[-1], options)
        return ""

    def _run_umount(self, argv: Sequence[str]) -> str:
        try:
            self.unmount(argv[-1])
        except LookupError as error:
            raise CommandFailed(f"umount failed: umount: {argv[-1]}: not mounted.") from error
        return ""

    def _run_lfs(self, argv: Sequence[str]) -> str:
        for line in self._lines():
            fields = line.split(" ")
            if fields[4] == argv[-1] and " - lustre " in line:
                name = line.partition(" - lustre ")[2].split(" ")[0].partition(":/")[2].partition("/")[0]
                return f"{name}-{self.instance(fields[2])} {argv[-1]}\n"
        raise CommandFailed(f"lfs failed: lfs: cannot get name for '{argv[-1]}': Inappropriate ioctl for device")

    def _run_lctl(self, argv: Sequence[str]) -> str:
        for setting in argv[2:]:
            pattern, _, value = setting.partition("=")
            kind, names, key = re.fullmatch(r"(\w+)\.(.+)\.(\w+)", pattern).groups()  # type: ignore[union-attr]
            for name in fnmatch.filter(self._names(f"/sys/fs/lustre/{kind}"), names):
                self.host.write(f"/sys/fs/lustre/{kind}/{name}/{key}", f"{value}\n")
        return ""

    # What clients show

    def _lustre(self, name: str, instance: str, known: Sequence[str]) -> None:
        """A Lustre client: connections to as many targets as its other mounts have, or two."""
        for path, text in (("health_check", "healthy"), ("jobid_var", "KDP_PFS_JOBID"), ("jobid_name", "%e.%u"), ("version", "2.15.4")):
            if not os.path.exists(self.host.path(f"/sys/fs/lustre/{path}")):
                self.host.write(f"/sys/fs/lustre/{path}", f"{text}\n")
        self.host.write(f"/sys/fs/lustre/llite/{name}-{instance}/uuid", f"{instance}\n")
        targets = {one.split("-")[1] for one in self._names("/sys/fs/lustre/osc") if one.startswith(f"{name}-")} or {"OST0000", "OST0001"}
        for target in sorted(targets):
            one = f"{name}-{target}-osc-{instance}"
            for key, value in (("max_rpcs_in_flight", "8"), ("max_dirty_mb", "32"), ("active", "1"), ("ost_conn_uuid", "10.0.0.2@tcp")):
                self.host.write(f"/sys/fs/lustre/osc/{one}/{key}", f"{value}\n")
            text = f"import:\n    name: {one}\n    target: {name}-{target}_UUID\n    state: FULL\n    connect_flags: [ write_grant ]\n"
            self.host.write(f"/sys/kernel/debug/lustre/osc/{one}/import", text)

    def _beegfs(self, client: str, cfg_file: str) -> None:
        limit = "12"
        if os.path.exists(self.host.path(cfg_file)) and cfg_file:
            found = re.findall(r"^connMaxInternodeNum\s*=\s*(\d+)", self.host.read(cfg_file), re.MULTILINE)
            limit = found[-1] if found else limit
        self.host.write(f"/proc/fs/beegfs/{client}/config", f"cfgFile = {cfg_file}\nlogLevel = 3\nconnMaxInternodeNum = {limit}\n")
        self.host.write(f"/proc/fs/beegfs/{client}/storage_target_state", "[Target ID: 101] @ storage01 [ID: 1]: Online / Good \n")
        self.host.write(f"/proc/fs/beegfs/{client}/meta_target_state", "[Target ID: 1] @ meta01 [ID: 1]: Online / Good \n")

    def _forget(self, number: str, device: str) -> None:
        """A file system's last mount is gone, and its client with it."""
        for path, one in (
            *((f"{top}/{kind}", self.instance(device)) for top in ("/sys/fs/lustre", "/sys/kernel/debug/lustre") for kind in ("llite", "osc", "mdc")),
            ("/proc/fs/beegfs", f"{int(number):X}-1"),
        ):
            for name in self._names(path):
                if name.endswith(one):
                    self.host.remove(f"{path}/{name}")

    def _lines(self) -> list[str]:
        with self._lock:
            return re.findall(r"[^\n]*\n", self.host.read(f"{_NODE}/mountinfo"))

    def _names(self, path: str) -> list[str]:
        at = self.host.path(path)
        return sorted(os.listdir(at)) if os.path.isdir(at) else []


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    pattern: str
    rate: int


class TokenBuckets:
    """Lustre's TBF policy on one OSS, on a clock of its own: a bucket for each JobID on each CPT, which the newest rule that matches gives its rate.

    As nrs_tbf.c has it: the key of a bucket is the JobID, a bucket holds ``depth`` tokens at most, and an RPC takes one.
    """

    def __init__(self, cpts: int = 1, depth: int = 3) -> None:
        self.cpts = cpts
        self._depth = depth
        self._rules: list[Rule] = []
        self._buckets: dict[tuple[int, str], tuple[float, float]] = {}

    def start(self, rule: str) -> None:
        """Takes a rule as ``nrs_tbf_rule`` does. :raises ValueError: it is none, or its name is taken."""
        found = _RULE.fullmatch(rule)
        if found is None or not 1 <= int(found["rate"]) <= 999_999 or any(one.name == found["name"] for one in self._rules):
            raise ValueError(f"lctl: error: set_param: setting nrs_tbf_rule={rule}: Invalid argument")
        self._rules.insert(0, Rule(found["name"], found["pattern"], int(found["rate"])))

    def rule_of(self, jobid: str) -> Rule | None:
        """The rule that counts for a JobID; None for one that no rule matches."""
        return next((one for one in self._rules if fnmatch.fnmatchcase(jobid, one.pattern)), None)

    def take(self, cpt: int, jobid: str, now: float) -> bool:
        """An RPC arrives; whether it is served now."""
        rule = self.rule_of(jobid)
        if rule is None:
            return True
        tokens, at = self._buckets.get((cpt, jobid), (float(self._depth), now))
        tokens = min(float(self._depth), tokens + (now - at) * rule.rate)
        served = tokens >= 1 - 1e-9
        self._buckets[cpt, jobid] = (tokens - int(served), now)
        return served

    def serve(self, jobids: Sequence[str], seconds: float, tries: int = 1000) -> dict[str, int]:
        """RPCs that each of these jobs gets within so many seconds, all at once, when each always has one waiting for every CPT.

        It tries ``tries`` times a second: no job can get more than that from a CPT.
        """
        served = dict.fromkeys(jobids, 0)
        for step in range(int(seconds * tries)):
            for jobid in jobids:
                for cpt in range(self.cpts):
                    served[jobid] += self.take(cpt, jobid, step / tries)
        return served


def _line(number: int, device: str, root: str, target: str, fstype: str, source: str, options: str) -> str:
    shared = f"rw,{options}" if options else "rw"
    return f"{number} 25 {device} {_escaped(root)} {_escaped(target)} rw,relatime shared:{number} - {fstype} {_escaped(source)} {shared}\n"


def _escaped(text: str) -> str:
    for one in "\\ \t\n":
        text = text.replace(one, f"\\{ord(one):03o}")
    return text


def _covers(target: str, path: str) -> bool:
    return target == "/" or path == target or path.startswith(f"{target}/")
