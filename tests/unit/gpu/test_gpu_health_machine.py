# SPDX-License-Identifier: Apache-2.0
"""Any sequence of faults, resets and restarts of the daemon: the framework advertises what a simple model says."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from deviceplugin import Health
from deviceplugin._native import nvml
from deviceplugin.health import Damping, HealthBook, Sighting
from deviceplugin.plugins.gpu.config import Faults
from deviceplugin.plugins.gpu.health import Judge
from deviceplugin.plugins.gpu.session import Watched

UUID = "GPU-1"
QUIET = 300.0

WELL = nvml.Gpu(
    index=0, uuid=UUID, name="H100", serial="", bus_id="0000:10:00.0", pci_device_id=None, pci_subsystem_id=None, minor=0, brand=None,
    architecture=9, compute_capability=(9, 0), compute_mode=None, memory=None, numa_nodes=(0,), event_types=nvml.XID, mig_mode=0, mig_pending=0,
    max_mig=7, migs=(), links=(), fabric=None, ecc=nvml.Ecc(True, True, 5, 5, 5, 5), remapped_rows=nvml.RemappedRows(0, 0, False, False),
    retired_pages_pending=None, temperature=None, power=None, power_limit=None, gpu_utilization=None, memory_utilization=None, lost=False,
    failures=(),
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now, self.base, self.gpu = 0.0, 1, WELL
        self.judge, self.book = Judge(Faults(), 60.0), self.new_book()
        self.fault, self.quiet_since = "", -1.0
        self.look()

    @staticmethod
    def new_book() -> HealthBook:
        return HealthBook(Faults().rules(), Damping(flaps=10**6), "boot")

    def look(self) -> None:
        verdict = self.judge.judge(self.gpu, str(self.base), Watched(self.now, frozenset([0])), self.now)
        self.shown = self.book.see(UUID, Sighting(verdict.health, verdict.cause, verdict.incarnation), self.now)
        self.judge.reported()

    @rule(code=st.sampled_from([13, 43, 79, 48, 94, 500]))
    def xid(self, code: int) -> None:
        self.judge.hear([nvml.Event(nvml.XID, code, 0, UUID, None, None)])
        if code not in (13, 43):
            new = "quiet" if code == 94 else "reset"
            self.fault = "reset" if self.fault == "reset" else new
            self.quiet_since = -1.0
        self.look()

    @rule(by=st.integers(1, 3))
    def contained_error(self, by: int) -> None:
        assert self.gpu.ecc is not None
        assert self.gpu.ecc.uncorrected_volatile is not None
        self.gpu = replace(self.gpu, ecc=replace(self.gpu.ecc, uncorrected_volatile=self.gpu.ecc.uncorrected_volatile + by))
        self.fault = self.fault or "quiet"
        self.quiet_since = -1.0
        self.look()

    @rule()
    def driver_loaded_anew(self) -> None:
        self.base += 1
        self.gpu = WELL
        self.look()
        self.fault = "" if self.fault == "reset" else self.fault

    @rule()
    def rows_remapped_by_a_reset(self) -> None:
        self.gpu = replace(self.gpu, remapped_rows=nvml.RemappedRows(0, 1, True, False))
        self.look()
        assert self.shown.health is Health.UNHEALTHY
        self.gpu = replace(self.gpu, remapped_rows=nvml.RemappedRows(0, 1, False, False))
        self.look()
        self.fault = ""

    @rule(seconds=st.sampled_from([1.0, 100.0, QUIET, 10000.0]))
    def time_passes(self, seconds: float) -> None:
        self.look()
        self.now += seconds
        self.look()

    @rule()
    def daemon_restarts(self) -> None:
        state = self.book.dump()
        self.judge, self.book = Judge(Faults(), 60.0), self.new_book()
        self.book.load(state)
        self.quiet_since = -1.0
        self.look()

    @invariant()
    def advertised_is_what_the_model_says(self) -> None:
        self.look()
        if self.fault == "quiet":
            # The book counts the quiet from the first look without the fault, which every rule but the faults' ends with.
            unit = self.book.get(UUID)
            assert unit is not None
            if unit.health is Health.HEALTHY:
                assert self.quiet_since >= 0
                assert self.now - self.quiet_since >= QUIET
                self.fault = ""
            else:
                self.quiet_since = self.now if self.quiet_since < 0 else self.quiet_since
                assert self.now - self.quiet_since < QUIET
        assert (self.shown.health is Health.HEALTHY) == (self.fault == "")


TestHealthMachine = Machine.TestCase
TestHealthMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
