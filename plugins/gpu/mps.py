# SPDX-License-Identifier: Apache-2.0
"""Sharing of GPUs with NVIDIA's Multi-Process Service: one control daemon for each resource, with an equal share of memory and threads per client.

Clients reach the daemon through a directory on the host. A daemon that answers there already is used as it is, whoever started it: it holds the work
of running containers. One that was started here ends with this process, and its clients with it, so on machines where the plugin may be replaced
while containers run, the daemon should run in a pod of its own on the same directory.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from deviceplugin import Edits, Host, Mount
from deviceplugin._native import nvml

CONTROL: Final = "nvidia-cuda-mps-control"
SMI: Final = "nvidia-smi"
CLIENT_ROOT: Final = "/mps"
"""Where clients have the directory."""

_MINIMUM = (3, 5)
_VOLTA_LIKE = (7, 5)
_MANY, _FEW = 48, 16
_QUERY = "get_default_active_thread_percentage"
_PAUSE = 0.05
_MEBIBYTE = 1 << 20


class MpsError(Exception):
    """The GPUs cannot be shared through MPS. The text says why and what to do."""


def check(gpus: Sequence[nvml.Gpu], replicas: int, root: str) -> None:
    """Raises MpsError where MPS could not work with these GPUs."""
    if not root:
        raise MpsError("MPS needs mpsRoot: a directory on the host that the daemon shares with its clients, as in /run/nvidia/mps")
    if replicas < 2:
        raise MpsError(f"MPS with {replicas} replicas shares nothing: set replicas to 2 or more, or leave MPS off")
    for gpu in gpus:
        name = f"GPU {gpu.index} ({gpu.name})"
        if gpu.mig_mode == 1 or gpu.migs:
            raise MpsError(f"{name} is in MIG mode, with which MPS does not work here: turn MIG off or share the resource without MPS")
        if gpu.compute_capability is None or gpu.memory is None:
            raise MpsError(f"{name} does not say its compute capability and memory, without which no limits can be set")
        capability = gpu.compute_capability
        if capability < _MINIMUM:
            raise MpsError(f"{name} has compute capability {_dotted(capability)}, MPS needs {_dotted(_MINIMUM)}")
        most = _MANY if capability >= _VOLTA_LIKE else _FEW
        if replicas > most:
            raise MpsError(f"{name} serves at most {most} clients, not {replicas}: lower replicas")


def client_edits(root: str, resource: str) -> Edits:
    """What a container needs to be a client of the resource's daemon, besides its GPU."""
    pipes = f"{CLIENT_ROOT}/{resource}/pipe"
    mounts = (Mount(f"{root}/{resource}/pipe", pipes, read_only=False), Mount(f"{root}/shm", "/dev/shm", read_only=False))  # noqa: S108
    return Edits(envs={"CUDA_MPS_PIPE_DIRECTORY": pipes}, mounts=mounts)


