# SPDX-License-Identifier: Apache-2.0
"""The search behind deviceplugin.plugins.llc.placing: which slots a container should get, and where its ways go.

It holds the GIL: an answer takes microseconds, less than getting the GIL back may.
"""

cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

cdef extern from "llc.h" nogil:
    struct llc_slots:
        uint32_t available
        uint32_t required
        uint32_t room
        uint32_t chosen
    struct llc_ways:
        uint32_t pool
        uint32_t count
        uint32_t live[32]
        uint32_t fixed
    struct llc_plan:
        uint32_t mask
        uint32_t moved[32]
    enum:
        LLC_WAYS
        LLC_DOMAINS
    void llc_prefer(llc_slots *caches, uint32_t count, uint32_t size)
    int llc_place(const llc_ways *ways, uint32_t want, uint32_t ideal, bint move, bint sparse, llc_plan *plan)
    uint32_t llc_longest_run(uint32_t mask)

cdef extern from *:
    int popcount "__builtin_popcount"(unsigned int) nogil

WAYS = LLC_WAYS
"""The ways of a cache at most."""
DOMAINS = LLC_DOMAINS


def longest_run(uint32_t mask):
    """The length of the longest run of bits that are set."""
    return llc_longest_run(mask)


def place(uint32_t pool, live, fixed, Py_ssize_t want, uint32_t ideal, bint move, bint sparse):
    """A place for ``want`` ways in a cache: the mask, and the masks that the groups which are there have then; None where there is no place.

    ``live`` are the masks of those groups, disjoint, and ``fixed`` has for each whether it must stay. ``ideal`` is where the ways should best be.
    Groups are moved only with ``move``; a mask has holes only with ``sparse``. ValueError for masks that overlap, are empty or too many.
    """
    cdef llc_ways ways
    cdef llc_plan plan
    cdef tuple masks = tuple(live)
    cdef tuple stay = tuple(fixed)
    cdef uint32_t mask, taken = 0
    cdef Py_ssize_t i, count = len(masks)
    if count > LLC_WAYS or len(stay) != count:
        raise ValueError(f"{count} groups, {len(stay)} marks: a cache has {WAYS} groups at most, and each has a mark")
    if not 1 <= want <= LLC_WAYS:
        raise ValueError(f"{want} ways are not from 1 to {WAYS}")
    ways.pool = pool
    ways.count = <uint32_t>count
    ways.fixed = 0
    for i in range(count):
        mask = masks[i]
        if not mask or mask & taken:
            raise ValueError(f"mask {mask:#x} of group {i} is empty or overlaps another's")
        taken |= mask
        ways.live[i] = mask
        if stay[i]:
            ways.fixed |= <uint32_t>1 << i
    if llc_place(&ways, <uint32_t>want, ideal, move, sparse, &plan):
        return None
    return plan.mask, [plan.moved[i] for i in range(count)]


@cython.final
cdef class Slots:
    """The slots of a machine, to choose from by their ids; never changes.

    ``caches`` has a list of ids for each cache, slot 0 first, at most ``WAYS``. ValueError when an id is there twice.
    """

    cdef dict places
    cdef list ids
    cdef Py_ssize_t count

    def __cinit__(self, caches):
        cdef Py_ssize_t i, j
        self.ids = [list(cache) for cache in caches]
        self.count = len(self.ids)
        if self.count > LLC_DOMAINS:
            raise ValueError(f"{self.count} caches: there may be {DOMAINS}")
        self.places = {}
        for i in range(self.count):
            if len(self.ids[i]) > LLC_WAYS:
                raise ValueError(f"cache {i} has {len(self.ids[i])} slots: there may be {WAYS}")
            for j in range(len(self.ids[i])):
                if self.ids[i][j] in self.places:
                    raise ValueError(f"the id {self.ids[i][j]!r} is there twice")
                self.places[self.ids[i][j]] = i * LLC_WAYS + j

    def choose(self, list available, list required, Py_ssize_t size, list room):
        """The ids to take: ``size`` in all, the required ones among them. ``room`` says of each cache how many slots fit into its longest free run.

        None where the question has no answer: ids that are unknown, more required than wanted, fewer available than wanted. A required id counts as
        available.
        """
        cdef llc_slots *caches
        cdef Py_ssize_t place, i, j, total = 0, needed = 0
        cdef list answer = []
        if len(room) != self.count:
            raise ValueError(f"room of {len(room)} caches, there are {self.count}")
        caches = <llc_slots *>calloc(self.count + 1, sizeof(llc_slots))
        if caches == NULL:
            raise MemoryError
        try:
            for one in available:
                place = self.places.get(one, -1)
                if place < 0:
                    return None
                caches[place // LLC_WAYS].available |= <uint32_t>1 << (place % LLC_WAYS)
            for one in required:
                place = self.places.get(one, -1)
                if place < 0:
                    return None
                caches[place // LLC_WAYS].available |= <uint32_t>1 << (place % LLC_WAYS)
                caches[place // LLC_WAYS].required |= <uint32_t>1 << (place % LLC_WAYS)
            for i in range(self.count):
                caches[i].room = room[i]
                total += popcount(caches[i].available)
                needed += popcount(caches[i].required)
            if not needed <= size <= total:
                return None
            llc_prefer(caches, <uint32_t>self.count, <uint32_t>size)
            for i in range(self.count):
                if caches[i].chosen:
                    answer += [self.ids[i][j] for j in range(LLC_WAYS) if caches[i].chosen >> j & 1]
            return answer
        finally:
            free(caches)
