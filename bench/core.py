# SPDX-License-Identifier: Apache-2.0
"""The framework against the kubelet's own gRPC library: start, restart, Allocate, many replicas, memory."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.report import ms, table

RESTARTS = 100

PLUGINS = "build/bench-plugins"
"""Where the daemon finds the plugins that are measured, and nothing else of what is here."""

FLIPPING = "version: v1\nplugins:\n  - plugin: bench.plugins:Flip\n    health:\n      flaps: 1000000\n"
"""A device that may flap as it likes: damping would hold it back."""

REPLICAS = "resources:\n  example.com/flip:\n    replicas: 10000\n"


def build_client() -> str:
    """The Go client, built into build/. Raises SystemExit where there is no Go."""
    here = os.path.join(os.path.dirname(__file__), "client")
    out = os.path.abspath("build/bench-client")
    if shutil.which("go") is None:
        sys.exit("bench: Go is missing: the client is the kubelet's own gRPC library")
    subprocess.run(["go", "build", "-o", out, "."], cwd=here, check=True)
    return out


@contextlib.contextmanager
def node() -> Iterator[str]:
    """A root directory for one run, on a short path: a socket's may have 107 characters."""
    root = tempfile.mkdtemp(prefix="dp-bench-")
    os.makedirs(os.path.join(root, "var/lib/kubelet/device-plugins"))
    os.makedirs(os.path.join(root, "flip"))
    open(os.path.join(root, "flip/there"), "w").close()
    try:
        yield root
    finally:
        shutil.rmtree(root)


