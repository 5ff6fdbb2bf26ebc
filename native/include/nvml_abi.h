/* SPDX-License-Identifier: Apache-2.0 */
/* The part of the NVIDIA Management Library's binary interface that the binding calls and the simulator serves.
 *
 * No NVIDIA header is needed to build: layouts and numbers are those of the library's documented C interface, and the
 * assertions below hold them. Every structure that carries a version has its size in it, so a wrong layout is refused
 * by the library rather than misread.
 */
#ifndef DEVICEPLUGIN_NVML_ABI_H
#define DEVICEPLUGIN_NVML_ABI_H

#include <assert.h>
#include <stdint.h>

typedef struct nvml_device_opaque* nvml_device;
typedef struct nvml_gpu_instance_opaque* nvml_gpu_instance;
typedef struct nvml_compute_instance_opaque* nvml_compute_instance;
typedef struct nvml_event_set_opaque* nvml_event_set;
typedef int nvml_return;

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_LIBRARY_NOT_FOUND = 12,
    NVML_ERROR_FUNCTION_NOT_FOUND = 13,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_RESET_REQUIRED = 16,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_MEMORY = 20,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
};

enum {
    NVML_UUID_SIZE = 96,
    NVML_NAME_SIZE = 96,
    NVML_SERIAL_SIZE = 30,
    NVML_VERSION_SIZE = 80,
    NVML_CLUSTER_SIZE = 16,
    NVML_MAX_LINKS =
        36, /* 18 up to Hopper; the library answers INVALID_ARGUMENT from the first link that a GPU lacks */
    NVML_GPU_INSTANCE_PROFILES = 17,
    NVML_COMPUTE_INSTANCE_PROFILES = 8,
    NVML_INVALID_INSTANCE = -1, /* as unsigned: the event is not of one GPU or compute instance */
};

enum {
    NVML_EVENT_SINGLE_BIT_ECC = 0x1,
    NVML_EVENT_DOUBLE_BIT_ECC = 0x2,
    NVML_EVENT_XID = 0x8,
    NVML_EVENT_MIG_CONFIG_CHANGE = 0x100,
    NVML_EVENT_GPU_UNAVAILABLE = 0x4000,
    NVML_EVENT_RECOVERY_ACTION = 0x8000,
};

enum { NVML_MEMORY_ERROR_CORRECTED, NVML_MEMORY_ERROR_UNCORRECTED };
enum { NVML_ECC_VOLATILE, NVML_ECC_AGGREGATE };
enum { NVML_SENSOR_GPU };
enum { NVML_SCOPE_NODE, NVML_SCOPE_SOCKET };
enum { NVML_FIELD_LINK_COUNT = 91 };
enum { NVML_VALUE_UNSIGNED_INT = 1 };
enum {
    NVML_TOPOLOGY_INTERNAL = 0,
    NVML_TOPOLOGY_SINGLE = 10,
    NVML_TOPOLOGY_MULTIPLE = 20,
    NVML_TOPOLOGY_HOSTBRIDGE = 30,
    NVML_TOPOLOGY_NODE = 40,
    NVML_TOPOLOGY_SYSTEM = 50,
};

/* What a `version` member holds: the size of the structure and, in the top byte, the number of its layout. */
#define NVML_STRUCT_VERSION(type, number) ((unsigned int)(sizeof(type) | ((number) << 24u)))

