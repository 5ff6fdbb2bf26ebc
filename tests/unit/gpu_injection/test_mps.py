# SPDX-License-Identifier: Apache-2.0
"""MPS with a control daemon that only remembers what it was told."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from deviceplugin import Host
from deviceplugin._native.nvml import Gpu
from deviceplugin.plugins.gpu.mps import Daemon, Daemons, MpsError, check, client_edits
from deviceplugin.testing.nvml import Scenario, h100_mig, l40s_pcie, one_t4
from tests.unit.gpu_injection.conftest import Machine

RESOURCE = "nvidia.com/gpu"
ROOT = "/run/nvidia/mps"

CONTROL = """\
#!{python} -IS
import os, signal, socket, sys
place = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
note = open(os.path.join(os.environ["CUDA_MPS_LOG_DIRECTORY"], "said"), "a", buffering=1)
os.chdir(place)  # a socket's path is short
if "-f" in sys.argv:
    if os.path.exists("fail"):
        sys.exit(3)
    note.write("start " + os.environ["CUDA_DEVICE_ORDER"] + "\\n")
    open("pid", "w").write(str(os.getpid()))
    threads = "100.0"
    try:
        os.unlink("control")
    except FileNotFoundError:
        pass
    server = socket.socket(socket.AF_UNIX)
    if os.path.exists("mute"):
        signal.pause()
    server.bind("control")
    server.listen()
    while True:
        client, _ = server.accept()
        command = client.recv(4096).decode().split()
        if command[0] != "get_default_active_thread_percentage":
            note.write(" ".join(command) + "\\n")
        if command[0] == "set_default_active_thread_percentage" and not os.path.exists("stubborn"):
            threads = command[1] + ".0"
        try:
            client.sendall((threads if command[0].startswith("get") else "").encode() or b"\\n")
        except BrokenPipeError:  # whoever asked has given up
            pass
        client.close()
        if command[0] == "quit":
            if os.path.exists("deaf"):
                continue
            os.unlink("control")
            sys.exit(0)
client = socket.socket(socket.AF_UNIX)
try:
    client.connect("control")
except OSError:
    sys.stderr.write("Cannot find MPS control daemon process\\n")
    sys.exit(1)
