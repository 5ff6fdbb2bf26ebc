# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's management library, opened when it is there: an inventory in one call, and events, both without the interpreter's lock.

A library that is missing, a driver that is not loaded or a version mismatch is a :class:`State`, which a later :meth:`Nvml.open` may find changed. A
GPU that fails is in the snapshot with its failures, beside the others.
"""

import os
import threading

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport getpid

from nvml_c cimport *

include "nvml_values.pxi"

SONAME = "libnvidia-ml.so.1"

# Event types; LOST is ours: NVML fails the wait instead.
SINGLE_BIT_ECC = 0x1
DOUBLE_BIT_ECC = 0x2
XID = 0x8
MIG_CONFIG_CHANGE = 0x100
GPU_UNAVAILABLE = 0x4000
RECOVERY_ACTION = 0x8000
LOST = 0

# The return codes that callers tell apart.
NOT_SUPPORTED = NVML_ERROR_NOT_SUPPORTED
FUNCTION_NOT_FOUND = NVML_ERROR_FUNCTION_NOT_FOUND
GPU_IS_LOST = NVML_ERROR_GPU_IS_LOST

# Where distributions and NVIDIA's driver containers put the library, below the driver's root.
_FOLDERS = ("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib",
            "usr/lib/wsl/lib", "")
_DRIVER_CONTAINER = "/run/nvidia/driver"

# How long one wait lasts in the library, which nothing can interrupt: so long wake() and close() may take.
# Four wake-ups a second are 0.05 % of a core (bench idle).
cdef enum:
    SLICE_MS = 250


def candidates(path: str | None = None, root: str = "/") -> list[str]:
    """Where the library is looked for, in this order.

    ``path`` alone if it is given. For the root ``/`` the dynamic linker's own search comes first (so LD_LIBRARY_PATH counts), and last the root of
    NVIDIA's driver container. Below another root, its folders and no others: a library of the wrong driver is worse than none.
    """
    if path is not None:
        return [path]
    roots = [root] if root != "/" else [root, _DRIVER_CONTAINER]
    found = [os.path.join(r, folder, SONAME) for r in roots for folder in _FOLDERS]
    return ([SONAME] if root == "/" else []) + [p for p in found if os.path.exists(p)]


cdef object known(long long value):
    return value if value >= 0 else None


cdef str text(const char *value):
    return value.decode("utf-8", "replace")


cdef tuple failures_of(const nvml_failure *failures, size_t count):
    return tuple([Failure(failures[i].function.decode(), failures[i].code) for i in range(count)])


cdef object link_of(const nvml_link *link, dict peers):
    cdef str remote = text(link.remote)
    return Link(link.index, bool(link.active), known(link.version), known(link.type), remote, peers.get(remote))


cdef object mig_of(const nvml_mig *mig):
    cdef const nvml_attributes *a = &mig.attributes
    return Mig(
        mig.index, text(mig.uuid), text(mig.name), text(mig.profile), mig.gpu_instance, mig.compute_instance, a.gpu_instance_slices,
        a.compute_instance_slices, a.memory_mb << 20, a.multiprocessors, a.copy_engines, a.decoders, a.encoders, a.jpegs, a.ofas)


cdef object gpu_of(const nvml_gpu *g, dict peers):
    fabric = ecc = remapped = memory = None
    if g.memory_total >= 0:
        memory = Memory(g.memory_total, g.memory_free, g.memory_used, known(g.memory_reserved))
    if g.fabric_state >= 0:
        cluster = PyBytes_FromStringAndSize(<const char *>g.fabric_cluster, NVML_CLUSTER_SIZE).hex()
        fabric = Fabric(g.fabric_state, g.fabric_status, g.fabric_clique, cluster, known(g.fabric_health))
    if g.ecc_mode >= 0:
        ecc = Ecc(g.ecc_mode > 0, g.ecc_pending > 0, known(g.ecc[0][0]), known(g.ecc[0][1]), known(g.ecc[1][0]), known(g.ecc[1][1]))
    if g.remapped_corrected >= 0:
        remapped = RemappedRows(g.remapped_corrected, g.remapped_uncorrected, g.remap_pending > 0, g.remap_failure > 0)
    return Gpu(
        g.index, text(g.uuid), text(g.name), text(g.serial), text(g.bus_id), known(g.pci_device_id), known(g.pci_subsystem_id), known(g.minor),
        known(g.brand), known(g.architecture), (g.major, g.revision) if g.major >= 0 else None, known(g.compute_mode), memory,
        tuple([n for n in range(NVML_NUMA_WORDS * 64) if g.numa[n // 64] >> (n % 64) & 1]), known(g.event_types), known(g.mig_mode),
        known(g.mig_pending), known(g.max_mig), tuple([mig_of(&g.migs[i]) for i in range(g.mig_count)]),
        tuple([link_of(&g.links[i], peers) for i in range(g.link_count)]), fabric, ecc, remapped,
        None if g.retired_pending < 0 else g.retired_pending > 0, known(g.temperature), known(g.power), known(g.power_limit), known(g.use_gpu),
        known(g.use_memory), bool(g.lost), failures_of(g.failures, g.failure_count))


cdef object snapshot_of(const nvml_snapshot *s):
    cdef dict peers = {text(s.gpus[i].bus_id): s.gpus[i].index for i in range(s.count) if s.gpus[i].bus_id[0]}
    cdef tuple ancestors = ()
    cdef size_t n = s.count
    if s.ancestors != NULL:
        ancestors = tuple([tuple([None if s.ancestors[a * n + b] == NVML_NO_LEVEL else s.ancestors[a * n + b] for b in range(n)]) for a in range(n)])
    return Snapshot(
        text(s.driver), text(s.nvml), (s.cuda // 1000, s.cuda % 1000 // 10) if s.cuda >= 0 else None,
        tuple([gpu_of(&s.gpus[i], peers) for i in range(n)]), ancestors, failures_of(s.failures, s.failure_count))


@cython.final
cdef class Nvml:
    """One process's use of NVML. Making one opens nothing.

    Any thread may call any method. A forked child must make its own: the driver's descriptors are its parent's, so there every method but
    :meth:`close` raises RuntimeError.
    """

    cdef nvml_api api
    cdef bint running
    cdef bint ended
    cdef int users
    cdef int owner
    cdef object lock
    cdef tuple where
    cdef readonly object state
    cdef readonly str reason
    cdef readonly str path
    cdef readonly frozenset missing

    def __cinit__(self, path=None, root="/"):
        self.owner = getpid()
        self.lock = threading.Lock()
        self.where = (None if path is None else os.fspath(path), os.fspath(root))
        self.state = State.CLOSED
        self.reason = ""
        self.path = ""
        self.missing = frozenset()

    def __dealloc__(self):
        self.stop()

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *_):
        self.close()

    def open(self):
        """Opens the library and initialises NVML, unless that is done, and returns the state. Never raises for what is or is not installed.

        Call it again to see whether the driver has appeared; each call that does not find it ready opens the library anew, since a driver that is
        upgraded brings another file.
        """
        self.own()
        with self.lock:
            if self.ended:
                raise ValueError("this Nvml is closed")
            if self.running:
                return self.state
            state, reason = self.start()
            if self.ended:  # while the library took its time
                self.stop()
                return self.state
            self.state, self.reason = state, reason
            return state

    def start(self):
        cdef char[512] why
        cdef bytes name
        cdef const char *c_name
        cdef bint opened = False
        cdef nvml_return code
        reasons = []
        for path in candidates(*self.where):
            name = os.fsencode(path)
            c_name = name
            with nogil:
                opened = nvml_api_open(&self.api, c_name, why, sizeof(why))
            if opened:
                self.path = path
                break
            reasons.append(why.decode("utf-8", "replace"))
        if not opened:
            reason = "; ".join(reasons) or f"no {SONAME} below {self.where[1]}"
            return (State.BAD_LIBRARY if any("No such file or directory" not in r for r in reasons) else State.NO_LIBRARY), reason
        missing = set()
        n = 0
        while nvml_api_symbol(n) != NULL:
            if not nvml_api_has(&self.api, n):
                missing.add(nvml_api_symbol(n).decode())
            n += 1
        self.missing = frozenset(missing)
        lacking = self.missing & {"nvmlInit_v2", "nvmlShutdown", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID"}
        if lacking:
            nvml_api_close(&self.api)
            return State.BAD_LIBRARY, f"{self.path} lacks {', '.join(sorted(lacking))}"
        with nogil:
            code = self.api.init()
            if code != NVML_SUCCESS:
                nvml_api_close(&self.api)
        self.running = code == NVML_SUCCESS
        if self.running:
            return State.READY, ""
        state = {NVML_ERROR_DRIVER_NOT_LOADED: State.NO_DRIVER, NVML_ERROR_LIB_RM_VERSION_MISMATCH: State.MISMATCH}.get(code, State.FAILED)
        return state, f"nvmlInit_v2 of {self.path}: {describe(code)} (NVML code {code})"

    def snapshot(self, bint topology=True, bint health=True):
        """All that NVML says of the machine now. What fails is listed in ``failures``, of its GPU where it is one's.

        NotReadyError without a library or driver; NvmlError when not even the number of GPUs can be had.
        """
        cdef nvml_snapshot s
        cdef nvml_return code
        cdef const char *function
        cdef unsigned int parts = (NVML_TOPOLOGY_PART if topology else 0) | (NVML_HEALTH_PART if health else 0)
        self.enter()
        try:
            with nogil:
                code = nvml_snapshot_take(&self.api, parts, &s, &function)
            if code != NVML_SUCCESS:
                raise NvmlError(function.decode(), code)
            try:
                return snapshot_of(&s)
            finally:
                nvml_snapshot_free(&s)
        finally:
            self.leave()

    def events(self, unsigned long long types=0x8 | 0x2 | 0x1 | 0x100 | 0x4000 | 0x8000):
        """An :class:`EventSet` with all GPUs that there are now, each registered for those of ``types`` that it supports."""
        return EventSet(self, types)

    def close(self):
        """Shuts NVML down, once no call and no event set uses it any more. Never waits for them. Idempotent."""
        self.ended = True
        self.state = State.CLOSED
        if not self.users and self.lock.acquire(False):  # else the one that leaves last, or that is opening it, does it
            try:
                self.stop()
            finally:
                self.lock.release()

    def own(self):
        if self.owner != getpid():
            raise RuntimeError(f"an Nvml made in process {self.owner} was used in its child {getpid()}: make a new one after fork")

    cdef int enter(self) except -1:
        self.own()
        if self.ended:
            raise ValueError("this Nvml is closed")
        if not self.running:
            raise NotReadyError(self.state, self.reason)
        self.users += 1
        return 0

    cdef void leave(self) noexcept:
        self.users -= 1
        if self.ended and not self.users:
            self.stop()

    cdef void stop(self) noexcept:
        cdef bint ours = self.owner == getpid()
        if not self.running:
            return
        self.running = False
        with nogil:
            if ours:
                self.api.shutdown()
                nvml_api_close(&self.api)


@cython.final
cdef class EventSet:
    """Events of the GPUs that there were when it was made. Made by :meth:`Nvml.events`.

    One thread waits; :meth:`wake` and :meth:`close` are for any. A GPU that is lost while one waits is told once, as an event of type LOST, and
    leaves the set; the others stay.
    """

    cdef Nvml nvml
    cdef nvml_watch watch
    cdef bint opened
    cdef bint ended
    cdef bint waiting
    cdef bint woken
    cdef int owner

    def __cinit__(self, Nvml nvml not None, unsigned long long types):
        cdef nvml_return code
        cdef const char *function
        memset(&self.watch, 0, sizeof(self.watch))
        self.owner = getpid()
        nvml.enter()
        self.nvml = nvml
        with nogil:
            code = nvml_watch_open(&self.watch, &nvml.api, types, &function)
        if code != NVML_SUCCESS:
            self.nvml = None
            nvml.leave()
            raise NvmlError(function.decode(), code)
        self.opened = True

    def __dealloc__(self):
        self.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def closed(self):
        """Whether :meth:`close` was called."""
        return self.ended

    @property
    def registered(self):
        """The event types of each GPU of the set, by number; 0 for one that tells nothing: see :attr:`failures`."""
        self.check()
        return {self.watch.gpus[i].index: self.watch.gpus[i].types for i in range(self.watch.count)}

    @property
    def failures(self):
        """The NVML code of each GPU, by number, that could not be registered."""
        self.check()
        return {self.watch.gpus[i].index: self.watch.gpus[i].code for i in range(self.watch.count) if self.watch.gpus[i].code != NVML_SUCCESS}

    def wait(self, timeout=None):
        """The next :class:`Event`, or None when ``timeout`` seconds (None: for ever) are over, after :meth:`wake`, and once closed.

        NvmlError when the set as a whole is of no use any more, as after a driver was unloaded: close it, and open NVML again.
        """
        cdef nvml_happened happened
        cdef nvml_return code
        cdef unsigned int slice_ms
        cdef bint for_ever = timeout is None
        cdef double left, deadline = 0 if for_ever else now() + timeout
        if self.ended:
            return None
        self.check()
        if self.waiting:
            raise RuntimeError("another thread waits on this event set already")
        self.waiting = True
        try:
            while True:
                left = 1.0 if for_ever else max(0.0, deadline - now())
                slice_ms = <unsigned int>min(<double>SLICE_MS, left * 1000 + 0.999)
                with nogil:
                    code = nvml_watch_wait(&self.watch, slice_ms, &happened)
                if self.ended:
                    return None
                if code == NVML_SUCCESS:
                    return event_of(&happened)
                if code != NVML_ERROR_TIMEOUT:
                    raise NvmlError("nvmlEventSetWait_v2", code)
                PyErr_CheckSignals()
                if self.woken:
                    self.woken = False
                    return None
                if not for_ever and now() >= deadline:
                    return None
        finally:
            self.waiting = False
            if self.ended:
                self.release()

    def wake(self):
        """Ends a waiting :meth:`wait` within a tenth of a second, or the next one."""
        self.check()
        self.woken = True

    def close(self):
        """Ends a waiting :meth:`wait` within a tenth of a second and frees the set. Idempotent."""
        self.ended = True
        if not self.waiting:
            self.release()

    cdef int check(self) except -1:
        if self.ended:
            raise ValueError("this event set is closed")
        if self.owner != getpid():
            raise RuntimeError(f"an event set made in process {self.owner} was used in its child {getpid()}: make a new one after fork")
        return 0

    cdef void release(self) noexcept:
        cdef bint ours = self.owner == getpid()
        if not self.opened:
            return
        self.opened = False
        with nogil:
            if ours:
                nvml_watch_close(&self.watch)
        self.nvml.leave()


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef object instance(unsigned int number):
    return None if number == 0xFFFFFFFF else number


cdef object event_of(const nvml_happened *e):
    return Event(LOST if e.lost else e.type, e.data, instance(e.index), text(e.uuid), instance(e.gpu_instance), instance(e.compute_instance))
