# SPDX-License-Identifier: Apache-2.0
"""The directories that the kubelet and we share: wiped, replaced, missing, or of no use."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest

from deviceplugin._native import inotify
from deviceplugin.kubelet.paths import Paths
from deviceplugin.observe.serving import EX_LOST
from deviceplugin.service import Role
from deviceplugin.testing import Kubelet, Pod
from tests.kubelet.serving import FILES, RESOURCE, Rack, overlaps, put_files, service_of, serving, wait_until


def test_wiped_directory_costs_nothing_while_the_kubelet_reads(either: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = overlaps(monkeypatch)
    with serving(either, Rack("a", "b")):
        either.wait_for(RESOURCE, healthy=2)
        either.wipe_dir()
        assert either.admit(Pod.requesting(RESOURCE))
        assert either.streams(RESOURCE) == 1
        either.restart()
        either.wait_for(RESOURCE, healthy=2)
    assert streams == [0, 0]


def test_our_socket_removed_by_a_stranger(either: Kubelet) -> None:
    rack = Rack("a")
    with serving(either, rack) as daemon:
        either.wait_for(RESOURCE, healthy=1)
        os.unlink(os.path.join(either.device_plugins, service_of(daemon).registrar.standing().endpoint))
        rack.put("b")
        either.wait_for(RESOURCE, healthy=2)
        assert len(either.events.of("register")) == 1, "the stream lives: nothing is wrong yet"
        either.drop_connections(RESOURCE)
        either.wait_for_event("registered", RESOURCE, count=2)
        either.wait_for(RESOURCE, healthy=2)


def test_directory_that_is_replaced_is_found_again(either: Kubelet) -> None:
    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        for _ in range(2):
            either.replace_dir()
            either.restart()
            either.wait_for(RESOURCE, healthy=1, timeout=4.0)


def test_directory_that_is_replaced_while_we_turn_to_it(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our look at what is there and our watch on it, it is something else again."""
    faults: list[OSError] = []

    class Late:
        def __init__(self, real: inotify.Inotify) -> None:
            self.real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def add(self, path: str, mask: int) -> int:
            if path == kubelet.device_plugins and faults:
                raise faults.pop()
            return self.real.add(path, mask)

    with serving(kubelet, Rack("a")) as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        monkeypatch.setattr(daemon._watch, "_inotify", Late(daemon._watch._inotify))
        kubelet.restart()  # wakes the watch, which reads the real one's events until then
        kubelet.wait_for(RESOURCE, healthy=1)
        faults += [OSError(errno.ENOENT, "No such file or directory")] * 2
        os.rename(kubelet.device_plugins, os.path.join(kubelet.root, "gone"))
        os.mkdir(kubelet.device_plugins)
        wait_until(lambda: not faults, "both tries")
        kubelet.restart()
        kubelet.wait_for(RESOURCE, healthy=1, timeout=2.0)


def test_kubelets_whole_tree_is_made_anew(either: Kubelet) -> None:
    with serving(either, Rack("a")):
        either.wait_for(RESOURCE, healthy=1)
        either.stop()
        shutil.rmtree(os.path.join(either.root, "var"))
        either.start()
        either.wait_for(RESOURCE, healthy=1, timeout=4.0)


