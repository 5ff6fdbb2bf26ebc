# SPDX-License-Identifier: Apache-2.0
"""Libraries and drivers that are missing, old, broken or late are states, not crashes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from deviceplugin._native import nvml as native
from deviceplugin._native.nvml import Nvml, State
from deviceplugin.testing import nvml as sim
from tests.unit.nvml.conftest import Start


def test_without_a_library_there_is_a_state_and_a_typed_error(tmp_path: Path) -> None:
    nvml = Nvml(root=tmp_path)
    assert nvml.state is State.CLOSED
    assert nvml.open() is State.NO_LIBRARY
    assert str(tmp_path) in nvml.reason
    with pytest.raises(native.NotReadyError) as caught:
        nvml.snapshot()
    assert caught.value.state is State.NO_LIBRARY
    assert "libnvidia-ml.so.1" in str(caught.value)


@pytest.mark.parametrize("folder", ["usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib", ""])
def test_the_library_is_found_below_the_drivers_root(tmp_path: Path, folder: str) -> None:
    library = sim.one_t4().install(tmp_path / folder)
    with Nvml(root=tmp_path) as nvml:
        assert nvml.state is State.READY
        assert nvml.path == str(library)
        assert len(nvml.snapshot().gpus) == 1


def test_a_file_that_is_no_library_is_told_from_none(tmp_path: Path) -> None:
    path = tmp_path / sim.SONAME
    path.write_text("not a library")
    nvml = Nvml(path)
    assert nvml.open() is State.BAD_LIBRARY
    assert str(path) in nvml.reason


def test_a_library_that_lacks_what_cannot_be_missing_is_unusable() -> None:
    nvml = Nvml("libc.so.6")
    assert nvml.open() is State.BAD_LIBRARY
    assert "nvmlInit_v2" in nvml.reason


@pytest.mark.parametrize(
    ("code", "state"),
    [(9, State.NO_DRIVER), (18, State.MISMATCH), (999, State.FAILED), (4, State.FAILED)],
    ids=["driver", "mismatch", "unknown", "rights"],
)
def test_an_initialisation_that_fails_is_tried_again(tmp_path: Path, code: int, state: State) -> None:
    machine = sim.dgx_a100()
    machine.rule("nvmlInit", result=code)
    nvml = Nvml(machine.install(tmp_path))
    assert nvml.open() is state
    assert f"code {code}" in nvml.reason
    with pytest.raises(native.NotReadyError):
        nvml.events()
    machine.clear_rules()
    assert nvml.open() is State.READY
    assert nvml.reason == ""
    assert len(nvml.snapshot().gpus) == 8
    nvml.close()


def test_a_driver_that_appears_later_is_found(tmp_path: Path) -> None:
    machine = sim.one_t4()
    nvml = Nvml(root=tmp_path)
    assert nvml.open() is State.NO_LIBRARY
    machine.install(tmp_path / "usr/lib64")
    machine.unload()
    assert nvml.open() is State.NO_DRIVER
    machine.load()
    assert nvml.open() is State.READY
    assert nvml.open() is State.READY
    assert nvml.snapshot().gpus[0].name == "Tesla T4"
    nvml.close()


def test_a_driver_that_goes_away_fails_the_look_and_comes_back(start: Start) -> None:
    machine = sim.one_t4()
    nvml = start(machine)
    machine.unload()
    with pytest.raises(native.NvmlError) as caught:
        nvml.snapshot()
    assert (caught.value.function, caught.value.code) == ("nvmlDeviceGetCount_v2", 9)
    machine.load()
    assert len(nvml.snapshot().gpus) == 1


def test_an_old_library_tells_what_it_can(tmp_path: Path) -> None:
    machine = sim.dgx1_v100()
    with Nvml(machine.install(tmp_path, old=True)) as nvml:
        assert nvml.state is State.READY
        assert {"nvmlDeviceGetMigMode", "nvmlEventSetWait_v2", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetRemappedRows"} <= nvml.missing
        assert "nvmlDeviceGetUUID" not in nvml.missing
        snapshot = nvml.snapshot()
        gpu = snapshot.gpus[1]
        assert (gpu.uuid, gpu.bus_id, gpu.mig_mode, gpu.architecture) == (machine.gpus[1].uuid, "0000:11:00.0", None, None)
        assert gpu.memory is not None
        assert (gpu.memory.total, gpu.memory.reserved) == (16 << 30, None)
        assert native.Failure("nvmlDeviceGetMigMode", native.FUNCTION_NOT_FOUND) in gpu.failures
        assert snapshot.ancestors[0][1] == 10
        with nvml.events() as events:
            machine.inject_xid(1, 48, gi=3, ci=0)
            assert events.wait(5) == native.Event(native.XID, 48, 1, gpu.uuid, None, None)


def test_a_newer_library_has_nothing_missing(start: Start) -> None:
    assert start(sim.one_t4()).missing == frozenset()


def test_an_initialisation_that_kills_the_process_kills_only_that(tmp_path: Path) -> None:
    machine = sim.one_t4()
    machine.rule("nvmlInit", crash=True)
    library = machine.install(tmp_path)
    code = f"from deviceplugin._native.nvml import Nvml; print(Nvml({str(library)!r}).open())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -6
    machine.clear_rules()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"State.READY\n"


def test_programs_that_know_nothing_of_it_run_on_the_simulator(tmp_path: Path) -> None:
    sim.dgx_h100().install(tmp_path)
    code = "import pynvml as p; p.nvmlInit(); print(p.nvmlDeviceGetCount(), p.nvmlDeviceGetName(p.nvmlDeviceGetHandleByIndex(7)))"
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=env)
    assert done.stdout == "8 NVIDIA H100 80GB HBM3\n"


def test_closing_does_not_wait_for_an_initialisation_that_hangs(tmp_path: Path) -> None:
    machine = sim.one_t4()
    machine.rule("nvmlInit", delay=0.5)
    nvml = Nvml(machine.install(tmp_path))
    states: list[State] = []
    opener = threading.Thread(target=lambda: states.append(nvml.open()))
    opener.start()
    while opener.is_alive() and not nvml.path:  # set once the library is open, just before its initialisation
        pass
    nvml.close()
    assert opener.is_alive()
    opener.join(5)
    assert states == [State.CLOSED]
    with pytest.raises(ValueError, match="closed"):
        nvml.snapshot()


def test_a_path_is_taken_alone_and_another_root_never_falls_back(tmp_path: Path) -> None:
    assert native.candidates("/x/lib.so", str(tmp_path)) == ["/x/lib.so"]
    assert native.candidates(root=str(tmp_path)) == []
    assert native.candidates()[0] == sim.SONAME


def test_closing_waits_for_whoever_still_uses_it(tmp_path: Path) -> None:
    machine = sim.one_t4()
    nvml = Nvml(machine.install(tmp_path))
    nvml.open()
    machine.rule("nvmlDeviceGetUUID", delay=0.2)
    got: list[object] = []
    entered = threading.Event()

    def look() -> None:
        entered.set()
        got.append(nvml.snapshot())

    worker = threading.Thread(target=look)
    worker.start()
    entered.wait(5)
    nvml.close()
    worker.join(5)
    assert nvml.state is State.CLOSED
    with pytest.raises(ValueError, match="closed"):
        nvml.snapshot()
    with pytest.raises(ValueError, match="closed"):
        nvml.open()
    nvml.close()


def test_a_forked_child_is_refused(start: Start) -> None:
    nvml = start(sim.one_t4())
    events = nvml.events()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child only asks and exits
        child = os.fork()
    if not child:
        refused = 0
        for ask in (nvml.snapshot, nvml.open, nvml.events, events.wait):
            try:
                ask()
            except RuntimeError as error:
                refused += "after fork" in str(error)
        events.close()
        nvml.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert len(nvml.snapshot().gpus) == 1
    events.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "first line"),
        ("gpu uuid=GPU-1\n", "first line"),
        ("nvml-scenario 2\n", "first line"),
        ("nvml-scenario 1\ngup uuid=GPU-1\n", ":2: unknown word: gup"),
        ("nvml-scenario 1\n\ngpu uuid=GPU-1 memroy=4\n", ":3: unknown name: memroy"),
        ("nvml-scenario 1\ngpu uuid=GPU-1 memory=much\n", "bad value: memory"),
        ("nvml-scenario 1\ngpu uuid=GPU-1 memory=99999999999999999999\n", "bad value: memory"),
        ("nvml-scenario 1\ngpu uuid=GPU-1 pci=0000:zz:00.0\n", "bad value: pci"),
        ("nvml-scenario 1\ngpu uuid=GPU-1 tree=1.2\n", "bad value: tree"),
        ("nvml-scenario 1\ngpu name=x\n", "without uuid"),
        (f"nvml-scenario 1\ngpu uuid={'x' * 100}\n", "bad value: uuid"),
        (f"nvml-scenario 1\ngpu uuid={'x' * 1000}\n", "too long"),
        ('nvml-scenario 1\ngpu uuid="GPU-1\n', "not closed"),
        ("nvml-scenario 1\ngpu uuid=GPU-1\nmig uuid=MIG-1 gpu=1\n", "of no gpu"),
        ("nvml-scenario 1\nlink gpu=-1\n", "a link of no gpu"),
        ("nvml-scenario 1\n" + "gpu uuid=GPU-1\n" * 513, "too many"),
    ],
)
def test_a_scenario_with_a_mistake_says_where_and_changes_nothing(start: Start, capfd: pytest.CaptureFixture[str], text: str, complaint: str) -> None:
    machine = sim.one_t4()
    nvml = start(machine)
    before = nvml.snapshot()
    assert machine.path is not None
    machine.path.write_text(text)
    assert nvml.snapshot() == before
    assert complaint in capfd.readouterr().err


def test_a_partition_that_does_not_fit_is_refused() -> None:
    machine = sim.h100_mig("empty")
    for layout in (["4g.40gb", "4g.40gb"], ["5g.60gb"], ["1g.10gb"] * 8, ["3g.40gb:2,2"]):
        with pytest.raises(ValueError, match=r"no room|no MIG profile|need"):
            machine.partition(0, *layout)
    assert machine.migs == []


def test_the_host_shows_the_machine_as_the_driver_does(tmp_path: Path) -> None:
    machine = sim.dgx_h100()
    sim.write_host(machine, tmp_path)
    for number, gpu in enumerate(machine.gpus):
        pci = tmp_path / "sys/bus/pci/devices" / gpu.pci
        assert [(pci / name).read_text() for name in ("vendor", "device", "numa_node")] == ["0x10de\n", "0x2330\n", f"{number // 4}\n"]
        information = (tmp_path / "proc/driver/nvidia/gpus" / gpu.pci / "information").read_text()
        assert dict(line.split(":", 1) for line in information.splitlines())["GPU UUID"].strip() == gpu.uuid
    minors = (tmp_path / "proc/driver/nvidia-caps/mig-minors").read_text().splitlines()
    assert {"gpu0/gi1/access 12", "gpu0/gi1/ci0/access 13", "gpu1/gi0/access 138"} <= set(minors)
    assert len({line.split()[1] for line in minors}) == len(minors)
