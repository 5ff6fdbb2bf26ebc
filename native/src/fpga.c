// SPDX-License-Identifier: Apache-2.0
#include "fpga.h"

#include <assert.h>
#include <errno.h>
#include <sys/ioctl.h>

// The kernel copies as many bytes as it knows and refuses an argsz that is less (fme_pr, drivers/fpga/dfl-fme-pr.c):
// the layout must be exactly its own.
static_assert(sizeof(struct dfl_fpga_fme_port_pr) == 24, "struct dfl_fpga_fme_port_pr has 24 bytes");
static_assert(offsetof(struct dfl_fpga_fme_port_pr, port_id) == 8, "port_id comes after argsz and flags");
static_assert(offsetof(struct dfl_fpga_fme_port_pr, buffer_size) == 12, "buffer_size comes after port_id");
static_assert(offsetof(struct dfl_fpga_fme_port_pr, buffer_address) == 16, "buffer_address is the last field");
static_assert(DFL_FPGA_FME_PORT_PR == 0xb680, "DFL_FPGA_FME_PORT_PR is _IO(0xb6, 0x80)");
static_assert(DFL_FPGA_GET_API_VERSION == 0xb600, "DFL_FPGA_GET_API_VERSION is _IO(0xb6, 0)");
static_assert(sizeof(struct fpga_opae_port_pr) == 32, "OPAE's struct has a status of 8 bytes more");
static_assert(offsetof(struct fpga_opae_port_pr, status) == 24, "status comes after buffer_address");
static_assert(FPGA_OPAE_FME_PORT_PR == 0xb580, "OPAE's is _IO(0xb5, 0x80)");
static_assert(sizeof(void*) <= sizeof(uint64_t), "an address fits its field");

int fpga_api_version(int fd, enum fpga_driver driver) {
    int version = ioctl(fd, driver == FPGA_OPAE ? FPGA_OPAE_GET_API_VERSION : DFL_FPGA_GET_API_VERSION);
    return version < 0 ? -errno : version;
}

int fpga_port_pr(int fd, enum fpga_driver driver, uint32_t port, const void* image, size_t size, uint64_t* status) {
    *status = 0;
    if (size == 0) return -EINVAL;         // the driver would program nothing and say that all went well
    if (size > UINT32_MAX) return -EFBIG;  // buffer_size has 32 bits: the rest would be cut off
    if (driver == FPGA_OPAE) {
        struct fpga_opae_port_pr request = {
            .argsz = sizeof request,
            .port_id = port,
            .buffer_size = (uint32_t)size,
            .buffer_address = (uint64_t)(uintptr_t)image,
        };
        int failed = ioctl(fd, FPGA_OPAE_FME_PORT_PR, &request) < 0 ? -errno : 0;
        *status = request.status;
        return failed;
    }
    struct dfl_fpga_fme_port_pr request = {
        .argsz = sizeof request,
        .port_id = port,
        .buffer_size = (uint32_t)size,
        .buffer_address = (uint64_t)(uintptr_t)image,
    };
    return ioctl(fd, DFL_FPGA_FME_PORT_PR, &request) < 0 ? -errno : 0;
}
