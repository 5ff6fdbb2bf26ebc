# SPDX-License-Identifier: Apache-2.0
"""The C library's allocator, told what kind of process this is: small, many threads that mostly wait, alive for months."""

cdef extern from "<malloc.h>" nogil:
    int M_ARENA_MAX
    int mallopt(int parameter, int value)
    int malloc_trim(size_t pad)


def one_arena() -> bool:
    """Makes all threads share one heap; whether the C library took it. By itself it gives each new thread one of its own, up to eight for each
    processor, which costs memory and gains nothing under the interpreter's lock. To be called before there are threads."""
    return mallopt(M_ARENA_MAX, 1) == 1


def trim() -> bool:
    """Gives back to the system what is free; whether there was anything. The start needs more than what follows."""
    cdef int gave
    with nogil:
        gave = malloc_trim(0)
    return gave == 1
