# SPDX-License-Identifier: Apache-2.0
"""The GPU plugin beside NVIDIA's own, both on the simulated NVML and asked by one client with the kubelet's gRPC library.

NVIDIA's plugin is built from its Go module. Its directory for sockets cannot be configured, so it runs in a mount namespace of its own, which takes
root; ours runs in one as well then, so that both pay for it. Without it, its columns are left out and a line says why.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.core import build_client, daemon, lifecycle, node, runtime, wait_for_socket, write
from bench.report import ms, table
from deviceplugin.testing import nvml as sim

MODULE, VERSION = "github.com/NVIDIA/k8s-device-plugin", "v0.19.0"
OURS, PEER = "deviceplugin", f"NVIDIA's {VERSION}"
LIVES = 7
ROUNDS = 7
LIMIT = 5
"""Seconds for one call, and for all calls of one server about one question. The peer's search among 16 GPUs may take hours."""

XID = 79

# $1 is the directory for sockets, $2 that of the simulated library, and the rest is the plugin.
_ENTER = """
mount -t tmpfs none /var/lib
mkdir -p /var/lib/kubelet/device-plugins
mount --bind "$1" /var/lib/kubelet/device-plugins
library=$2
shift 2
exec env LD_LIBRARY_PATH="$library" "$@"
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """NVIDIA's plugin, or why there is none."""

    program: str = ""
    missing: str = ""


def build_peer() -> Peer:
    """NVIDIA's plugin, built into build/ once."""
    out = Path(f"build/nvidia-device-plugin-{VERSION}").absolute()
    if os.geteuid() != 0:
        return Peer(missing="it needs root: the directory for its sockets cannot be configured, and takes a mount namespace")
    if out.exists():
        return Peer(str(out))
    with tempfile.TemporaryDirectory() as folder:
        download = ["go", "mod", "download", "-json", f"{MODULE}@{VERSION}"]
        got = subprocess.run(download, cwd=folder, check=False, capture_output=True, text=True)
        if got.returncode:
            told: dict[str, str] = json.loads(got.stdout or "{}")
            return Peer(missing=f"its module cannot be had: {told.get('Error') or got.stderr.strip()}")
        source = Path(folder, "source")
        shutil.copytree(json.loads(got.stdout)["Dir"], source, copy_function=shutil.copyfile)
        build = ["go", "build", "-mod=mod", "-o", str(out), "./cmd/nvidia-device-plugin"]  # it is made to be built from a vendor folder
        made = subprocess.run(build, cwd=source, check=False, env={**os.environ, "CGO_ENABLED": "1"}, capture_output=True, text=True)
        if made.returncode:
            return Peer(missing=f"it does not build: {made.stderr.strip()}")
    return Peer(str(out))


def argv(name: str, peer: Peer, root: str, device_files: bool = False) -> list[str]:
    """The command that runs a plugin on the machine in ``root``. A container gets an environment variable, the peer's default, or files too."""
    library = os.path.join(root, "nvml")
    if name == PEER:
        # It says a lot on stderr, whatever happens.
        plugin = ["sh", "-c", 'exec "$0" "$@" 2>build/bench-peer.log', peer.program, f"--pass-device-specs={str(device_files).lower()}"]
    else:
        injection = {"deviceListStrategy": ["envvar", *["device-specs"] * device_files], "devRoot": root}
        gpu = {"plugin": "gpu", "config": {"library": f"{library}/{sim.SONAME}", "injection": injection}}
        plugin = daemon(root, "--config", write(root, json.dumps({"version": "v1", "plugins": [gpu]})))
    if not peer.program:
        return plugin
    sockets = os.path.join(root, "var/lib/kubelet/device-plugins")
    return ["unshare", "-m", "--propagation", "private", "sh", "-ec", _ENTER, "sh", sockets, library, *plugin]


@contextlib.contextmanager
def machine(scenario: sim.Scenario) -> Iterator[str]:
    with node() as root:
        scenario.install(Path(root, "nvml"))
        sim.write_host(scenario, root)
        Path(root, "dev").mkdir()
        for name in ("nvidiactl", *(f"nvidia{gpu.minor}" for gpu in scenario.gpus)):
            Path(root, "dev", name).touch()
        yield root


