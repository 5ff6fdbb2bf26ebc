# SPDX-License-Identifier: Apache-2.0
"""Programs in children: what they answer, what becomes of one that hangs, and that no two hang for one file system."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deviceplugin import Host
from deviceplugin.plugins.pfs import Pfs
from deviceplugin.plugins.pfs.commands import CommandFailed, Commands
from tests.unit.pfs.rig import T3, Rig, config

LIMIT = 5.0
SHORT = 0.3


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs that come before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "root" / "mnt").mkdir(parents=True)
    return Host(str(tmp_path / "root"))


@pytest.fixture
def immortal(host: Host) -> Iterator[Commands]:
    """Commands whose children no signal reaches, as if the kernel kept them."""
    commands = Commands(host, "/proc/1", kill=lambda _process: None)
    yield commands
    for process in commands._left:
        process.kill()
        process.wait()


def test_what_a_program_writes_and_complains_of(host: Host, bin_dir: Path) -> None:
    commands = Commands(host, "/proc/1")
    program(bin_dir, "lctl", 'echo "$@"')
    assert commands.run(["lctl", "set_param", "a.*.b=1"], LIMIT) == "set_param a.*.b=1\n"
    program(bin_dir, "lctl", "echo first >&2; echo 'error: set_param: setting a: Permission denied' >&2; exit 1")
    with pytest.raises(CommandFailed, match=r"^lctl x failed: error: set_param: setting a: Permission denied$"):
        commands.run(["lctl", "x"], LIMIT)
    program(bin_dir, "lctl", "exit 3")
    with pytest.raises(CommandFailed, match="status 3"):
        commands.run(["lctl"], LIMIT)
    with pytest.raises(CommandFailed, match="no-such-program cannot be run: No such file"):
        commands.run(["no-such-program"], LIMIT)


def test_a_program_that_takes_too_long_is_killed(host: Host, bin_dir: Path) -> None:
    program(bin_dir, "mount", "exec sleep 60")
    with pytest.raises(CommandFailed, match=r"mount did not end within 0.3 s \(process \d+ was killed\)"):
        Commands(host, "/proc/1").run(["mount"], SHORT)


def test_file_systems_that_answer_or_are_not_there(host: Host) -> None:
    answers = Commands(host, "/proc/1").statfs({"/mnt": "/run/a", "/none": "/run/b"}, LIMIT)
    assert answers["/mnt"] == ""
    assert answers["/none"].startswith("statfs: ")
    assert answers["/none"].endswith("No such file or directory")


def test_where_no_lock_can_be_made_nothing_is_asked(host: Host) -> None:
    Path(host.path("/run")).write_text("no directory")
    assert Commands(host, "/proc/1").statfs({"/mnt": "/run/a"}, LIMIT) == {"/mnt": "not asked: /run/a cannot be made: File exists"}
    with pytest.raises(CommandFailed, match="/run/a cannot be made: File exists"):
        Commands(host, "/proc/1").run(["true"], LIMIT, "/run/a")


def test_all_are_asked_at_once(host: Host, bin_dir: Path) -> None:
    program(bin_dir, "stat", "exec sleep 60")
    answers = Commands(host, "/proc/1").statfs({f"/mnt/{n}": f"/run/{n}" for n in range(10)}, SHORT)
    assert all(f"/mnt/{n} does not answer within 0.3 s" in answers[f"/mnt/{n}"] for n in range(10))


def test_one_child_at_most_hangs_for_a_file_system_whoever_asks(host: Host, bin_dir: Path, immortal: Commands) -> None:
    program(bin_dir, "stat", "exec sleep 60")
    first = immortal.statfs({"/mnt": "/run/a"}, SHORT)["/mnt"]
    assert "cannot be killed: the kernel waits for the file system" in first
    (child,) = immortal._left
    for again in (immortal, Commands(host, "/proc/1")):  # as well another instance, or the next after a restart
        answer = again.statfs({"/mnt": "/run/a"}, SHORT)["/mnt"]
        assert answer == f"hang: /mnt does not answer, and process {child.pid} still hangs there; no other is started"
    with pytest.raises(CommandFailed, match=f"lfs getname /mnt is not run, since process {child.pid} still hangs in that file system"):
        immortal.run(["lfs", "getname", "/mnt"], SHORT, "/run/a")
    assert immortal._left == [child]
    child.kill()
    child.wait()
    program(bin_dir, "stat", "echo 0")
    assert Commands(host, "/proc/1").statfs({"/mnt": "/run/a"}, LIMIT) == {"/mnt": ""}


def test_a_child_keeps_no_descriptor_of_ours_but_its_lock(host: Host, bin_dir: Path, tmp_path: Path) -> None:
    """Whatever a child that cannot be killed had open would stay open: the locks of resources, sockets."""
    ours = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(ours, True)
    program(bin_dir, "stat", f"ls -l /proc/$$/fd > {tmp_path}/seen; exit 0")
    Commands(host, "/proc/1").statfs({"/mnt": "/run/a"}, LIMIT)
    os.close(ours)
    targets = [line.rpartition(" -> ")[2] for line in (tmp_path / "seen").read_text().splitlines() if " -> " in line]
    kept = [one for one in targets if one.startswith(str(tmp_path)) and not one.startswith(str(tmp_path / "bin")) and not one.endswith("/seen")]
    assert kept == [host.path("/run/a")]


def test_lctl_gets_the_arguments_that_an_administrator_would_type(tmp_path: Path, bin_dir: Path) -> None:
    """The programs are found on PATH and run as they are: here they only write down how."""
    one = Rig(tmp_path / "sim", T3, tree="lustre-2.15")
    for name in ("lctl", "lfs", "mount"):
        program(bin_dir, name, f'echo {name} "$@" >> {tmp_path}/argv')
    program(bin_dir, "lfs", "echo 'scratch-ffff888100000034 /mnt/scratch'")
    plugin = Pfs(config(T3), Host(one.host.root, "node1"))
    devices = [device for device in plugin.discover() if getattr(device, "id", "") == "pfs.scratch.02"]
    one.pfs.mount("lustre", "10.0.0.1@tcp:/scratch", "/var/lib/deviceplugin/pfs/scratch/slot-02")
    os.makedirs(one.host.path("/var/lib/deviceplugin/pfs/scratch/slot-02"))
    with pytest.raises(Exception, match="max_rpcs_in_flight is '8', not 2"):
        plugin.prepare(devices)  # type: ignore[arg-type]
    assert (tmp_path / "argv").read_text() == "lctl set_param osc.scratch-OST*-osc-ffff888100000034.max_rpcs_in_flight=2\n"


def test_programs_run_in_the_nodes_namespace(tmp_path: Path) -> None:
    """Where the plugin has another, as in a container."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("needs root, unshare and nsenter")
    inside = tmp_path / "inside"
    inside.mkdir()
    argv = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {inside} && touch {inside}/there && echo ok && read end"]
    node = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert node.stdin is not None
    assert node.stdout is not None
    try:
        if node.stdout.readline() != b"ok\n":
            pytest.skip("this machine lets nobody have a mount namespace of its own")
        assert Commands(Host(), f"/proc/{node.pid}").run(["ls", str(inside)], LIMIT) == "there\n"
        assert Commands(Host(), "/proc/self").run(["ls", str(inside)], LIMIT) == ""
        with pytest.raises(CommandFailed, match="hostPID"):
            Commands(Host(), "/proc/999999999").run(["true"], LIMIT)
    finally:
        node.stdin.close()
        node.stdout.close()
        node.wait()