client.sendall(sys.stdin.buffer.read())
sys.stdout.write(client.recv(4096).decode().strip())
"""

SMI = """\
#!{python} -IS
import os, sys
open(os.path.join(os.environ["CUDA_MPS_LOG_DIRECTORY"], "modes"), "a").write(" ".join(sys.argv[1:]) + "\\n")
"""


@dataclass
class Bench:
    programs: Path
    directory: Path
    host: Host

    def said(self) -> list[str]:
        return self._lines("said")

    def modes(self) -> list[str]:
        return self._lines("modes")

    def _lines(self, name: str) -> list[str]:
        path = self.directory / "log" / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def flag(self, name: str) -> None:
        (self.directory / "pipe" / name).touch()

    def pid(self) -> int:
        return int((self.directory / "pipe/pid").read_text(encoding="utf-8"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("nvidia-cuda-mps-control", CONTROL), ("nvidia-smi", SMI)):
        program = programs / name
        program.write_text(text.replace("{python}", sys.executable), encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    directory = tmp_path / "host" / ROOT.lstrip("/") / RESOURCE
    for name in ("pipe", "log"):
        (directory / name).mkdir(parents=True)
    return Bench(programs, directory, Host(root=str(tmp_path / "host")))


@pytest.fixture
def daemon(bench: Bench, gpus: list[Gpu]) -> Iterator[Daemon]:
    made = Daemon(RESOURCE, gpus, 4, ROOT, bench.host, path=str(bench.programs))
    yield made
    made.stop()


@pytest.fixture
def hasty(bench: Bench, gpus: list[Gpu]) -> Iterator[Daemon]:
    """A daemon whose programs have two seconds for an answer."""
    made = Daemon(RESOURCE, gpus, 4, ROOT, bench.host, path=str(bench.programs), timeout=2.0)
    yield made
    made.stop()


@pytest.fixture
def gpus(machine: Machine) -> list[Gpu]:
    return list(machine.look(l40s_pcie()).gpus[:2])


def test_it_is_started_with_equal_limits_for_each_client(bench: Bench, daemon: Daemon, gpus: list[Gpu]) -> None:
    assert daemon.ensure()
    assert not daemon.ensure()
    share = 46068 // 4
    assert bench.said() == [
        "start PCI_BUS_ID",
        f"set_default_device_pinned_mem_limit 0 {share}M",
        f"set_default_device_pinned_mem_limit 1 {share}M",
        "set_default_active_thread_percentage 25",
    ]
    assert bench.modes() == [f"-i {gpu.uuid} -c EXCLUSIVE_PROCESS" for gpu in gpus]


def test_stopping_ends_it_and_frees_the_gpus(bench: Bench, daemon: Daemon, gpus: list[Gpu]) -> None:
    daemon.ensure()
    daemon.stop()
    daemon.stop()
    assert bench.said()[-1] == "quit"
    assert bench.modes()[2:] == [f"-i {gpu.uuid} -c DEFAULT" for gpu in gpus]
    with pytest.raises(ProcessLookupError):
        os.kill(bench.pid(), 0)


def test_one_that_does_not_quit_is_killed(bench: Bench, hasty: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    bench.flag("deaf")
    hasty.ensure()
    hasty.stop()
    assert "killed" in caplog.text
    with pytest.raises(ProcessLookupError):
        os.kill(bench.pid(), 0)


def test_one_that_died_is_started_again_with_its_limits(bench: Bench, daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.ensure()
    before = len(bench.said())
    os.kill(bench.pid(), signal.SIGKILL)
    os.waitid(os.P_PID, bench.pid(), os.WEXITED | os.WNOWAIT)
    assert daemon.ensure()
    assert bench.said()[before:][0] == "start PCI_BUS_ID"
    assert bench.said()[-1] == "set_default_active_thread_percentage 25"
    assert "exit status -9" in caplog.text


def test_one_that_hangs_is_reported_and_left_to_its_clients(bench: Bench, hasty: Daemon) -> None:
    hasty.ensure()
    os.kill(bench.pid(), signal.SIGSTOP)
    try:
        with pytest.raises(MpsError, match="left alone"):
            hasty.ensure()
        os.kill(bench.pid(), 0)
    finally:
        os.kill(bench.pid(), signal.SIGCONT)
    assert not hasty.ensure()


def test_one_that_others_started_is_given_our_limits_and_left_running(bench: Bench, daemon: Daemon) -> None:
    place = {"CUDA_MPS_PIPE_DIRECTORY": f"{bench.directory}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{bench.directory}/log", "CUDA_DEVICE_ORDER": "x"}
    other = subprocess.Popen([str(bench.programs / "nvidia-cuda-mps-control"), "-f"], env=place)
    try:
        while not (bench.directory / "pipe/control").exists():
            assert other.poll() is None
        assert not daemon.ensure()
        assert bench.said()[-1] == "set_default_active_thread_percentage 25"
        daemon.stop()
        assert other.poll() is None
        assert "quit" not in bench.said()
    finally:
        other.kill()
        other.wait()


def test_one_that_ends_at_once_is_an_error_with_its_status(bench: Bench, daemon: Daemon) -> None:
    bench.flag("fail")
    with pytest.raises(MpsError, match="ended at once with status 3"):
        daemon.ensure()


def test_one_that_never_answers_is_an_error_and_does_not_stay(bench: Bench, gpus: list[Gpu]) -> None:
    bench.flag("mute")
    ticks = iter(range(100))
    daemon = Daemon(RESOURCE, gpus, 4, ROOT, bench.host, path=str(bench.programs), timeout=5.0, clock=lambda: next(ticks), sleep=lambda _: None)
    with pytest.raises(MpsError, match="did not answer within 5 s"):
        daemon.ensure()
    daemon.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(bench.pid(), 0)
    assert bench.modes()[-1].endswith("DEFAULT")


def test_one_that_does_not_take_the_limits_is_an_error(bench: Bench, daemon: Daemon) -> None:
    bench.flag("stubborn")
    with pytest.raises(MpsError, match="limit of 25 %"):
        daemon.ensure()
    assert bench.modes()[-1].endswith("DEFAULT")


@pytest.mark.parametrize("missing", ["nvidia-cuda-mps-control", "nvidia-smi"])
def test_a_program_that_is_missing_is_named(bench: Bench, daemon: Daemon, missing: str) -> None:
    (bench.programs / missing).unlink()
    with pytest.raises(MpsError, match=f"{missing} is not in this container's PATH"):
        daemon.ensure()


@pytest.mark.parametrize(
    ("scenario", "changes", "replicas", "words"),
    [
        (h100_mig(), {}, 2, "MIG mode"),
        (one_t4(), {}, 49, "at most 48 clients"),
        (one_t4(), {"compute_capability": (7, 0)}, 17, "at most 16 clients"),
        (one_t4(), {"compute_capability": (3, 0)}, 2, "needs 3.5"),
        (one_t4(), {"compute_capability": None}, 2, "does not say"),
        (one_t4(), {"memory": None}, 2, "does not say"),
        (one_t4(), {}, 1, "shares nothing"),
    ],
)
def test_what_cannot_work_is_refused(machine: Machine, scenario: Scenario, changes: dict[str, Any], replicas: int, words: str) -> None:
    gpu = replace(machine.look(scenario).gpus[0], **changes)
    with pytest.raises(MpsError) as caught:
        check([gpu], replicas, ROOT)
    assert words in str(caught.value)


def test_the_most_clients_are_allowed_and_a_root_is_needed(machine: Machine) -> None:
    gpu = machine.look(one_t4()).gpus[0]
    check([gpu], 48, ROOT)
    check([replace(gpu, compute_capability=(7, 0))], 16, ROOT)
    with pytest.raises(MpsError, match="mpsRoot"):
        check([gpu], 2, "")


def test_clients_see_the_directory_that_the_daemon_has(bench: Bench) -> None:
    pipes = client_edits(ROOT, RESOURCE).mounts[0]
    assert bench.host.path(pipes.path) == str(bench.directory / "pipe")


def test_each_resource_has_its_daemon_and_one_that_cannot_be_shared_hides_no_other(bench: Bench, machine: Machine, gpus: list[Gpu]) -> None:
    daemons = Daemons({RESOURCE: 4, "nvidia.com/mig": 2}, ROOT, bench.host, path=str(bench.programs))
    try:
        failures = daemons.ensure({RESOURCE: gpus, "nvidia.com/mig": machine.look(h100_mig()).gpus})
        assert list(failures) == ["nvidia.com/mig"]
        assert "MIG mode" in failures["nvidia.com/mig"]
        assert bench.said().count("start PCI_BUS_ID") == 1
        daemons.ensure({RESOURCE: gpus})
        assert bench.said().count("start PCI_BUS_ID") == 1
        before = len(bench.said())
        daemons.ensure({RESOURCE: gpus[:1]})  # a GPU has gone: the clients on the other one work on
        assert len(bench.said()) == before
        daemons.ensure({RESOURCE: gpus})
        assert bench.said()[before:] == bench.said()[1:4]
        assert bench.modes()[-1] == f"-i {gpus[1].uuid} -c EXCLUSIVE_PROCESS"
        assert bench.said().count("start PCI_BUS_ID") == 1
        daemons.ensure({})
        assert bench.said()[-1] == "quit"
    finally:
        daemons.stop()