struct nvml_pci {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

/* Before driver 396: the same up to subsystem_id. */
struct nvml_pci_v2 {
    char bus_id[16];
    unsigned int domain, bus, device, device_id, subsystem_id, reserved[4];
};

struct nvml_memory {
    unsigned long long total, free, used;
};

struct nvml_memory_v2 {
    unsigned int version;
    unsigned long long total, reserved, free, used;
};

struct nvml_utilization {
    unsigned int gpu, memory;
};

struct nvml_event_data {
    nvml_device device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance; /* not written by the first version of nvmlEventSetWait */
};

struct nvml_attributes {
    unsigned int multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_instance_slices,
        compute_instance_slices;
    unsigned long long memory_mb;
};

struct nvml_placement {
    unsigned int start, size;
};

struct nvml_gpu_instance_info {
    nvml_device device;
    unsigned int id, profile_id;
    struct nvml_placement placement;
};

struct nvml_compute_instance_info {
    nvml_device device;
    nvml_gpu_instance gpu_instance;
    unsigned int id, profile_id;
    struct nvml_placement placement;
};

struct nvml_gpu_instance_profile {
    unsigned int id, p2p, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    unsigned long long memory_mb;
};

struct nvml_gpu_instance_profile_v2 {
    unsigned int version;
    unsigned int id, p2p, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    unsigned long long memory_mb;
    char name[NVML_NAME_SIZE];
};

struct nvml_gpu_instance_profile_v3 {
    unsigned int version;
    unsigned int id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    unsigned long long memory_mb;
    char name[NVML_NAME_SIZE];
    unsigned int capabilities;
};

struct nvml_compute_instance_profile {
    unsigned int id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
};

struct nvml_compute_instance_profile_v2 {
    unsigned int version;
    unsigned int id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    char name[NVML_NAME_SIZE];
};

struct nvml_compute_instance_profile_v3 {
    unsigned int version;
    unsigned int id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    char name[NVML_NAME_SIZE];
    unsigned int capabilities;
};

struct nvml_fabric {
    unsigned char cluster[NVML_CLUSTER_SIZE];
    nvml_return status;
    unsigned int clique;
    unsigned char state;
};

struct nvml_fabric_v2 {
    unsigned int version;
    unsigned char cluster[NVML_CLUSTER_SIZE];
    nvml_return status;
    unsigned int clique;
    unsigned char state;
    unsigned int health_mask;
};

struct nvml_fabric_v3 {
    unsigned int version;
    unsigned char cluster[NVML_CLUSTER_SIZE];
    nvml_return status;
    unsigned int clique;
    unsigned char state;
    unsigned int health_mask;
    unsigned char health_summary;
};

struct nvml_field_value {
    unsigned int field, scope;
    long long timestamp, latency_us;
    int type;
    nvml_return result;
    union {
        double d;
        unsigned int u;
        unsigned long long ull;
    } value;
};

_Static_assert(sizeof(void*) == 8, "64-bit only, as the library is");
_Static_assert(sizeof(struct nvml_pci) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(struct nvml_pci_v2) == 52, "nvmlPciInfo_v2_t");
_Static_assert(sizeof(struct nvml_memory) == 24, "nvmlMemory_t");
_Static_assert(sizeof(struct nvml_memory_v2) == 40, "nvmlMemory_v2_t");
_Static_assert(sizeof(struct nvml_utilization) == 8, "nvmlUtilization_t");
_Static_assert(sizeof(struct nvml_event_data) == 32, "nvmlEventData_t");
_Static_assert(sizeof(struct nvml_attributes) == 40, "nvmlDeviceAttributes_t");
_Static_assert(sizeof(struct nvml_gpu_instance_info) == 24, "nvmlGpuInstanceInfo_t");
_Static_assert(sizeof(struct nvml_compute_instance_info) == 32, "nvmlComputeInstanceInfo_t");
_Static_assert(sizeof(struct nvml_gpu_instance_profile) == 48, "nvmlGpuInstanceProfileInfo_t");
_Static_assert(sizeof(struct nvml_gpu_instance_profile_v2) == 152, "nvmlGpuInstanceProfileInfo_v2_t");
_Static_assert(sizeof(struct nvml_gpu_instance_profile_v3) == 152, "nvmlGpuInstanceProfileInfo_v3_t");
_Static_assert(sizeof(struct nvml_compute_instance_profile) == 36, "nvmlComputeInstanceProfileInfo_t");
_Static_assert(sizeof(struct nvml_compute_instance_profile_v2) == 136, "nvmlComputeInstanceProfileInfo_v2_t");
_Static_assert(sizeof(struct nvml_compute_instance_profile_v3) == 140, "nvmlComputeInstanceProfileInfo_v3_t");
_Static_assert(sizeof(struct nvml_fabric) == 28, "nvmlGpuFabricInfo_t");
_Static_assert(sizeof(struct nvml_fabric_v2) == 36, "nvmlGpuFabricInfo_v2_t");
_Static_assert(sizeof(struct nvml_fabric_v3) == 40, "nvmlGpuFabricInfo_v3_t");
_Static_assert(sizeof(struct nvml_field_value) == 40, "nvmlFieldValue_t");

#endif