class Daemon:
    """The control daemon of one resource. Its methods are for one thread.

    ``root`` is the host's directory for all daemons, ``path`` where programs are looked for, ``timeout`` seconds for each call of one.
    """

    def __init__(
        self,
        resource: str,
        gpus: Sequence[nvml.Gpu],
        replicas: int,
        root: str,
        host: Host,
        *,
        path: str | None = None,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        check(gpus, replicas, root)
        self._resource = resource
        self._gpus = tuple(gpus)
        self._replicas = replicas
        self._directory = host.path(f"{root}/{resource}")
        self._path = path
        self._timeout = timeout
        self._clock, self._sleep = clock, sleep
        self._process: subprocess.Popen[bytes] | None = None
        self._log = logging.getLogger(__name__)

    @property
    def threads(self) -> int:
        """The share of a GPU's threads that each client may use, in percent."""
        return max(1, 100 // self._replicas)

    def memory(self, gpu: nvml.Gpu) -> int:
        """What each client may allocate on a GPU, in MiB."""
        assert gpu.memory is not None  # check() refused it
        return max(1, gpu.memory.total // self._replicas // _MEBIBYTE)

    def ensure(self) -> bool:
        """Sees to it that the daemon runs with our limits: called at the start and at each look at the hardware. True if it had to be started.

        Raises MpsError.
        """
        answer = self._answer()
        if answer is None:
            if self._process is not None and self._process.poll() is None:
                raise MpsError(f"MPS daemon of {self._resource} runs and does not answer; it is left alone, for the work of its clients ends with it")
            self._start()
            return True
        if answer != self.threads:
            self._limit()
        return False

    def serve(self, gpus: Sequence[nvml.Gpu]) -> None:
        """Says which GPUs there are now. The daemon goes on, for the clients on the others; one that has come gets its limits. Raises MpsError."""
        known = {gpu.uuid for gpu in self._gpus}
        self._gpus = tuple(gpus)
        if (come := [gpu for gpu in gpus if gpu.uuid not in known]) and self._answer() is not None:
            self._set_mode("EXCLUSIVE_PROCESS", come)
            self._limit()

    def stop(self) -> None:
        """Ends a daemon that was started here, and with it the work of its clients; one that was found is left alone. Idempotent."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        try:
            self._control("quit")
            process.wait(self._timeout)
        except (MpsError, subprocess.TimeoutExpired) as error:
            self._log.warning("MPS daemon of %s does not quit (%s): it is killed", self._resource, error)
            process.kill()
            process.wait()
        self._set_mode("DEFAULT", self._gpus)

    def _start(self) -> None:
        if self._process is not None:
            self._log.warning("MPS daemon of %s is gone (exit status %s): it is started again", self._resource, self._end())
        program = self._program(CONTROL)
        self._set_mode("EXCLUSIVE_PROCESS", self._gpus)  # or else programs that know nothing of MPS would take the GPU beside it
        try:
            self._launch(program)
            self._limit()
        except MpsError:
            self._end()
            self._set_mode("DEFAULT", self._gpus)  # nobody could use the GPU otherwise
            raise
        self._log.info("MPS daemon of %s runs: each of %d clients has %d %% of the threads", self._resource, self._replicas, self.threads)

    def _launch(self, program: str) -> None:
        for name in ("pipe", "log"):
            os.makedirs(f"{self._directory}/{name}", mode=0o755, exist_ok=True)
        try:
            # In the foreground it stays our child, and its end can be seen.
            self._process = subprocess.Popen(
                [program, "-f"], env=self._environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise MpsError(f"{program} cannot be started: {error.strerror}") from error
        self._wait_until_ready(self._process)

    def _end(self) -> int | None:
        """Makes sure that a daemon which no longer answers is gone. Its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.kill()
        return process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = self._clock() + self._timeout
        while self._answer() is None:
            if process.poll() is not None:
                raise MpsError(f"MPS daemon of {self._resource} ended at once with status {process.returncode}: see {self._directory}/log")
            if self._clock() > deadline:
                raise MpsError(f"MPS daemon of {self._resource} did not answer within {self._timeout:g} s: see {self._directory}/log")
            self._sleep(_PAUSE)

    def _limit(self) -> None:
        for gpu in self._gpus:
            self._control(f"set_default_device_pinned_mem_limit {gpu.index} {self.memory(gpu)}M")
        self._control(f"set_default_active_thread_percentage {self.threads}")
        if (answer := self._answer()) != self.threads:
            raise MpsError(f"MPS daemon of {self._resource} did not take the limit of {self.threads} % of the threads: it says {answer}")

    def _answer(self) -> float | None:
        """The daemon's limit of threads in percent; None where none answers."""
        try:
            return float(self._control(_QUERY))
        except (MpsError, ValueError):
            return None

    def _control(self, command: str) -> str:
        return self._run([self._program(CONTROL)], command + "\n")

    def _set_mode(self, mode: str, gpus: Iterable[nvml.Gpu]) -> None:
        for gpu in gpus:
            self._run([self._program(SMI), "-i", gpu.uuid, "-c", mode], "")

    def _run(self, command: list[str], text: str) -> str:
        try:
            done = subprocess.run(
                command, input=text.encode(), env=self._environment(), capture_output=True, timeout=self._timeout, check=False
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MpsError(f"{' '.join(command)} did not end within {self._timeout:g} s") from error
        except OSError as error:
            raise MpsError(f"{command[0]} cannot be started: {error.strerror}") from error
        output = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode:
            said = " ".join((done.stderr.decode("utf-8", "replace").strip() or output).split())
            raise MpsError(f"{' '.join((*command, text.strip()))} failed with status {done.returncode}: {said or 'it said nothing'}")
        return output

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self._path)
        if found is None:
            raise MpsError(f"{name} is not in this container's PATH: it comes with the driver, mount it or run under NVIDIA's runtime")
        return found

    def _environment(self) -> Mapping[str, str]:
        return {
            "PATH": self._path or os.environ.get("PATH", os.defpath),
            "CUDA_MPS_PIPE_DIRECTORY": f"{self._directory}/pipe",
            "CUDA_MPS_LOG_DIRECTORY": f"{self._directory}/log",
            # Limits are set by the number of the GPU. CUDA numbers by speed unless told otherwise, NVML by PCI address.
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }


class Daemons:
    """The control daemons of all resources that are shared through MPS. Its methods are for one thread.

    ``clients`` is how many containers share a GPU, by resource; ``root`` the host's directory.
    """

    def __init__(self, clients: Mapping[str, int], root: str, host: Host, *, path: str | None = None, timeout: float = 10.0) -> None:
        self._clients = dict(clients)
        self._root, self._host, self._path, self._timeout = root, host, path, timeout
        self._running: dict[str, tuple[frozenset[str], Daemon]] = {}

    def ensure(self, gpus: Mapping[str, Sequence[nvml.Gpu]]) -> dict[str, str]:
        """Sees to it that a daemon runs for each resource, given its GPUs. Answers with the resources that cannot be shared, and why."""
        failures = {}
        for resource, clients in self._clients.items():
            if not gpus.get(resource):
                self._end(resource)
                continue
            try:
                self._daemon(resource, gpus[resource], clients).ensure()
            except (MpsError, OSError) as error:
                failures[resource] = str(error)
        return failures

    def stop(self) -> None:
        """Ends those that were started here."""
        for resource in list(self._running):
            self._end(resource)

    def _daemon(self, resource: str, gpus: Sequence[nvml.Gpu], clients: int) -> Daemon:
        check(gpus, clients, self._root)
        uuids = frozenset(gpu.uuid for gpu in gpus)
        known = self._running.get(resource)
        if known is None:
            daemon = Daemon(resource, gpus, clients, self._root, self._host, path=self._path, timeout=self._timeout)
        else:
            daemon = known[1]
            if known[0] != uuids:
                daemon.serve(gpus)
        self._running[resource] = uuids, daemon
        return daemon

    def _end(self, resource: str) -> None:
        if known := self._running.pop(resource, None):
            known[1].stop()


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
