#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the image that the Containerfile describes, with buildah, and writes it as a tar, for `docker load`, `podman load` or `ctr images import`.

    build.py OUT.tar                        # from docker.io/library/debian:bookworm-slim
    build.py --bootstrap OUT.tar            # from a Debian that mmdebstrap makes here, where no registry can be reached
    build.py --base IMAGE --tag NAME OUT.tar
    build.py --again OUT.tar                # compiles and installs anew even if nothing has changed, to see that it gives the same

The version is that of the package, with the commit appended unless the commit is tagged with it, and what is not committed is told by ".dirty".
The last line of the output is the image's id, which follows from its content. Status 1: the build failed.

Needs root and buildah. What can be used again lies in ${DEVICEPLUGIN_CACHE:-$HOME/.cache/deviceplugin-e2e}/images.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
BASE = f"docker.io/library/debian:{SUITE}-slim"
OWN_BASE = f"localhost/debian:{SUITE}-slim"
TAG = "deviceplugin:latest"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class BuildError(Exception):
    """A program failed; the text ends with what it said."""


def git(*arguments: str) -> str:
    """What git says of the checkout. Raises BuildError."""
    done = subprocess.run(["git", "-C", str(TOP), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def package_version() -> str:
    """The version that the package gives itself."""
    tree = ast.parse((TOP / "deviceplugin" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__version__"]:
            return str(ast.literal_eval(node.value))
    raise BuildError("deviceplugin/__init__.py says no __version__")


def version() -> str:
    """As PEP 440 has it: 0.1.0 for a tagged commit, else 0.1.0+gf639b02, and 0.1.0+gf639b02.dirty with changes that are not committed."""
    own, dirty = package_version(), bool(git("status", "--porcelain"))
    if not dirty and f"v{own}" in git("tag", "--points-at", "HEAD").split():
        return own
    return f"{own}+g{git('rev-parse', '--short=12', 'HEAD')}" + (".dirty" if dirty else "")


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # An overlay cannot lie on an overlay, which is what the root of a container is.
        kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True).stdout.strip()
        driver = "vfs" if kind in ("overlayfs", "UNKNOWN (0x794c7630)") else "overlay"
        self._argv = ["buildah", "--root", str(folder / driver), "--runroot", str(folder / "run"), "--storage-driver", driver]

    def run(self, *arguments: str | Path) -> str:
        """Returns what buildah prints. Raises BuildError with what it said last."""
        done = subprocess.run([*self._argv, *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            raise BuildError(f"buildah {arguments[0]} failed (status {done.returncode}):\n{said}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether the image is in the storage."""
        return bool(self.run("images", "--quiet", "--filter", f"reference={image}"))

    def bootstrap(self) -> None:
        """Makes the base image, unless it is there."""
        if self.has(OWN_BASE):
            return
        with tempfile.TemporaryDirectory() as folder:
            argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", SUITE, f"{folder}/base.tar"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildError(f"mmdebstrap failed (status {done.returncode}):\n{done.stderr[-2000:]}")
            Path(folder, "Containerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
            self.run("build", "--tag", OWN_BASE, folder)

    def build(self, base: str, tag: str, again: bool) -> str:
        """Follows the Containerfile and returns the image's id. again: does not reuse what former builds compiled."""
        epoch = git("log", "-1", "--format=%ct")
        arguments = {"BASE": base, "VERSION": version(), "REVISION": git("rev-parse", "HEAD"), "SOURCE_DATE_EPOCH": epoch}
        arguments["ATTEMPT"] = str(time.time_ns()) if again else ""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        # A network may have a certificate authority of its own.
        if CERTIFICATES.exists():
            options += [f"--volume={CERTIFICATES}:/certificates.pem:ro", "--build-arg=PIP_CERT=/certificates.pem"]
        # Containers in a sandbox may have nothing better than chroot.
        common = ["build", "--layers", "--isolation=chroot", f"--timestamp={epoch}", *options]
        self.run(*common, "--target=dependencies", f"--tag=localhost/deviceplugin-dependencies:{SUITE}", TOP)
        made = self.run(*common, f"--tag={tag}", TOP).splitlines()[-1]
        self.run("rmi", "--prune")  # what former builds left; the tagged images and what they rest on stay
        return made


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its status."""
    parser = argparse.ArgumentParser(description="Builds the image and writes it to a tar.", allow_abbrev=False)
    parser.add_argument("--base", default=BASE, help=f"the Debian to build on ({BASE})")
    parser.add_argument("--bootstrap", action="store_true", help="make that Debian here, with mmdebstrap")
    parser.add_argument("--tag", default=TAG, help=f"what the image is called ({TAG})")
    parser.add_argument("--again", action="store_true", help="compile and install anew even if nothing has changed")
    parser.add_argument("out", type=Path)
    args = parser.parse_args(arguments)
    if not re.fullmatch(r"[^:]+(:\d+/[^:]+)?:[^:/]+", args.tag):
        parser.error(f"--tag {args.tag}: must be NAME:TAG")
    named = os.environ.get("DEVICEPLUGIN_CACHE")
    folder = (Path(named) if named else Path.home() / ".cache" / "deviceplugin-e2e") / "images"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            buildah = Buildah(folder)
            if args.bootstrap:
                buildah.bootstrap()
            made = buildah.build(OWN_BASE if args.bootstrap else args.base, args.tag, args.again)
            args.out.unlink(missing_ok=True)
            buildah.run("push", "--quiet", made, f"docker-archive:{args.out}:{args.tag}")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
