"""The processes of a node: its mount namespace, its containerd and its kubelet."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.e2e.harness import settings
from tests.e2e.harness.enclosure import Enclosure
from tests.e2e.harness.images import write_image
from tests.e2e.harness.places import Places
from tests.e2e.harness.settings import Runtime
from tests.e2e.harness.waiting import WaitError, tail, wait_for

START_SECONDS = 60.0


def free_ports(amount: int) -> list[int]:
    """TCP ports on 127.0.0.1 that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(amount)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class Machine(Enclosure, Places):
    """One containerd and one kubelet in an enclosure.

    Inside its mount namespace every path is where a node has it (/var/lib/kubelet/device-plugins is fixed in the kubelet); from outside the same
    files are seen below the work folder, which is what the properties name.

    bin_dir: what tools/e2e/provision.py prints. kubelet_config: fields of KubeletConfiguration, kubelet_flags: more of its command line; a change
    counts from the next start_kubelet(). network: see Enclosure.
    """

    def __init__(
        self, bin_dir: Path, runtime: Runtime = Runtime.SYSTEM, kubelet_config: Mapping[str, object] | None = None, network: Path | None = None
    ) -> None:
        super().__init__(network)
        self.bin_dir = bin_dir
        self.runtime = runtime
        self.kubelet_config = dict(kubelet_config or {})
        self.kubelet_flags: Sequence[str] = ()
        self._ports = free_ports(3)
        self._containerd: subprocess.Popen[bytes] | None = None
        self._kubelet: subprocess.Popen[bytes] | None = None

    @property
    def binds(self) -> Mapping[str, str]:
        """See Enclosure."""
        return {"/var/lib/kubelet": "kubelet", "/var/log": "log", "/run": "run"}

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
        self.start_holder()
        self.start_containerd()
        write_image(self.bin_dir / "devprobe", self.work / "image.tar")
        self.ctr("images", "import", str(self.work / "image.tar"))
        self.start_kubelet()

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
        argv: list[str | Path] = [self.bin_dir / "kubelet", f"--config={config}", f"--hostname-override={self.name}", "-v=4", *self.kubelet_flags]
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


def _snapshotter(work: Path) -> str:
    """An overlay cannot lie on an overlay, which is what the root of a container is."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=True).stdout.strip()
    return "native" if kind in ("overlayfs", "UNKNOWN (0x794c7630)") else "overlayfs"