def test_directory_that_is_missing_at_the_start_is_waited_for(short_root: str) -> None:
    assert os.listdir(short_root) == []
    with serving(short_root, Rack("a")), Kubelet(short_root) as kubelet:
        kubelet.wait_for(RESOURCE, healthy=1, timeout=4.0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_dead_directory_under_a_mount_ends_the_process(short_root: str) -> None:
    """A container's bind mount keeps a directory that the host has removed: what the host makes anew is never seen there."""
    program = (
        "import os, subprocess, sys; sys.path.insert(0, os.getcwd())\n"
        "from deviceplugin.cli import main\n"
        "from deviceplugin.kubelet import watch\n"
        "watch.RECHECK, root = 0.05, sys.argv[1]\n"
        "subprocess.run(['mount', '--bind', f'{root}/host', f'{root}/var/lib/kubelet/device-plugins'], check=True)\n"
        "os.rmdir(f'{root}/host')\n"
        "sys.exit(main(['run', '--root', root, '--listen', '', '--plugin', sys.argv[2]]))\n"
    )
    os.makedirs(os.path.join(short_root, "host"))
    os.makedirs(os.path.join(short_root, "var/lib/kubelet/device-plugins"))
    put_files(short_root, "a")
    argv = ["unshare", "--mount", sys.executable, "-W", "error", "-c", program, short_root, FILES]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == EX_LOST, done.stderr
    assert "only a new container" in done.stderr


def test_socket_directory_that_is_a_file(short_root: str, caplog: pytest.LogCaptureFixture) -> None:
    with Kubelet(short_root) as kubelet, serving(kubelet, Rack("a"), registration="watcher") as daemon:
        kubelet.wait_for(RESOURCE, healthy=1)
        kubelet.stop()
        os.rename(kubelet.plugins_registry, f"{kubelet.plugins_registry}.old")
        with open(kubelet.plugins_registry, "w", encoding="ascii"):
            pass
        registrar = service_of(daemon).registrar
        registrar.wake()
        wait_until(lambda: kubelet.plugins_registry in registrar.standing().error, "the reason")
        os.unlink(kubelet.plugins_registry)
        kubelet.start()
        kubelet.wait_for(RESOURCE, healthy=1)
    assert sum(kubelet.plugins_registry in record.getMessage() for record in caplog.records) <= 2, "once for each reason, not for each try"


def test_no_permission_is_said_with_what_to_do(short_root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    denied = True
    real = os.access
    monkeypatch.setattr("deviceplugin.kubelet.endpoint.os.access", lambda path, mode: not denied and real(path, mode))
    with Kubelet(short_root) as kubelet, serving(kubelet, Rack("a")) as daemon:
        wait_until(lambda: "no permission" in service_of(daemon).registrar.standing().error, "the reason")
        denied = False
        kubelet.wait_for(RESOURCE, healthy=1, timeout=4.0)
    said = [record.getMessage() for record in caplog.records if "no permission" in record.getMessage()]
    assert len(said) == 1
    assert f"uid {os.getuid()}" in said[0]
    assert kubelet.device_plugins in said[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_without_root_the_reason_is_one_line(short_root: str) -> None:
    """In a process of another user, on directories that are the kubelet's and closed to it."""
    with Kubelet(short_root) as kubelet:
        os.makedirs(Paths.below(short_root).locks, mode=0o777)
        os.chmod(short_root, 0o755)
        os.chmod(kubelet.device_plugins, 0o755)
        program = (
            "import os, sys; sys.path.insert(0, os.getcwd())\n"
            "from tests.kubelet.serving import Rack, service_of, serving, wait_until\n"
            "import os; root = sys.argv[1]; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "with serving(root, Rack('a')) as daemon:\n"
            "    service = service_of(daemon)\n"
            "    wait_until(lambda: service.error or service.registrar.standing().error, 'the reason')\n"
            "    print(service.error or service.registrar.standing().error)\n"
        )
        said = subprocess.run([sys.executable, "-W", "error", "-c", program, short_root], capture_output=True, text=True, timeout=20, check=False)
    assert said.returncode == 0, said.stderr
    assert "uid 65534" in said.stdout
    assert "Traceback" not in said.stderr


def test_lock_directory_is_made_where_it_is_missing(kubelet: Kubelet) -> None:
    locks = Paths.below(kubelet.root).locks
    assert not os.path.exists(locks)
    with serving(kubelet, Rack("a")):
        kubelet.wait_for(RESOURCE, healthy=1)
        assert os.listdir(locks) == ["vendor.example_device.lock"]


def test_lock_directory_that_cannot_be_used_blocks_the_resource_until_it_can(
    kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deviceplugin.service.LOCK_RETRY", 0.05)
    locks = Paths.below(kubelet.root).locks
    os.makedirs(os.path.dirname(locks))
    with open(locks, "w", encoding="ascii"):
        pass
    with serving(kubelet, Rack("a")) as daemon:
        service = service_of(daemon)
        wait_until(lambda: service.role is Role.BLOCKED, "the block")
        assert locks in service.error
        assert "shared by all instances" in service.error
        os.unlink(locks)
        kubelet.wait_for(RESOURCE, healthy=1, timeout=3.0)
        assert service.role is Role.ACTIVE
    assert sum("cannot open the lock" in record.getMessage() for record in caplog.records) == 1


def test_lock_that_is_a_symbolic_link_is_not_followed(kubelet: Kubelet) -> None:
    locks = Paths.below(kubelet.root).locks
    os.makedirs(locks)
    target = os.path.join(kubelet.root, "precious")
    with open(target, "w", encoding="ascii") as file:
        file.write("precious")
    os.symlink(target, os.path.join(locks, "vendor.example_device.lock"))
    with serving(kubelet, Rack("a")) as daemon:
        wait_until(lambda: service_of(daemon).role is Role.BLOCKED, "the block")
    with open(target, encoding="ascii") as file:
        assert file.read() == "precious"
