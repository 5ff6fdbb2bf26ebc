# SPDX-License-Identifier: Apache-2.0
"""What is behind deviceplugin.sysfs: many small files, directories or links looked at in one go, without the GIL.

``root`` stands before each path: empty, or a directory with a slash at its end. The answers come in the order of the paths; where there is none, a
number of errno says why: EINVAL for a path with a NUL in it, EILSEQ for one that no file can have.
"""

import os

from cpython.exc cimport PyErr_CheckSignals
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EILSEQ
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strlen

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(unicode text)
    const char *PyUnicode_AsUTF8AndSize(unicode text, Py_ssize_t *size) except NULL
    int PyBytes_AsStringAndSize(bytes text, char **at, Py_ssize_t *size) except -1
    unicode PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t size)

cdef extern from "sysfs.h" nogil:
    struct sysfs_text:
        const char *at
        size_t size
    struct sysfs_buffer:
        char *data
        size_t size
        size_t room
    struct sysfs_answer:
        size_t start
        size_t size
        int error
    struct sysfs_batch:
        sysfs_text root
        const sysfs_text *path
        sysfs_answer *answer
        size_t count
        size_t done
        sysfs_buffer found
    enum sysfs_status:
        SYSFS_DONE
        SYSFS_INTERRUPTED
        SYSFS_NO_MEMORY
    sysfs_status sysfs_read(sysfs_batch *batch, size_t limit)
    sysfs_status sysfs_list(sysfs_batch *batch)
    sysfs_status sysfs_resolve(sysfs_batch *batch)

cdef enum Look:
    READ
    LIST
    RESOLVE


def read(str root not None, paths, size_t limit):
    """At most ``limit`` bytes of each file, from one read(2), as text without the white space and NULs at its end: str or errno for each path.

    Bytes that are not UTF-8 become U+FFFD. For a directory EISDIR.
    """
    return look_at(root, paths, READ, limit)


def names(str root not None, paths):
    """The names in each directory, runs of digits by value and before all else: list of str, or errno, for each path."""
    return look_at(root, paths, LIST, 0)


def resolve(str root not None, paths):
    """Where each path leads once every link is followed, absolute ones from the root on: str or errno for each path. The end need not exist."""
    return look_at(root, paths, RESOLVE, 0)


cdef list look_at(str root, paths, Look look, size_t limit):
    cdef list kept = []  # whatever the paths point into
    cdef sysfs_batch batch
    cdef sysfs_text *texts = NULL
    cdef sysfs_status status
    cdef size_t i
    if isinstance(paths, str):
        raise TypeError(f"paths must be several, not the one text {paths!r}")
    cdef tuple of_host = tuple(paths)
    memset(&batch, 0, sizeof(batch))
    batch.count = <size_t>len(of_host)
    try:
        texts = <sysfs_text *>calloc(batch.count + 1, sizeof(sysfs_text))
        batch.answer = <sysfs_answer *>calloc(batch.count + 1, sizeof(sysfs_answer))
        if texts == NULL or batch.answer == NULL:
            raise MemoryError
        if point_to(&batch.root, root, kept) or strlen(batch.root.at) != batch.root.size:
            raise ValueError(f"no directory can have the name {root!r}")
        for i in range(batch.count):
            batch.answer[i].error = point_to(&texts[i], of_host[i], kept)
        batch.path = texts
        while True:
            with nogil:
                if look == READ:
                    status = sysfs_read(&batch, limit)
                elif look == LIST:
                    status = sysfs_list(&batch)
                else:
                    status = sysfs_resolve(&batch)
            if status == SYSFS_DONE:
                break
            if status == SYSFS_NO_MEMORY:
                raise MemoryError
            PyErr_CheckSignals()
        return [answer_of(&batch, i, look) for i in range(batch.count)]
    finally:
        free(texts)
        free(batch.answer)
        free(batch.found.data)


cdef int point_to(sysfs_text *text, unicode path, list kept) except -1:
    """Lets ``text`` be the bytes of a path, which live as long as the path and ``kept``. 0, or why it has none."""
    cdef Py_ssize_t size = 0
    cdef char *at = NULL
    cdef bytes encoded
    if path is None:
        raise TypeError("a path must be str, not None")
    if PyUnicode_IS_ASCII(path):
        text.at = PyUnicode_AsUTF8AndSize(path, &size)
    else:
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError:
            return EILSEQ
        kept.append(encoded)
        PyBytes_AsStringAndSize(encoded, &at, &size)
        text.at = at
    text.size = <size_t>size
    return 0


cdef object answer_of(const sysfs_batch *batch, size_t i, Look look):
    cdef const sysfs_answer *answer = &batch.answer[i]
    cdef const char *at = batch.found.data
    cdef list found
    cdef size_t start, size
    if answer.error:
        return answer.error
    if answer.size == 0:  # the buffer may be none at all
        return [] if look == LIST else ""
    if look == READ:
        return PyUnicode_DecodeUTF8(at + answer.start, <Py_ssize_t>answer.size, "replace")
    if look == RESOLVE:
        return PyUnicode_DecodeFSDefaultAndSize(at + answer.start, <Py_ssize_t>answer.size)
    found = []
    start = answer.start
    while start < answer.start + answer.size:
        size = strlen(at + start)
        found.append(PyUnicode_DecodeFSDefaultAndSize(at + start, <Py_ssize_t>size))
        start += size + 1
    return found