def write(root: str, config: str) -> str:
    path = os.path.join(root, "config.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(config)
    return path


def daemon(root: str, *arguments: str) -> list[str]:
    """The daemon that :func:`runtime` installed. -P: not of the files here, which have no byte code where Python is told to write none."""
    python = ["env", f"PYTHONPATH={os.path.abspath(PLUGINS)}", os.path.abspath("build/venv/bin/python"), "-P"]
    return [*python, "-m", "deviceplugin", "run", "--root", root, "--listen", "", "--log-level", "error", *arguments]


def runtime() -> str:
    """A Python that has the package as a user installs it. The development tools would add 40 ms to every start, and memory, by what they bring."""
    venv = os.path.abspath("build/venv")
    python = os.path.join(venv, "bin/python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [python, "-m", "pip", "install", "-q", "-q", "--disable-pip-version-check", "--constraint", "constraints.txt", "."]
    subprocess.run(pip, check=True)
    os.makedirs(PLUGINS, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(os.path.dirname(os.path.abspath(__file__)), os.path.join(PLUGINS, "bench"))
    shutil.rmtree("deviceplugin.egg-info", ignore_errors=True)  # it would hide the installed entry points from whoever runs here
    return python


def lifecycle(client: str, arguments: Sequence[str], plugin: Sequence[str], root: str) -> dict[str, Any]:
    directory = os.path.join(root, "var/lib/kubelet/device-plugins")
    done = subprocess.run([client, "lifecycle", "-dir", directory, *arguments, "--", *plugin], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def starts(client: str) -> list[list[object]]:
    """Cold start to Register, the median of several; then restarts of the kubelet around one process."""
    fuse = ["--plugin", "bench.plugins:Fuse"]
    runs = []
    for _ in range(7):
        with node() as root:
            runs.append(lifecycle(client, [], daemon(root, *fuse), root))
    to_register = sorted(run["start_to_register_ms"] for run in runs)
    with node() as root:
        restart = lifecycle(client, ["-restarts", str(RESTARTS)], daemon(root, *fuse), root)
    with node() as root:
        config = write(root, FLIPPING)
        flips = lifecycle(client, ["-flip", os.path.join(root, "flip/there"), "-flips", "50"], daemon(root, "--config", config), root)
    memory = generic_memory(client)
    return [
        ["process start to Register, median of 7", ms(to_register[3]), "", ms(to_register[-1])],
        [f"kubelet.sock appears to Register, {RESTARTS} restarts", *three(restart["restart_to_register"])],
        [f"kubelet.sock appears to full list received, {RESTARTS} restarts", *three(restart["restart_to_list"])],
        ["device event to the kubelet's receipt of the list, 50 times", *three(flips["flip"])],
        ["RSS with the generic plugin, MiB", ms(memory["VmRSS_MiB"]), "", ms(memory["VmHWM_MiB"])],
    ]


def generic_memory(client: str) -> dict[str, float]:
    with node() as root:
        os.makedirs(os.path.join(root, "dev"))
        open(os.path.join(root, "dev/fuse"), "w").close()
        config = write(
            root,
            "version: v1\nplugins:\n  - plugin: generic\n    config:\n      domain: example.com\n      devices:\n"
            "        - name: fuse\n          groups:\n            - paths:\n                - path: /dev/fuse\n",
        )
        memory: dict[str, float] = lifecycle(client, [], daemon(root, "--config", config), root)["memory"]
        return memory


def replicas(client: str) -> list[list[object]]:
    """10,000 replicas of one device."""
    with node() as root:
        config = write(root, FLIPPING + REPLICAS)
        run = lifecycle(
            client, ["-flip", os.path.join(root, "flip/there"), "-flips", "100", "-restarts", "20"], daemon(root, "--config", config), root
        )

    def first_list(text: str) -> float:
        with node() as root:
            return float(lifecycle(client, [], daemon(root, "--config", write(root, text)), root)["start_to_list_ms"])

    alone, many = [], []
    for _ in range(7):
        alone.append(first_list(FLIPPING))
        many.append(first_list(FLIPPING + REPLICAS))
    return [
        ["process start to first list received, median of 7", ms(sorted(many)[3]), "", ms(max(many))],
        ["of that, more than with one device", ms(sorted(many)[3] - sorted(alone)[3]), "", ""],
        ["health flip to the kubelet's receipt of the list", *three(run["flip"])],
        ["kubelet.sock appears to full list received", *three(run["restart_to_list"])],
        ["RSS, MiB", ms(run["memory"]["VmRSS_MiB"]), "", ms(run["memory"]["VmHWM_MiB"])],
    ]


def three(summary: dict[str, float]) -> list[object]:
    return [ms(summary["p50_ms"]), ms(summary["p99_ms"]), ms(summary["max_ms"])]


def wait_for_socket(pattern: str) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for path in glob.glob(pattern):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(path)
                return path
        time.sleep(0.02)
    raise SystemExit(f"bench: nothing listens at {pattern}")


def allocate(client: str) -> list[list[object]]:
    """Allocate on ours, on a bare grpcio server and on a bare grpc-go server, in alternating rounds from one client."""
    with node() as root, contextlib.ExitStack() as stack:
        directory = os.path.join(root, "var/lib/kubelet/device-plugins")

        def run(argv: list[str]) -> None:
            process = subprocess.Popen(argv)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        kubelet = subprocess.Popen([sys.executable, "-m", "bench.registrar", directory])
        stack.callback(kubelet.wait)
        stack.callback(kubelet.terminate)
        wait_for_socket(os.path.join(directory, "kubelet.sock"))
        run(daemon(root, "--plugin", "bench.plugins:Fuse"))
        run([os.path.abspath("build/venv/bin/python"), "-m", "bench.echo", os.path.join(root, "python.sock")])
        run([client, "echo", "-socket", os.path.join(root, "go.sock")])
        servers = {
            "deviceplugin": wait_for_socket(os.path.join(directory, "example.com_fuse-*.sock")),
            "bare grpcio": wait_for_socket(os.path.join(root, "python.sock")),
            "bare grpc-go": wait_for_socket(os.path.join(root, "go.sock")),
        }
        rows: list[list[object]] = []
        for gap in ("0", "5ms"):
            n = "500" if gap == "0" else "100"
            pairs = [f"{name}={path}#fuse" for name, path in servers.items()]
            done = subprocess.run([client, "calls", "-n", n, "-rounds", "6", "-gap", gap, *pairs], check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            base = found["bare grpcio"]["p50_ms"]
            how = "back to back" if gap == "0" else f"every {gap}"
            rows += [[f"{name}, {how}", *three(found[name]), f"{found[name]['p50_ms'] / base:.2f}"] for name in servers]
    return rows


def report() -> str:
    client = build_client()
    runtime()
    return "\n".join(
        [
            table("Start, restart, change", ["what", "p50 ms", "p99 ms", "max ms"], starts(client)),
            table("10,000 replicas of one device", ["what", "p50 ms", "p99 ms", "max ms"], replicas(client)),
            table("Allocate, one device, grpc-go client", ["server", "p50 ms", "p99 ms", "max ms", "p50 / bare grpcio"], allocate(client)),
        ]
    )
