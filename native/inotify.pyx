# SPDX-License-Identifier: Apache-2.0
"""inotify(7): waits without the GIL, can be woken and closed from another thread, and is refused in a forked child."""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EBADF, EINTR, EMFILE, ENOSPC, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, getpid, read

cdef extern from "Python.h":
    unicode PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t size)

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t limit)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
        POLLNVAL
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)
    int eventfd_read(int fd, uint64_t *value)
    int eventfd_write(int fd, uint64_t value)

cdef extern from "<sys/inotify.h>" nogil:
    enum:
        C_CLOEXEC "IN_CLOEXEC"
        C_NONBLOCK "IN_NONBLOCK"
        C_ATTRIB "IN_ATTRIB"
        C_MODIFY "IN_MODIFY"
        C_CLOSE_WRITE "IN_CLOSE_WRITE"
        C_MOVED_FROM "IN_MOVED_FROM"
        C_MOVED_TO "IN_MOVED_TO"
        C_CREATE "IN_CREATE"
        C_DELETE "IN_DELETE"
        C_DELETE_SELF "IN_DELETE_SELF"
        C_MOVE_SELF "IN_MOVE_SELF"
        C_UNMOUNT "IN_UNMOUNT"
        C_Q_OVERFLOW "IN_Q_OVERFLOW"
        C_IGNORED "IN_IGNORED"
        C_ONLYDIR "IN_ONLYDIR"
    struct inotify_event:
        int32_t wd
        uint32_t mask
        uint32_t cookie
        uint32_t len
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, uint32_t mask)
    int inotify_rm_watch(int fd, int wd)

ATTRIB = C_ATTRIB
MODIFY = C_MODIFY
CLOSE_WRITE = C_CLOSE_WRITE
MOVED_FROM = C_MOVED_FROM
MOVED_TO = C_MOVED_TO
CREATE = C_CREATE
DELETE = C_DELETE
DELETE_SELF = C_DELETE_SELF
MOVE_SELF = C_MOVE_SELF
UNMOUNT = C_UNMOUNT
Q_OVERFLOW = C_Q_OVERFLOW
IGNORED = C_IGNORED
ONLYDIR = C_ONLYDIR

# Room for some 500 events; at least sizeof(struct inotify_event) + NAME_MAX + 1 is needed. Small enough for the stack of any thread.
cdef enum:
    BUFFER_SIZE = 16384

# How long one poll lasts at most: poll counts milliseconds in an int.
cdef double LONGEST = 86400.0


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef list parse_events(const char *data, size_t size):
    cdef inotify_event head
    cdef size_t at = 0
    cdef list events = []
    while at < size:
        if size - at < sizeof(inotify_event):
            raise ValueError(f"{size - at} bytes are too few for an inotify event")
        memcpy(&head, data + at, sizeof(inotify_event))
        at += sizeof(inotify_event)
        if size - at < head.len:
            raise ValueError(f"an inotify event has a name of {head.len} bytes where {size - at} are left")
        events.append((head.wd, head.mask, head.cookie, PyUnicode_DecodeFSDefaultAndSize(data + at, <Py_ssize_t>strnlen(data + at, head.len))))
        at += head.len
    return events


def parse(bytes data not None):
    """The events in what one read(2) of an inotify descriptor gave: (wd, mask, cookie, name). ValueError when the last is cut off."""
    return parse_events(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))