def life(client: str, name: str, peer: Peer) -> dict[str, Any]:
    """One process: how long it takes to start and to tell of the XIDs of eight GPUs, one after the other, and the memory it then has."""
    told = sim.dgx_h100()
    with machine(sim.dgx_h100()) as root:
        files = []
        for gpu in range(len(told.gpus)):
            told.inject_xid(gpu, XID)
            files.append(file := Path(root, f"scenario-{gpu}"))
            file.write_text(told.text(), encoding="utf-8")
        change = ["-change", os.path.join(root, "nvml/scenario"), "-to", ",".join(map(str, files))]
        return lifecycle(client, change, argv(name, peer, root), root)


def lives(client: str, names: Sequence[str], peer: Peer) -> list[list[object]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(LIVES):
        for name in names:
            runs[name].append(life(client, name, peer))

    def row(what: str, read: Callable[[dict[str, Any]], Sequence[float]]) -> list[object]:
        return beside(what, {name: summary([value for run in runs[name] for value in read(run)]) for name in names}, names)

    events = LIVES * len(sim.dgx_h100().gpus)
    return [
        row(f"process start to Register, {LIVES} times, ms", lambda run: [run["start_to_register_ms"]]),
        row(f"process start to first list received, {LIVES} times, ms", lambda run: [run["start_to_list_ms"]]),
        row(f"XID to the kubelet's receipt of the list, {events} GPUs, ms", lambda run: run["changes_ms"]),
        row(f"RSS, {LIVES} processes, MiB", lambda run: [run["memory"]["VmRSS_MiB"]]),
    ]


def summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"n": len(ordered), "p50_ms": statistics.median(ordered), "p99_ms": ordered[int((len(ordered) - 1) * 0.99 + 0.5)]}


def beside(what: str, found: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[object]:
    """One row: each server's median and 99th percentile, then ours in terms of the peer's."""
    cells: list[object] = [what]
    for name in names:
        cut = found[name].get("cut_ms")
        cells += [f"> {cut / 1e3:g} s", ""] if cut else [ms(found[name]["p50_ms"]), ms(found[name]["p99_ms"])]
    if len(names) == 2:
        ours, theirs = (found[name].get("cut_ms") or found[name]["p50_ms"] for name in names)
        cells.append(f"{'< ' if found[names[1]].get('cut_ms') else ''}{ours / theirs:.2g}")
    return cells


def header(what: str, names: Sequence[str]) -> list[str]:
    titles = [what, *itertools.chain.from_iterable((f"{name}: p50", "p99") for name in names)]
    return [*titles, "ours / theirs"] if len(names) == 2 else titles


@contextlib.contextmanager
def serving(names: Sequence[str], peer: Peer, scenario: Callable[[], sim.Scenario], device_files: bool = False) -> Iterator[dict[str, str]]:
    """Plugins by name, each on a machine of its own and registered: their sockets."""
    with contextlib.ExitStack() as stack:
        sockets = {}
        for name in names:
            root = stack.enter_context(machine(scenario()))
            directory = os.path.join(root, "var/lib/kubelet/device-plugins")
            for command, socket in (
                ([sys.executable, "-m", "bench.registrar", directory], "kubelet.sock"),
                (argv(name, peer, root, device_files), "nvidia-gpu.sock" if name == PEER else "nvidia.com_gpu-*.sock"),
            ):
                process = subprocess.Popen(command)
                stack.callback(process.wait)
                stack.callback(process.terminate)
                sockets[name] = wait_for_socket(os.path.join(directory, socket))
        time.sleep(1)  # what a plugin does after its start is not what is measured
        yield sockets


def calls(client: str, sockets: Mapping[str, str], ids: Sequence[str], *arguments: str, times: int = ROUNDS) -> dict[str, dict[str, float]]:
    """The median of each figure over several rounds: the 99th percentile too, so that a round that the machine disturbed is but one."""
    pairs = [f"{name}={path}#{','.join(ids)}" for name, path in sockets.items()]
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(times):
        done = subprocess.run([client, "calls", *arguments, *pairs], check=True, stdout=subprocess.PIPE, text=True)
        rounds.append(json.loads(done.stdout))
    return {name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]} for name in sockets}


