// SPDX-License-Identifier: Apache-2.0
// The ioctls of FPGA cards that we make: of the kernel's DFL driver, and of the OPAE driver out of the tree, which came
// before it.
#ifndef DEVICEPLUGIN_FPGA_H
#define DEVICEPLUGIN_FPGA_H

#include <linux/fpga-dfl.h>
#include <stddef.h>
#include <stdint.h>

// Which driver a descriptor belongs to.
enum fpga_driver { FPGA_DFL, FPGA_OPAE };

// OPAE's own header is not installed with the kernel's. This is its struct fpga_fme_port_pr: the kernel's, and where
// the driver puts the hardware's error bits behind it.
struct fpga_opae_port_pr {
    uint32_t argsz;
    uint32_t flags;
    uint32_t port_id;
    uint32_t buffer_size;
    uint64_t buffer_address;
    uint64_t status;
};

#define FPGA_OPAE_MAGIC 0xB5
#define FPGA_OPAE_GET_API_VERSION _IO(FPGA_OPAE_MAGIC, 0)
#define FPGA_OPAE_FME_PORT_PR _IO(FPGA_OPAE_MAGIC, 0x80)

// The version of the driver's API, from 0 on, or -errno.
int fpga_api_version(int fd, enum fpga_driver driver);

// Reconfigures one port with an image of `size` bytes; blocks until the hardware is done. Returns 0 or -errno, and in
// `status` what OPAE's hardware said went wrong (0 for DFL, whose fpga manager tells it in sysfs).
int fpga_port_pr(int fd, enum fpga_driver driver, uint32_t port, const void* image, size_t size, uint64_t* status);

#endif
