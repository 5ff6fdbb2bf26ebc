/* SPDX-License-Identifier: Apache-2.0 */
/* A libnvidia-ml.so.1 without a GPU: what a scenario file says, said through NVML's C interface.
 *
 * scenario.c reads the file, state.c keeps the current one and gives out handles, the others are the exported
 * functions.
 */
#ifndef DEVICEPLUGIN_NVML_SIM_H
#define DEVICEPLUGIN_NVML_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nvml_abi.h"

#define EXPORT __attribute__((visibility("default")))

/* Bounds on what a file may ask for, so that a bad one is an error and never a machine without memory. */
enum {
    MAX_GPUS = 512,
    MAX_MIGS = 4096,
    MAX_LINKS = 16384,
    MAX_PROFILES = 1024,
    MAX_EVENTS = 4096,
    MAX_RULES = 1024,
    MAX_FILE = 8 << 20,
    MAX_HANDLES = 65536,
    TREE_DEPTH = 5, /* NUMA node, host bridge, outer switch, inner switch, board */
    NAME_SIZE = 64, /* of functions and profile tables */
};

/* A number below 0 means that the GPU does not support the query. */
struct gpu {
    char uuid[NVML_UUID_SIZE], name[NVML_NAME_SIZE], serial[NVML_SERIAL_SIZE], profiles[NAME_SIZE],
        cluster[2 * NVML_CLUSTER_SIZE + 1];
    int64_t domain, bus, device, device_id, subsystem_id, minor, brand, architecture, major, revision;
    int64_t memory, reserved, used, tree[TREE_DEPTH], numa;
    int64_t mig_mode, mig_pending, max_mig, links;
    int64_t fabric_state, fabric_status, clique, fabric_health, fabric_summary;
    int64_t ecc_mode, ecc_pending, ecc[2][2]; /* [corrected, uncorrected][volatile, aggregate] */
    int64_t remap_corrected, remap_uncorrected, remap_pending, remap_failure, retired_pending;
    int64_t temperature, power, power_limit, use_gpu, use_memory, events, compute_mode, persistence;
    int64_t lost;
};

struct mig {
    char uuid[NVML_UUID_SIZE];
    int64_t gpu, index, gi, ci, gi_profile, ci_profile, start, size, ci_start, ci_size;
};

struct link {
    char remote[32]; /* PCI address of the other end; empty: none is known */
    int64_t gpu, link, state, version, type;
};

struct profile {
    char table[NAME_SIZE], name[NVML_NAME_SIZE];
    int64_t index, id, slices, instances, multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, memory, p2p,
        capabilities;
};

struct event {
    int64_t sequence, gpu, type, data, gi, ci;
};

/* What a function does instead of, or before, its work: for one GPU, or all when `gpu` is negative. */
struct rule {
    char function[NAME_SIZE];
    int64_t gpu, result, delay_us, crash;
};

struct scenario {
    char driver[NVML_VERSION_SIZE], nvml[NVML_VERSION_SIZE];
    int64_t cuda;
    struct gpu* gpus;
    struct mig* migs;
    struct link* links;
    struct profile* profiles;
    struct event* events;
    struct rule* rules;
    size_t gpu_count, mig_count, link_count, profile_count, event_count, rule_count;
};

/* scenario.c: NULL with a line on stderr when the text is not a scenario. */
struct scenario* scenario_parse(const char* path, const char* text, size_t length);
void scenario_free(struct scenario* s);

/* state.c */
enum kind { KIND_GPU = 1, KIND_MIG, KIND_GPU_INSTANCE, KIND_COMPUTE_INSTANCE };

/* What a handle leads to at present. `gpu` is the parent for all but a GPU; `mig` is one of the instance's MIG devices.
 */
struct target {
    const struct gpu* gpu;
    const struct mig* mig;
    size_t index;
};

/* Begins a call: takes the lock, re-reads the scenario if it changed, obeys the rules for `function`. On success the
 * lock stays held until leave(); otherwise it is released. enter_handle() also finds what the handle of one of the
 * `kinds` (a bit for each) leads to. */
nvml_return enter(const char* function);
nvml_return enter_handle(const char* function, const void* handle, unsigned kinds, struct target* target);
nvml_return leave(nvml_return result);
nvml_return resolve(const void* handle, unsigned kinds, struct target* target);
nvml_return rule_for(const char* function,
                     int64_t gpu); /* may sleep with the lock released; its result, or NVML_SUCCESS */
void* intern(enum kind kind, const char* uuid, int64_t gi, int64_t ci);
const struct scenario* scenario_now(void);
void lock_state(void);
void unlock_state(void);
nvml_return refresh(void);
const char* scenario_directory(void);
nvml_return state_open(void);
nvml_return state_close(void);
bool state_is_open(void);
void sleep_us(int64_t us);
nvml_return copy_text(const char* text, char* out, unsigned int size);

/* events.c */
void events_forget(void); /* frees every event set, at the last shutdown */

#define ONLY(kind) (1u << (kind))
#define ANY_DEVICE (ONLY(KIND_GPU) | ONLY(KIND_MIG))

/* The body of a function of one GPU: `target.gpu` is set, the lock held. A supported number is written, a negative one
 * is not supported. */
#define SUPPORTED(value) ((value) < 0 ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS)

#endif