def allocate(client: str, names: Sequence[str], peer: Peer) -> list[list[object]]:
    rows = []
    for what, device_files in {"environment variable": False, "variable and device files": True}.items():
        with serving(names, peer, sim.dgx_h100, device_files) as sockets:
            for count in (1, 8):
                found = calls(client, sockets, [gpu.uuid for gpu in sim.dgx_h100().gpus[:count]], "-n", "200", "-rounds", "2")
                rows.append(beside(f"Allocate, {count} GPU{'s' * (count > 1)}, {what}, ms", found, names))
    return rows


def preferred(client: str, names: Sequence[str], peer: Peer) -> list[list[object]]:
    rows = []
    for what, scenario in EIGHT.items():
        ids = [gpu.uuid for gpu in scenario().gpus]
        with serving(names, peer, scenario) as sockets:
            for size in (1, 2, 4, 8):
                found = calls(client, sockets, ids, "-size", str(size), "-n", "100", "-rounds", "3", "-limit", f"{LIMIT}s")
                rows.append(beside(f"{what}, {size} of 8", found, names))
    return rows


def preferred_of_sixteen(client: str, names: Sequence[str], peer: Peer) -> list[list[object]]:
    rows = []
    for what, scenario in SIXTEEN.items():
        ids = [gpu.uuid for gpu in scenario().gpus]
        for size in (2, 3, 4, 8):
            limits = ["-size", str(size), "-limit", f"{LIMIT}s", "-budget", f"{LIMIT}s", "-n", "200", "-rounds", "2"]
            found: dict[str, dict[str, float]] = {}
            # One after the other: the peer computes on after its caller has given up.
            for name in names:
                with serving([name], peer, scenario) as sockets:
                    found |= calls(client, sockets, ids, *limits, times=1 if name == PEER else ROUNDS)
            rows.append([*beside(f"{what}, {size} of 16", found, names), *(int(found[name]["n"]) for name in names[1:])])
    return rows


def linked(pairs: Mapping[tuple[int, int], int]) -> sim.Scenario:
    """Sixteen GPUs with so many direct NVLinks between two."""
    plain = sim.dgx2_v100().gpus
    links: list[sim.Link] = []
    for (a, b), count in pairs.items():
        for _ in range(count):
            links += [sim.Link(gpu=x, link=sum(link.gpu == x for link in links), remote=plain[y].pci) for x, y in ((a, b), (b, a))]
    return sim.Scenario([replace(gpu, links=sum(link.gpu == n for link in links)) for n, gpu in enumerate(plain)], links=links)


def cube_meshes() -> sim.Scenario:
    """Two hybrid cube meshes side by side."""
    one = sim.dgx1_v100()
    index = {gpu.pci: n for n, gpu in enumerate(one.gpus)}
    pairs: dict[tuple[int, int], int] = {}
    for link in one.links:
        if (other := index[link.remote]) > link.gpu:
            for base in (0, 8):
                pair = (base + link.gpu, base + other)
                pairs[pair] = pairs.get(pair, 0) + 1
    return linked(pairs)


def fully_linked() -> sim.Scenario:
    return linked(dict.fromkeys(itertools.combinations(range(16), 2), 1))


EIGHT = {"V100, cube mesh": sim.dgx1_v100, "H100, NVSwitch": sim.dgx_h100}
SIXTEEN = {"V100, NVSwitch": sim.dgx2_v100, "a link for each pair": fully_linked, "two cube meshes": cube_meshes}


def report() -> str:
    client, peer = build_client(), build_peer()
    runtime()
    names = (OURS, PEER) if peer.program else (OURS,)
    tables = [
        table("GetPreferredAllocation among 8 free GPUs, ms", header("machine, size", names), preferred(client, names, peer)),
        table(
            "GetPreferredAllocation among 16 free GPUs, ms",
            [*header("machine, size", names), *("their calls" for _ in names[1:])],
            preferred_of_sixteen(client, names, peer),
        ),
        table("A node with 8 x H100", header("what", names), [*lives(client, names, peer), *allocate(client, names, peer)]),
    ]
    note = f"Calls: medians of {ROUNDS} rounds in turns; the peer among 16 GPUs has one. Of fewer than 100 samples, p99 is the slowest."
    tables.append(f"\n{note}")
    if peer.missing:
        tables.append(f"NVIDIA's plugin is not beside it: {peer.missing}.")
    return "\n".join(tables)


if __name__ == "__main__":
    print(report())
