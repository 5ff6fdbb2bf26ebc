/* SPDX-License-Identifier: Apache-2.0 */
/* All that NVML says of a machine at one time, taken in one call without the interpreter's lock. */
#ifndef DEVICEPLUGIN_NVML_SNAPSHOT_H
#define DEVICEPLUGIN_NVML_SNAPSHOT_H

#include "nvml_api.h"

enum {
    NVML_TOPOLOGY_PART = 1, /* common ancestors, links, fabric */
    NVML_HEALTH_PART = 2,   /* ECC, remapped rows, retired pages, temperature, power, utilisation */
    NVML_MAX_FAILURES = 48,
    NVML_MAX_MIG = 64,
    NVML_NUMA_WORDS = 4,
    NVML_NO_LEVEL = 255,
};

struct nvml_failure {
    const char* function;
    nvml_return code;
};

/* In the records below a number of -1 and an empty text stand for what could not be had; the failure that says why is
 * listed. */
struct nvml_link {
    int index, active, type;
    long long version;
    char remote[32];
};

struct nvml_mig {
    char uuid[NVML_UUID_SIZE], name[NVML_NAME_SIZE], profile[64];
    unsigned int index, gpu_instance, compute_instance;
    struct nvml_attributes attributes;
};

struct nvml_gpu {
    nvml_device handle;
    unsigned int index;
    int lost;
    size_t failure_count, link_count, mig_count;
    struct nvml_failure failures[NVML_MAX_FAILURES];
    char uuid[NVML_UUID_SIZE], name[NVML_NAME_SIZE], serial[NVML_SERIAL_SIZE], bus_id[32];
    long long pci_device_id, pci_subsystem_id, minor, brand, architecture, major, revision, compute_mode;
    long long memory_total, memory_free, memory_used, memory_reserved;
    unsigned long numa[NVML_NUMA_WORDS];
    long long mig_mode, mig_pending, max_mig, event_types;
    long long fabric_state, fabric_status, fabric_clique, fabric_health; /* health: -1 from a library without it */
    unsigned char fabric_cluster[NVML_CLUSTER_SIZE];
    long long ecc_mode, ecc_pending, ecc[2][2]; /* [corrected, uncorrected][volatile, aggregate] */
    long long remapped_corrected, remapped_uncorrected, remap_pending, remap_failure, retired_pending;
    long long temperature, power, power_limit, use_gpu, use_memory;
    struct nvml_link links[NVML_MAX_LINKS];
    struct nvml_mig* migs;
};

struct nvml_snapshot {
    char driver[NVML_VERSION_SIZE], nvml[NVML_VERSION_SIZE];
    long long cuda;
    size_t failure_count, count;
    struct nvml_failure failures[NVML_MAX_FAILURES];
    struct nvml_gpu* gpus;
    unsigned char* ancestors; /* count * count levels, or NULL */
};

/* Fills `out`, which nvml_snapshot_free() empties. NVML_SUCCESS, or the code that left nothing to look at: GPUs that
 * fail are in the snapshot with their failures. `*function` is then the one that failed. */
nvml_return nvml_snapshot_take(const struct nvml_api* api, unsigned int parts, struct nvml_snapshot* out,
                               const char** function);
void nvml_snapshot_free(struct nvml_snapshot* snapshot);

/* nvml_mig.c: the MIG devices of a GPU. */
int nvml_note(struct nvml_gpu* gpu, const char* function, nvml_return code);
void nvml_take_migs(const struct nvml_api* api, struct nvml_gpu* gpu);

/* Asks a function about a GPU: true when it answered. A failure is noted, and once the GPU is lost it is asked no more,
 * since each of these calls may take its time to find that out again. */
#define NVML_ASK(api, gpu, member, symbol, ...) \
    (!(gpu)->lost && nvml_note((gpu), #symbol, NVML_CALL((api), member, __VA_ARGS__)))

/* The same for a text, which stays empty without an answer. The end is set here rather than trusted. */
#define NVML_ASK_TEXT(api, gpu, member, symbol, handle, text)                            \
    do {                                                                                 \
        if (!NVML_ASK(api, gpu, member, symbol, handle, text, sizeof text)) text[0] = 0; \
        text[sizeof text - 1] = 0;                                                       \
    } while (0)

#endif
