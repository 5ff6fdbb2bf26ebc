# SPDX-License-Identifier: Apache-2.0
"""The search behind deviceplugin.allocation: a list of devices in a form that can be searched without the GIL."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from "allocation.h" nogil:
    struct allocation_table:
        size_t units
        size_t slots
        const uint32_t *first
        const uint32_t *members
        const uint64_t *nodes
        uint64_t unplaced
    enum allocation_policy:
        ALLOCATION_ANY
        ALLOCATION_SPREAD
        ALLOCATION_PACK
    enum:
        ALLOCATION_FREE
        ALLOCATION_OURS
    Py_ssize_t allocation_choose(const allocation_table *table, allocation_policy policy, uint8_t *state, size_t need, uint32_t *chosen)

ANY = ALLOCATION_ANY
SPREAD = ALLOCATION_SPREAD
PACK = ALLOCATION_PACK


@cython.final
cdef class Slots:
    """Slots to choose from; never changes, and any number of threads may choose at once.

    ``ids`` in the order in which they are preferred, ``units`` the number of each one's unit (numbered from 0, without gaps), ``nodes`` for each unit
    a mask of NUMA nodes, ``unplaced`` the highest bit in any, which means "not known where". ValueError when these do not fit together.
    """

    cdef tuple ids
    cdef dict rank
    cdef allocation_table table
    cdef uint32_t *first
    cdef uint32_t *members
    cdef uint64_t *nodes

    def __cinit__(self, ids, units, nodes, uint64_t unplaced):
        cdef tuple of_slot = tuple(units)
        cdef tuple masks = tuple(nodes)
        cdef size_t slots, count, i, unit
        self.ids = tuple(ids)
        self.rank = {id_: i for i, id_ in enumerate(self.ids)}
        slots = <size_t>len(self.ids)
        count = <size_t>len(masks)
        if <size_t>len(of_slot) != slots or <size_t>len(self.rank) != slots or slots >= 0xFFFFFFFF:
            raise ValueError("every slot needs an id of its own and a unit")
        self.first = <uint32_t *>calloc(count + 2, sizeof(uint32_t))
        self.members = <uint32_t *>calloc(slots + 1, sizeof(uint32_t))
        self.nodes = <uint64_t *>calloc(count + 1, sizeof(uint64_t))
        if self.first == NULL or self.members == NULL or self.nodes == NULL:
            raise MemoryError
        for i in range(count):
            self.nodes[i] = masks[i]
            if not self.nodes[i]:
                raise ValueError(f"unit {i} is on no node")
        # A counting sort of the slots by unit: first[unit + 1] starts as where the unit begins, and ends as where it ends.
        for i in range(slots):
            unit = of_slot[i]
            if unit >= count:
                raise ValueError(f"slot {i} is on unit {unit} of {count}")
            self.first[unit + 2] += 1
        for i in range(2, count + 2):
            self.first[i] += self.first[i - 1]
        for i in range(slots):
            unit = of_slot[i]
            self.members[self.first[unit + 1]] = <uint32_t>i
            self.first[unit + 1] += 1
        self.table.units = count
        self.table.slots = slots
        self.table.first = self.first
        self.table.members = self.members
        self.table.nodes = self.nodes
        self.table.unplaced = unplaced

    def __dealloc__(self):
        free(self.first)
        free(self.members)
        free(self.nodes)

    def choose(self, int policy, available, required, Py_ssize_t size):
        """The ``required`` ids in order, then as the policy picks them as many of the ``available`` as make ``size`` in all, or as there are.
        Ids that are no slot's are passed over."""
        cdef uint8_t *state = <uint8_t *>calloc(self.table.slots + 1, 1)
        cdef uint32_t *chosen = <uint32_t *>calloc(self.table.slots + 1, sizeof(uint32_t))
        cdef Py_ssize_t count
        cdef Py_ssize_t ours = 0
        cdef size_t i, need
        cdef list answer = []
        try:
            if state == NULL or chosen == NULL:
                raise MemoryError
            for id_ in available:
                number = self.rank.get(id_)
                if number is not None:
                    state[<size_t>number] = ALLOCATION_FREE
            for id_ in required:
                number = self.rank.get(id_)
                if number is not None:
                    state[<size_t>number] = ALLOCATION_OURS
                    ours += 1
            if ours:
                for i in range(self.table.slots):
                    if state[i] == ALLOCATION_OURS:
                        answer.append(self.ids[i])
            ours = len(answer)
            need = <size_t>(size - ours) if size > ours else 0
            with nogil:
                count = allocation_choose(&self.table, <allocation_policy>policy, state, need, chosen)
            if count < 0:
                raise MemoryError
            for i in range(<size_t>count):
                answer.append(self.ids[chosen[i]])
            return answer
        finally:
            free(state)
            free(chosen)
