"""The processes of a node: its mount namespace, its containerd and its kubelet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from tests.e2e.harness import holder, settings
from tests.e2e.harness.images import write_image
from tests.e2e.harness.places import Places
from tests.e2e.harness.settings import Runtime
from tests.e2e.harness.waiting import WaitError, tail, wait_for

START_SECONDS = 60.0
KEEP = "DEVICEPLUGIN_E2E_KEEP"  # set in the environment, it keeps the work folders

_numbers = count(1)


def free_ports(amount: int) -> list[int]:
    """TCP ports on 127.0.0.1 that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(amount)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class Machine(Places):
    """One containerd and one kubelet in a mount namespace of their own, with all they write below one work folder.

    Inside the namespace every path is where a node has it (/var/lib/kubelet/device-plugins is fixed in the kubelet); from outside the same
    files are seen below the work folder, which is what the properties name. stop() leaves no process, mount, control group or device
    file behind (only an empty /var/lib/kubelet, the mount point), and the same happens if this process is killed.

    bin_dir: what tools/e2e/provision.py prints. kubelet_config: fields of KubeletConfiguration; a change counts from the next start_kubelet().
    """

    def __init__(self, bin_dir: Path, runtime: Runtime = Runtime.SYSTEM, kubelet_config: Mapping[str, object] | None = None) -> None:
        self.bin_dir = bin_dir
        self.runtime = runtime
        self.kubelet_config = dict(kubelet_config or {})
        self.name = f"dpe2e-{os.getpid()}-{next(_numbers)}"
        # Not below a test's own folder: the path of a unix socket has to fit in 107 bytes.
        super().__init__(Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/tmp")))
        self._ports = free_ports(3)
        self._holder: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None
        self._kubelet: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []

    @property
    def namespace(self) -> Path:
        """The mount namespace, a file for nsenter. Raises RuntimeError if the node is not started."""
        if self._holder is None:
            raise RuntimeError(f"{self.name} is not started")
        return Path(f"/proc/{self._holder.pid}/ns/mnt")

    def run(
        self, argv: Sequence[str | Path], name: str = "run", env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a process inside the node's mount namespace and returns it; its pid is the process's own, so signals reach it.

        name: its output is appended to log(name). env: added to this process's environment. cwd: default is this process's.
        stop() ends it if the test has not. Raises OSError.
        """
        # nsenter goes to "/", hence env, which gets back. Both become the next program, so that no process stands between.
        inside = ["nsenter", f"--mount={self.namespace}", "--", "env", "-C", str(cwd or Path.cwd()), "--"]
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                [*inside, *map(str, argv)],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C on the terminal is for the tests, which then end it in order
            )
        self._others.append(process)
        return process

    def start(self) -> None:
        """Starts the node and returns once its kubelet takes registrations. Raises WaitError, OSError; nothing is left running then."""
        try:
            self._start()
        except BaseException:
            self.stop(keep=True)
            raise

    def _start(self) -> None:
        for folder in ("kubelet", "log", "logs", "podlogs", "manifests", "containerd", "run/containerd", "run/cdi", "run/lock"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)
        self.resolv_conf.write_text("nameserver 127.0.0.1\n")
        self._start_holder()
        self.start_containerd()
        write_image(self.bin_dir / "devprobe", self.work / "image.tar")
        self.ctr("images", "import", str(self.work / "image.tar"))
        self.start_kubelet()

    def _start_holder(self) -> None:
        binds = [("kubelet", "/var/lib/kubelet"), ("log", "/var/log"), ("run", "/run")]
        setup = {"cgroup": self.name, "binds": [(str(self.work / ours), theirs) for ours, theirs in binds], "made_files": str(self.made_files)}
        with self.log("holder").open("ab") as errors:
            self._holder = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", holder.__file__, json.dumps(setup)],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        if _pipe(self._holder.stdout).readline() != b"ready\n":
            raise OSError(f"the mount namespace of {self.name} could not be made:\n{tail(self.log('holder'))}")

    def start_containerd(self) -> None:
        """Starts containerd and returns once it answers. Raises WaitError."""
        config = self.work / "containerd.toml"
        config.write_text(settings.containerd_toml(self.runtime, self.work / "containerd", _snapshotter(self.work)))
        self._containerd = self.run([self._program("containerd"), "--config", config], "containerd", {"PATH": self._path()})
        wait_for(self._containerd_ready, START_SECONDS, "containerd to answer", (self.containerd_log,))

    def _containerd_ready(self) -> bool:
        self._check_alive(self._containerd, self.containerd_log)
        return subprocess.run([*self._ctr(), "version"], capture_output=True, check=False).returncode == 0

    def ctr(self, *arguments: str) -> str:
        """Runs containerd's own client and returns what it prints. Raises OSError with its message."""
        done = subprocess.run([*self._ctr(), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def start_kubelet(self) -> None:
        """Starts the kubelet and returns once it takes registrations and serves its status. Raises WaitError."""
        port, healthz_port, read_only_port = self._ports
        config = self.work / "kubelet.yaml"
        config.write_text(
            settings.kubelet_yaml(
                self,
                cgroup=self.name,
                port=port,
                healthz_port=healthz_port,
                read_only_port=read_only_port,
                extra=self.kubelet_config,
            )
        )
        argv: list[str | Path] = [self.bin_dir / "kubelet", f"--config={config}", f"--hostname-override={self.name}", "-v=4"]
        self._kubelet = self.run(argv, "kubelet", {"PATH": self._path()})
        wait_for(self._kubelet_ready, START_SECONDS, "the kubelet to be ready", (self.kubelet_log, self.containerd_log))

    def _kubelet_ready(self) -> bool:
        self._check_alive(self._kubelet, self.kubelet_log)
        return self.kubelet_socket_ready() and bool(self.get("pods"))

    def kubelet_socket_ready(self) -> bool:
        """Whether the kubelet accepts connections from device plugins. A kubelet that was killed leaves its socket file behind."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.kubelet_socket)) == 0

    def get(self, path: str) -> str:
        """Reads http://127.0.0.1/PATH from the kubelet: pods, metrics, healthz. Raises OSError."""
        with urlopen(f"http://127.0.0.1:{self._ports[2]}/{path}", timeout=5) as reply:
            return str(reply.read().decode())

    def kill_kubelet(self) -> None:
        """SIGKILL; returns when the process has ended. Containers keep running."""
        self._end(self._kubelet, signal.SIGKILL)
        self._kubelet = None

    def restart_kubelet(self) -> None:
        """kill_kubelet(), then start_kubelet()."""
        self.kill_kubelet()
        self.start_kubelet()

    def kill_containerd(self) -> None:
        """SIGKILL; returns when the process has ended. Containers keep running, the kubelet reports its runtime as down."""
        self._end(self._containerd, signal.SIGKILL)
        self._containerd = None

    def make_device(self, path: str | Path, major: int, minor: int) -> None:
        """Makes a character device file unless path exists; stop() removes it. The work folder is a good place. Raises OSError."""
        if not Path(path).exists():
            with self.made_files.open("a") as made:
                made.write(f"{path}\n")
            os.mknod(path, 0o600 | 0o020000, os.makedev(major, minor))

    def stop(self, keep: bool = False) -> None:
        """Ends all that belongs to the node and removes its work folder, unless keep or DEVICEPLUGIN_E2E_KEEP says to keep it.

        Harmless when the node is not running. Raises AssertionError naming what could not be ended or removed.
        """
        if self._holder is not None:
            # The holder would end these too, but not one that is only just on its way into the namespace.
            for process in self._others:
                process.kill()
                process.wait(10)
            self._others.clear()
            _pipe(self._holder.stdin).close()
            status = self._holder.wait(holder.KILL_SECONDS + 10)
            _pipe(self._holder.stdout).close()
            self._holder = None
            if status:
                raise AssertionError(f"{self.name} left something behind:\n{tail(self.log('holder'))}")
        if not keep and not os.environ.get(KEEP):
            shutil.rmtree(self.work, ignore_errors=True)

    def _end(self, process: subprocess.Popen[bytes] | None, signum: signal.Signals) -> None:
        if process is not None:
            process.send_signal(signum)
            process.wait(10)
            self._others.remove(process)

    def _check_alive(self, process: subprocess.Popen[bytes] | None, log: Path) -> None:
        status = process.poll() if process else None
        if status is not None:
            raise WaitError(f"{log.stem} ended with status {status} instead of starting\n--- end of {log}:\n{tail(log)}")

    def _ctr(self) -> list[str]:
        return [self._program("ctr"), "--address", str(self.containerd_socket), "--namespace", "k8s.io"]

    def _program(self, name: str) -> str:
        return str(self.bin_dir / name) if self.runtime is Runtime.BUILT else name

    def _path(self) -> str:
        # containerd looks its shim up on PATH: it has to be the one of the same version. Debian's runc is in an sbin.
        own = [str(self.bin_dir)] if self.runtime is Runtime.BUILT else []
        return ":".join([*own, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the process was started without this pipe"
    return stream


def _snapshotter(work: Path) -> str:
    """An overlay cannot lie on an overlay, which is what the root of a container is."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=True).stdout.strip()
    return "native" if kind in ("overlayfs", "UNKNOWN (0x794c7630)") else "overlayfs"
