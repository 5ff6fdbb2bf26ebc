# SPDX-License-Identifier: Apache-2.0
"""The search behind deviceplugin.plugins.gpu.topology: links between GPUs in a form that can be searched without the GIL."""

cimport cython
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "linkset.h" nogil:
    struct linkset:
        uint32_t count
        uint16_t score[64][64]
        uint8_t node[64]
    struct linkset_answer:
        uint64_t chosen
        uint32_t steps
    enum:
        LINKSET_GPUS
        LINKSET_SCORE
        LINKSET_STEPS
    int linkset_choose(const linkset *links, uint64_t available, uint64_t required, uint32_t size, linkset_answer *answer)

cdef extern from *:
    int popcount "__builtin_popcountll"(unsigned long long) nogil

GPUS = LINKSET_GPUS
SCORE = LINKSET_SCORE
STEPS = LINKSET_STEPS


@cython.final
cdef class Links:
    """Links to choose by; never changes, and any number of threads may choose at once.

    ``scores`` has a row for each GPU, symmetric, each score from 0 to ``SCORE``, the diagonal ignored; ``nodes`` a number below ``GPUS`` for each
    GPU's NUMA node. ValueError when these do not fit together, TypeError for what is no integer.
    """

    cdef linkset links

    def __cinit__(self, scores, nodes):
        cdef tuple rows = tuple(scores)
        cdef tuple numbers = tuple(nodes)
        cdef tuple row
        cdef Py_ssize_t count = len(rows)
        cdef Py_ssize_t i, j
        if count > LINKSET_GPUS or len(numbers) != count:
            raise ValueError(f"{count} GPUs on {len(numbers)} nodes: there may be {GPUS} at most, each on one node")
        self.links.count = <uint32_t>count
        for i in range(count):
            value = PyNumber_Index(numbers[i])
            if not 0 <= value < LINKSET_GPUS:
                raise ValueError(f"node {value} of GPU {i} is not from 0 to {GPUS - 1}")
            self.links.node[i] = <uint8_t>value
            row = tuple(rows[i])
            if len(row) != count:
                raise ValueError(f"row {i} has {len(row)} scores for {count} GPUs")
            for j in range(count):
                if i == j:
                    continue
                value = PyNumber_Index(row[j])
                if not 0 <= value <= LINKSET_SCORE:
                    raise ValueError(f"the score of GPUs {i} and {j}, {value}, is not from 0 to {SCORE}")
                if j < i and value != self.links.score[j][i]:
                    raise ValueError(f"the score of GPUs {j} and {i} is {self.links.score[j][i]}, but {value} the other way round")
                self.links.score[i][j] = <uint16_t>value

    def choose(self, uint64_t available, uint64_t required, Py_ssize_t size):
        """The best set of ``size`` GPUs as a mask, and how many partial sets were extended to find it: when fewer than ``STEPS``, none is better.

        ValueError when the question has no answer: GPUs that are not there, required ones that are not available, a size that does not fit.
        """
        cdef linkset_answer answer
        cdef int status
        if self.links.count < LINKSET_GPUS and available >> self.links.count:
            raise ValueError(f"there are {self.links.count} GPUs, but {available:#x} are available")
        if required & ~available:
            raise ValueError(f"{required & ~available:#x} are required, but not available")
        if not popcount(required) <= size <= popcount(available):
            raise ValueError(f"{size} GPUs cannot be chosen of {popcount(available)} with {popcount(required)} required")
        if popcount(available & ~required) > 8:
            with nogil:
                status = linkset_choose(&self.links, available, required, <uint32_t>size, &answer)
        else:  # a few microseconds: less than getting the GIL back may take
            status = linkset_choose(&self.links, available, required, <uint32_t>size, &answer)
        if status:
            raise MemoryError
        return answer.chosen, answer.steps
