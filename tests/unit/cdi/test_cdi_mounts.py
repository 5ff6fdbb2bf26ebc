# SPDX-License-Identifier: Apache-2.0
"""A CDI directory that is full or read-only, by real mounts in a namespace of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITER = """\
import errno, os, subprocess, sys
from deviceplugin import Host
from deviceplugin.cdi import CdiError, ContainerEdits, Spec, SpecDirectory

root, options, mend, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
place = root + "/var/run/cdi"
os.makedirs(place)
directory = SpecDirectory(Host(root))
spec = lambda name: Spec(kind="example.com/thing", devices={name: ContainerEdits(envs={"A": name * 3000})})
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", place], check=True)
assert directory.write(spec("a"))
whole = open(place + "/example.com-thing.json", "rb").read()
if number == errno.ENOSPC:
    with open(place + "/filler", "wb", 0) as filler:
        try:
            while filler.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
else:
    subprocess.run(["mount", "-o", options, place], check=True)
for _ in range(3):
    try:
        directory.write(spec("b"))
    except CdiError as error:
        assert error.errno == number, error.errno
        print(error)
    assert open(place + "/example.com-thing.json", "rb").read() == whole
    assert not [name for name in os.listdir(place) if name.endswith(".tmp")]
subprocess.run(mend.format(place), shell=True, check=True)
assert directory.write(spec("b"))
assert directory.has("example.com/thing")
"""


@pytest.mark.parametrize(
    ("options", "mend", "number", "words"),
    [
        ("", "rm {}/filler", 28, "No space left on device: free some space there"),
        ("remount,ro", "mount -o remount,rw {}", 30, "Read-only file system: mount the directory read-write into this container"),
    ],
)
def test_a_spec_that_cannot_be_written_is_an_error_with_advice_and_the_next_try_succeeds(
    tmp_path: Path, options: str, mend: str, number: int, words: str
) -> None:
    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("no user namespace with mounts of its own (unshare --user --mount) here")
    argv = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", WRITER, str(tmp_path), options, mend, str(number)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"CDI spec /var/run/cdi/example.com-thing.json cannot be written: {words}"] * 3
