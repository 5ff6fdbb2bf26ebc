# SPDX-License-Identifier: Apache-2.0
"""The wire bytes of a ListAndWatchResponse, as protobuf would write them, without a message object for each device."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

# The tags of proto/deviceplugin_v1beta1.proto: field number << 3 | wire type.
cdef enum:
    DEVICES = 0x0A
    DEVICE_ID = 0x0A
    DEVICE_HEALTH = 0x12
    DEVICE_TOPOLOGY = 0x1A
    TOPOLOGY_NODES = 0x0A
    NODE_ID = 0x08

# The kubelet compares with "Healthy" and takes anything else as unhealthy.
cdef const char *HEALTHY = b"Healthy"
cdef const char *UNHEALTHY = b"Unhealthy"

cdef struct Row:
    const char *id
    size_t id_size
    size_t node_count
    size_t topology_size
    size_t size
    bint healthy


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline uint8_t *put_varint(uint8_t *at, uint64_t value) noexcept nogil:
    while value >= 0x80:
        at[0] = <uint8_t>(value & 0x7F) | 0x80
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline uint8_t *put_head(uint8_t *at, uint8_t tag, size_t size) noexcept nogil:
    at[0] = tag
    return put_varint(at + 1, size)


cdef inline uint8_t *put_text(uint8_t *at, uint8_t tag, const char *text, size_t size) noexcept nogil:
    at = put_head(at, tag, size)
    memcpy(at, text, size)
    return at + size


cdef inline size_t framed(size_t size) noexcept nogil:
    """The size of a length-delimited field below number 16 that holds ``size`` bytes."""
    return 1 + varint_size(size) + size


cdef inline size_t node_size(int64_t node) noexcept nogil:
    """The size of a NUMANode: a field that has its default, 0, is not written."""
    return 0 if node == 0 else 1 + varint_size(<uint64_t>node)


cdef void write(uint8_t *at, const Row *rows, size_t count, const int64_t *nodes) noexcept nogil:
    cdef size_t i, k
    for i in range(count):
        at = put_head(at, DEVICES, rows[i].size)
        if rows[i].id_size:
            at = put_text(at, DEVICE_ID, rows[i].id, rows[i].id_size)
        if rows[i].healthy:
            at = put_text(at, DEVICE_HEALTH, HEALTHY, 7)
        else:
            at = put_text(at, DEVICE_HEALTH, UNHEALTHY, 9)
        if rows[i].node_count:
            at = put_head(at, DEVICE_TOPOLOGY, rows[i].topology_size)
            for k in range(rows[i].node_count):
                at = put_head(at, TOPOLOGY_NODES, node_size(nodes[k]))
                if nodes[k]:
                    at[0] = NODE_ID
                    at = put_varint(at + 1, <uint64_t>nodes[k])
            nodes += rows[i].node_count


cdef class _Measured:
    """The rows of one list with the sizes of all parts. Holds what the rows point into, so that they can be written without the GIL."""

    cdef tuple ids
    cdef Row *rows
    cdef int64_t *nodes
    cdef size_t count
    cdef size_t size

    def __cinit__(self, ids, healthy, numa):
        cdef tuple flags = tuple(healthy)
        cdef tuple places = tuple(numa)
        cdef size_t i, at = 0, total = 0
        cdef Py_ssize_t id_size
        cdef Row *row
        cdef tuple place
        self.ids = tuple(ids)
        self.count = len(self.ids)
        if <size_t>len(flags) != self.count or <size_t>len(places) != self.count:
            raise ValueError(f"{self.count} ids, {len(flags)} healths and {len(places)} sets of NUMA nodes: one of each is needed for every device")
        for place in places:
            total += <size_t>len(place)
        self.rows = <Row *>malloc((self.count + 1) * sizeof(Row))
        self.nodes = <int64_t *>malloc((total + 1) * sizeof(int64_t))
        if self.rows == NULL or self.nodes == NULL:
            raise MemoryError
        for i in range(self.count):
            row = &self.rows[i]
            row.id = PyUnicode_AsUTF8AndSize(self.ids[i], &id_size)
            row.id_size = <size_t>id_size
            row.healthy = bool(flags[i])
            row.size = framed(7 if row.healthy else 9)
            if id_size:
                row.size += framed(row.id_size)
            place = places[i]
            row.node_count = <size_t>len(place)
            row.topology_size = 0
            if row.node_count:
                for node in place:
                    self.nodes[at] = node
                    row.topology_size += framed(node_size(self.nodes[at]))
                    at += 1
                row.size += framed(row.topology_size)
            self.size += framed(row.size)

    def __dealloc__(self):
        free(self.rows)
        free(self.nodes)


def encode_list(ids, healthy, numa):
    """The bytes of a ListAndWatchResponse with one device for each of ``ids``, in their order.

    ``healthy`` and ``numa`` (the NUMA nodes of each device; none leaves the topology out) are as long as ``ids``. Raises ValueError when they are
    not, UnicodeEncodeError for an id that UTF-8 cannot hold, OverflowError for a node beyond 64 bits.
    """
    cdef _Measured list_ = _Measured(ids, healthy, numa)
    cdef bytes wire = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>list_.size)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(wire)
    with nogil:
        write(at, list_.rows, list_.count, list_.nodes)
    return wire
