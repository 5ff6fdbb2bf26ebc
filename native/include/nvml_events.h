/* SPDX-License-Identifier: Apache-2.0 */
/* Events of all GPUs through one event set, which a lost GPU leaves without taking the others along. */
#ifndef DEVICEPLUGIN_NVML_EVENTS_H
#define DEVICEPLUGIN_NVML_EVENTS_H

#include "nvml_api.h"

struct nvml_watched {
    nvml_device device;
    unsigned int index;
    unsigned long long types; /* what it is registered for; 0: it tells nothing */
    nvml_return code;         /* why, then */
    int lost, told;
    char uuid[NVML_UUID_SIZE];
};

struct nvml_watch {
    const struct nvml_api* api;
    nvml_event_set set;
    size_t count;
    struct nvml_watched* gpus;
};

struct nvml_happened {
    int lost; /* no event: this GPU is gone */
    unsigned int index, gpu_instance, compute_instance;
    unsigned long long type, data;
    char uuid[NVML_UUID_SIZE];
};

/* Registers every GPU for those of `types` that it supports. `*function` is the one that failed. */
nvml_return nvml_watch_open(struct nvml_watch* watch, const struct nvml_api* api, unsigned long long types,
                            const char** function);

/* The next event: NVML_SUCCESS, NVML_ERROR_TIMEOUT, or why there can be none. */
nvml_return nvml_watch_wait(struct nvml_watch* watch, unsigned int timeout_ms, struct nvml_happened* out);
void nvml_watch_close(struct nvml_watch* watch);

#endif
