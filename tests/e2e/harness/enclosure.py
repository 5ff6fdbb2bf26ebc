# SPDX-License-Identifier: Apache-2.0
"""A work folder, a mount namespace and the processes in it, which go together: nothing of them outlives the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import IO

from tests.e2e.harness import holder
from tests.e2e.harness.places import WorkFolder
from tests.e2e.harness.waiting import tail

KEEP = "DEVICEPLUGIN_E2E_KEEP"  # set in the environment, it keeps the work folders

_numbers = count(1)


class Enclosure(WorkFolder):
    """Processes in a mount namespace of their own, with all they write below one work folder.

    stop() leaves no process, mount, control group or device file behind (only empty mount points such as /var/lib/kubelet), and the same happens
    if this process is killed.

    network: the network namespace that its processes join, a file for nsenter; by default this process's.
    new_network: it gets a network namespace of its own instead, which has a loopback interface and nothing else: no packet leaves it.
    """

    def __init__(self, network: Path | None = None, new_network: bool = False) -> None:
        self.name = f"dpe2e-{os.getpid()}-{next(_numbers)}"
        # Not below a test's own folder: the path of a unix socket has to fit in 107 bytes.
        super().__init__(Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/tmp")))
        self._network = network
        self._new_network = new_network
        self._holder: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []

    @property
    def namespace(self) -> Path:
        """The mount namespace, a file for nsenter. Raises RuntimeError if it is not started."""
        return self._namespaces / "mnt"

    @property
    def network(self) -> Path:
        """The network namespace, a file for nsenter. Raises RuntimeError if it is not started."""
        return self._network or self._namespaces / "net"

    @property
    def _namespaces(self) -> Path:
        if self._holder is None:
            raise RuntimeError(f"{self.name} is not started")
        return Path(f"/proc/{self._holder.pid}/ns")

    @property
    def binds(self) -> Mapping[str, str]:
        """What its processes see in the place of this machine's: folders of the work folder by the path that they stand for."""
        return {}

    def run(
        self, argv: Sequence[str | Path], name: str = "run", env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a process inside the namespaces and returns it; its pid is the process's own, so signals reach it.

        name: its output is appended to log(name). env: added to this process's environment. cwd: default is this process's.
        stop() ends it if the test has not. Raises OSError.
        """
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                self.inside(argv, cwd),
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C on the terminal is for the tests, which then end it in order
            )
        self._others.append(process)
        return process

    def inside(self, argv: Sequence[str | Path], cwd: str | Path | None = None) -> list[str]:
        """The command line that runs argv inside the namespaces."""
        # nsenter goes to "/", hence env, which gets back. Both become the next program, so that no process stands between.
        return ["nsenter", f"--mount={self.namespace}", f"--net={self.network}", "--", "env", "-C", str(cwd or Path.cwd()), "--", *map(str, argv)]

    def start_holder(self) -> None:
        """Makes the namespaces and the control groups. Raises OSError."""
        self.log("holder").parent.mkdir(exist_ok=True)
        for ours in self.binds.values():
            (self.work / ours).mkdir(parents=True, exist_ok=True)
        binds = [(str(self.work / ours), theirs) for theirs, ours in self.binds.items()]
        setup = {"cgroup": self.name, "binds": binds, "made_files": str(self.made_files)}
        unshare = ["unshare", "--mount", "--propagation", "private", *(["--net"] if self._new_network else [])]
        with self.log("holder").open("ab") as errors:
            self._holder = subprocess.Popen(
                [*unshare, sys.executable, "-I", holder.__file__, json.dumps(setup)],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        if _pipe(self._holder.stdout).readline() != b"ready\n":
            raise OSError(f"the namespaces of {self.name} could not be made:\n{tail(self.log('holder'))}")

    def make_device(self, path: str | Path, major: int, minor: int) -> None:
        """Makes a character device file unless path exists; stop() removes it. The work folder is a good place. Raises OSError."""
        if not Path(path).exists():
            with self.made_files.open("a") as made:
                made.write(f"{path}\n")
            os.mknod(path, 0o600 | 0o020000, os.makedev(major, minor))

    def stop(self, keep: bool = False) -> None:
        """Ends all that belongs to it and removes its work folder, unless keep or DEVICEPLUGIN_E2E_KEEP says to keep it.

        Harmless when it is not running. Raises AssertionError naming what could not be ended or removed.
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


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the process was started without this pipe"
    return stream