@cython.final
cdef class Inotify:
    """One inotify instance.

    Any thread may call any method; one that waits in :meth:`read` keeps the descriptors open until it has left, so that :meth:`close` never makes it
    wait on a descriptor that means something else by then. A forked child shares the queue with its parent and would steal events from it: there,
    every method but :meth:`close` raises RuntimeError. Once closed, :meth:`read` returns None and the others raise ValueError.
    """

    cdef int fd
    cdef int waker
    cdef int readers
    cdef bint ended
    cdef int owner

    def __cinit__(self):
        self.fd = self.waker = -1
        self.owner = getpid()
        self.fd = inotify_init1(C_NONBLOCK | C_CLOEXEC)
        if self.fd < 0:
            raise failure(errno, "no inotify instance", None)
        self.waker = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.waker < 0:
            raise failure(errno, "no eventfd", None)

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

    def add(self, path, unsigned int mask):
        """Watches ``path`` for the events in ``mask`` and returns the watch descriptor: the one it has if its inode is watched already, with the
        new mask. OSError says why not; for ENOSPC, which limit to raise.
        """
        cdef bytes name = os.fsencode(path)
        cdef const char *c_name = name
        cdef int wd, number
        if b"\0" in name:
            raise ValueError(f"a path with a NUL byte: {path!r}")
        self.check()
        self.readers += 1  # other threads may close meanwhile
        try:
            with nogil:
                wd = inotify_add_watch(self.fd, c_name, mask)
                number = errno
            if wd < 0:
                raise failure(number, "cannot watch", path)
        finally:
            self.leave()
        return wd

    def remove(self, int wd):
        """Ends a watch; an IGNORED event follows. OSError (EINVAL) when there is no such watch any more."""
        self.check()
        if inotify_rm_watch(self.fd, wd) < 0:
            raise failure(errno, f"cannot end watch {wd}", None)

    def read(self, timeout=None, int also=-1):
        """Waits up to ``timeout`` seconds (None: for ever) for events and returns them as (wd, mask, cookie, name), the name of the entry in the
        watched directory, or empty for the watched file itself.

        Returns an empty list when the time is up, after :meth:`wake`, and as soon as the descriptor ``also`` is readable, and None once closed. An
        event with Q_OVERFLOW (and wd -1) says that the kernel dropped some.
        """
        cdef double deadline, left
        cdef bint for_ever = timeout is None
        cdef pollfd[3] fds
        cdef int ready, wait_ms
        cdef int number = 0
        cdef Py_ssize_t size
        cdef uint64_t count
        cdef char[BUFFER_SIZE] buffer
        deadline = 0 if for_ever else now() + timeout
        if self.ended:
            return None
        self.check()
        self.readers += 1
        try:
            fds[0].fd, fds[1].fd, fds[2].fd = self.fd, self.waker, also  # poll skips a negative descriptor
            fds[0].events = fds[1].events = fds[2].events = POLLIN
            while True:
                left = LONGEST if for_ever else min(LONGEST, max(0.0, deadline - now()))
                wait_ms = <int>(left * 1000 + 0.999)  # never early: a caller would spin through the last millisecond
                with nogil:
                    ready = poll(fds, 3, wait_ms)
                    number = errno
                if ready < 0 and number != EINTR:
                    raise failure(number, "poll", None)
                if ready < 0:
                    PyErr_CheckSignals()
                    continue
                if self.ended:
                    return None
                if fds[1].revents:
                    eventfd_read(self.waker, &count)
                if fds[0].revents:
                    with nogil:
                        size = read(self.fd, buffer, BUFFER_SIZE)
                        number = errno
                    if size >= 0:
                        return parse_events(buffer, <size_t>size)
                    if number != EAGAIN and number != EINTR:  # EAGAIN: another thread was first
                        raise failure(number, "cannot read inotify events", None)
                if fds[2].revents & POLLNVAL:
                    raise failure(EBADF, f"cannot wait on descriptor {also}", None)
                if fds[1].revents or fds[2].revents or (not for_ever and now() >= deadline):
                    return []
        finally:
            self.leave()

    def wake(self):
        """Ends one waiting :meth:`read`, or the next one if none waits."""
        self.check()
        self.signal()

    def close(self):
        """Ends every waiting :meth:`read` and gives the descriptors back. Idempotent."""
        self.ended = True
        if self.readers and self.owner == getpid():
            self.signal()
        else:
            self.release()

    cdef int check(self) except -1:
        if self.ended:
            raise ValueError("this inotify instance is closed")
        if self.owner != getpid():
            raise RuntimeError(f"an inotify instance made in process {self.owner} was used in its child {getpid()}: make a new one after fork")
        return 0

    cdef void leave(self) noexcept:
        self.readers -= 1
        if self.ended and not self.readers:
            self.release()

    cdef void signal(self) noexcept:
        eventfd_write(self.waker, 1)  # fails only when the counter is full, and then the descriptor is readable already

    cdef void release(self) noexcept:
        if self.fd >= 0:
            close(self.fd)
        if self.waker >= 0:
            close(self.waker)
        self.fd = self.waker = -1


cdef object failure(int number, str what, path):
    """An OSError. Where a limit of the kernel was reached its own words mislead ("No space left on device"): this says which."""
    cdef str hint = os.strerror(number)
    if number == ENOSPC:
        hint = "the limit fs.inotify.max_user_watches is reached: raise it with sysctl"
    elif number == EMFILE:
        hint = "the limit fs.inotify.max_user_instances, or that of open files, is reached: raise it with sysctl or ulimit -n"
    return OSError(number, f"{what}: {hint}") if path is None else OSError(number, f"{what}: {hint}", path)
