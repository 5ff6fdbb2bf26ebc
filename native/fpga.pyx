# SPDX-License-Identifier: Apache-2.0
"""The ioctls that program an FPGA. Each waits for the hardware without the GIL and answers with -errno where it failed: what that means, the caller
knows, who knows which card it was.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "fpga.h" nogil:
    enum fpga_driver:
        FPGA_DFL
        FPGA_OPAE
    int fpga_api_version(int fd, fpga_driver driver)
    int fpga_port_pr(int fd, fpga_driver driver, uint32_t port, const void *image, size_t size, uint64_t *status)

DFL = FPGA_DFL
OPAE = FPGA_OPAE


def api_version(int fd, driver=FPGA_DFL):
    """The version of the driver's API, from 0 on, or -errno: ENOTTY for a file that is not such a device."""
    cdef fpga_driver kind = which(driver)
    cdef int result
    with nogil:
        result = fpga_api_version(fd, kind)
    return result


def port_pr(int fd, uint32_t port, const unsigned char[::1] image not None, driver=FPGA_DFL):
    """Reconfigures ``port`` with ``image``, through the descriptor of the management engine; seconds may pass.

    Returns (0 or -errno, the error bits that OPAE's driver hands back, 0 for DFL). EINVAL for an empty image and EFBIG for one of 4 GiB or more are
    answered without asking the driver. The image may not be resized meanwhile: whoever tries gets BufferError.
    """
    cdef fpga_driver kind = which(driver)
    cdef size_t size = <size_t>image.shape[0]
    cdef const void *data = &image[0] if size else NULL
    cdef uint64_t status = 0
    cdef int result
    with nogil:
        result = fpga_port_pr(fd, kind, port, data, size, &status)
    return result, status


cdef fpga_driver which(driver) except *:
    if driver == FPGA_DFL:
        return FPGA_DFL
    if driver == FPGA_OPAE:
        return FPGA_OPAE
    raise ValueError(f"driver must be DFL or OPAE, not {driver!r}")
