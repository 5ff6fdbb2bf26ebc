#!/usr/bin/env python3
"""Gets what the end-to-end tests run: a Kubernetes, a containerd with CDI, Debian's containerd and runc, the probe for the test image, what makes
container images and their networks, and what checks charts (helm) and alerts (promtool).

    provision.py            installs and builds what is absent, then prints the folder of the binaries as its last line
    provision.py --print    prints that folder and changes nothing

Status 0: all is there. Status 77: this machine cannot have it; the last line of stderr says what is missing. Status 1: a build failed.

What it builds lies in ${DEVICEPLUGIN_CACHE:-$HOME/.cache/deviceplugin-e2e}/KEY/bin, where KEY follows from the sources and versions below,
so that a folder once there is never changed. A first build takes about six minutes on two cores; afterwards this takes 50 ms.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MISSING = 77
HERE = Path(__file__).resolve().parent
PROGRESS_SECONDS = 15.0

# What has to be on PATH, and Debian's package that brings it. The tests need both containerds: 1.6 is what many clusters still run.
PROGRAMS = {
    "buildah": "buildah",
    "busybox": "busybox-static",
    "containerd": "containerd",
    "ctr": "containerd",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "gcc": "gcc",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "runc": "runc",
}
# The same for what lies elsewhere; a path may have wildcards.
FILES = {"/usr/lib/*/libc.a": "libc6-dev", "/usr/lib/cni/ptp": "containernetworking-plugins", "/lib/*/libfuse3.so.3": "libfuse3-3"}

KUBERNETES = "v1.36.2"
VERSION_PACKAGE = "k8s.io/component-base/version"


class MissingError(Exception):
    """What is missing cannot be brought by this script; the text is one line that names it."""


class BuildError(Exception):
    """A build failed; the text ends with what the compiler said."""


@dataclass(frozen=True)
class Build:
    """One call of a compiler: argv is run in cwd, {out} in it stands for the folder that receives the binaries."""

    name: str
    argv: Sequence[str]
    cwd: Path = HERE
    env: Mapping[str, str] = field(default_factory=dict)
    sources: Sequence[str] = ()


def go_build(module: str, flags: Sequence[str], packages: Sequence[str], program: str = "") -> Build:
    """A static build of packages out of the module in a folder of that name. program: what a single package's binary is called, if not like it."""
    return Build(
        name=program or module,
        argv=["go", "build", "-trimpath", "-buildvcs=false", *flags, "-o", f"{{out}}/{program}", *packages],
        cwd=HERE / module,
        env={"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        sources=[f"{module}/go.mod", f"{module}/go.sum"],
    )


# Debian's package would start a server: only the checker is taken out of it.
PROMTOOL = """
if found=$(command -v promtool); then exec cp "$found" "$1"; fi
cd "$1"
ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 || apt-get -qq update
apt-get -qq download prometheus
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool
rm prometheus_*.deb
"""

_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
BUILDS = [
    # Its version is not in its sources: without these flags it would call itself v0.0.0.
    go_build(
        "kubernetes",
        ["-ldflags", f"-s -w -X {VERSION_PACKAGE}.gitVersion={KUBERNETES} -X {VERSION_PACKAGE}.gitMajor=1 -X {VERSION_PACKAGE}.gitMinor=36"],
        [f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl")],
    ),
    go_build("kubernetes", ["-ldflags", "-s -w"], ["go.etcd.io/etcd/server/v3"], program="etcd"),
    go_build(
        "containerd",
        ["-tags", "no_btrfs,no_zfs,no_devmapper,no_aufs", "-ldflags", "-s -w"],
        [f"{_CONTAINERD}/containerd", f"{_CONTAINERD}/containerd-shim-runc-v2", f"{_CONTAINERD}/ctr"],
    ),
    go_build("helm", ["-ldflags", "-s -w"], ["helm.sh/helm/v4/cmd/helm"]),
    Build("promtool", ["sh", "-euc", PROMTOOL, "promtool", "{out}"]),
    Build("devprobe", ["gcc", "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-s", "-o", "{out}/devprobe", "devprobe.c"], sources=["devprobe.c"]),
]


def cache_key() -> str:
    """Names the content of the binaries: their sources, how they are built, and for which processor."""
    digest = hashlib.sha256(platform.machine().encode())
    for build in BUILDS:
        digest.update("\0".join(build.argv).encode())
        for source in build.sources:
            digest.update(b"\0" + (HERE / source).read_bytes())
    return digest.hexdigest()[:16]


def cache_root() -> Path:
    """The folder that holds one folder per key."""
    named = os.environ.get("DEVICEPLUGIN_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "deviceplugin-e2e"


def bin_dir() -> Path:
    """Where the binaries lie, or will."""
    return cache_root() / cache_key() / "bin"


def run_with_progress(what: str, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
    """Runs argv and prints every PROGRESS_SECONDS that it still does. Raises BuildError with the end of its output."""
    print(f"{what} ...", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(argv, cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(PROGRESS_SECONDS)
                    break
                print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)
        if status:
            output.seek(0)
            raise BuildError(f"{what} failed (status {status}): {' '.join(argv)}\n" + output.read().decode(errors="replace")[-4000:])
    print(f"{what}: done in {time.monotonic() - started:.0f} s", flush=True)


def install_packages() -> None:
    """Installs Debian's packages that are absent. Raises MissingError where that cannot be done."""
    wanted = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    wanted |= {package for path, package in FILES.items() if not any(Path("/").glob(path.lstrip("/")))}
    if not wanted:
        return
    packages = sorted(wanted)
    if not shutil.which("apt-get"):
        raise MissingError(f"missing: {' '.join(packages)} (Debian's names), and there is no apt-get to install them")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
            run_with_progress("reading the package lists", ["apt-get", "-qq", "update"], HERE, quiet)
        install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages]
        run_with_progress(f"installing {' '.join(packages)}", install, HERE, quiet)
    except BuildError as error:
        raise MissingError(f"missing: {' '.join(packages)}, and apt-get could not install them: {str(error).splitlines()[-1]}") from error


def check_go() -> None:
    """Raises MissingError unless a Go compiler that is new enough is there (or one that can fetch its successor)."""
    if not shutil.which("go"):
        raise MissingError("missing: Go 1.26 or newer on PATH, to build Kubernetes (no binaries in the cache either)")
    version = subprocess.run(["go", "version"], cwd=HERE / "kubernetes", capture_output=True, text=True, check=False)
    if version.returncode:
        raise MissingError(f"missing: Go 1.26 or newer; {version.stderr.strip().splitlines()[-1]}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the cache for one process: two that build at once would only slow each other down."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def provision() -> Path:
    """Makes all there is to make and returns the folder of the binaries. Raises MissingError or BuildError."""
    if platform.system() != "Linux":
        raise MissingError(f"missing: Linux (this is {platform.system()})")
    if os.geteuid() != 0:
        raise MissingError("missing: root (containers and mount namespaces need it)")
    install_packages()
    target = bin_dir()
    if target.is_dir():
        return target
    with locked(cache_root()):
        if target.is_dir():
            return target
        check_go()
        # Built aside and renamed, so that a folder under its key is always whole, whatever ends this process.
        with tempfile.TemporaryDirectory(dir=cache_root(), prefix=".building-", ignore_cleanup_errors=True) as building:
            out = Path(building) / "whole" / "bin"
            out.mkdir(parents=True)
            for build in BUILDS:
                argv = ["nice", *(part.format(out=out) for part in build.argv)]
                run_with_progress(f"building {build.name}", argv, build.cwd, build.env)
            out.parent.rename(target.parent)
    return target


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its status."""
    if arguments not in ([], ["--print"]):
        print("usage: provision.py [--print]", file=sys.stderr)
        return 2
    if arguments:
        print(bin_dir())
        return 0
    try:
        print(provision())
    except MissingError as error:
        print(error, file=sys.stderr)
        return MISSING
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
