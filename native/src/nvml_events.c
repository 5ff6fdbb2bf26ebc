/* SPDX-License-Identifier: Apache-2.0 */
#include "nvml_events.h"

#include <stdlib.h>
#include <string.h>

/* Puts the GPU into the set, if there is anything that it can tell. */
static void enlist(struct nvml_watch* watch, struct nvml_watched* gpu, unsigned long long types) {
    gpu->types = 0;
    gpu->code =
        types ? NVML_CALL(watch->api, event_register, gpu->device, types, watch->set) : NVML_ERROR_NOT_SUPPORTED;
    if (!gpu->code) gpu->types = types;
    gpu->lost |= gpu->code == NVML_ERROR_GPU_IS_LOST;
}

static void admit(struct nvml_watch* watch, struct nvml_watched* gpu, unsigned long long types) {
    const struct nvml_api* api = watch->api;
    unsigned long long supported = 0;
    gpu->code = NVML_CALL(api, by_index, gpu->index, &gpu->device);
    if (!gpu->code) gpu->code = NVML_CALL(api, uuid, gpu->device, gpu->uuid, sizeof gpu->uuid);
    gpu->uuid[sizeof gpu->uuid - 1] = 0;
    if (!gpu->code) gpu->code = NVML_CALL(api, event_types, gpu->device, &supported);
    gpu->lost = gpu->told = gpu->code == NVML_ERROR_GPU_IS_LOST; /* before the watch began: inventory has told it */
    if (!gpu->code) enlist(watch, gpu, types & supported);
}

nvml_return nvml_watch_open(struct nvml_watch* watch, const struct nvml_api* api, unsigned long long types,
                            const char** function) {
    unsigned int count = 0;
    memset(watch, 0, sizeof *watch);
    watch->api = api;
    *function = "nvmlDeviceGetCount_v2";
    nvml_return code = NVML_CALL(api, count, &count);
    if (code) return code;
    *function = "nvmlEventSetCreate";
    if ((code = NVML_CALL(api, event_set_create, &watch->set))) return code;
    watch->gpus = calloc(count ? count : 1, sizeof *watch->gpus);
    if (!watch->gpus) {
        nvml_watch_close(watch);
        return NVML_ERROR_MEMORY;
    }
    watch->count = count;
    for (unsigned int i = 0; i < count; i++) {
        watch->gpus[i].index = i;
        admit(watch, &watch->gpus[i], types);
    }
    return NVML_SUCCESS;
}

/* NVML's wait says that some GPU of the set is lost, at once and for ever, and not which. Each is asked things that
 * take a live GPU to answer, since what the library has cached it goes on answering. */
static int is_lost(const struct nvml_api* api, const struct nvml_watched* gpu) {
    char uuid[NVML_UUID_SIZE];
    unsigned int temperature;
    struct nvml_memory memory;
    return NVML_CALL(api, temperature, gpu->device, NVML_SENSOR_GPU, &temperature) == NVML_ERROR_GPU_IS_LOST ||
           NVML_CALL(api, memory_v1, gpu->device, &memory) == NVML_ERROR_GPU_IS_LOST ||
           NVML_CALL(api, uuid, gpu->device, uuid, sizeof uuid) == NVML_ERROR_GPU_IS_LOST;
}

/* Goes on without the lost. Events between the two sets are lost, as they are between two runs; levels are looked at
 * anyway. */
static nvml_return rebuild(struct nvml_watch* watch) {
    size_t gone = 0;
    for (size_t i = 0; i < watch->count; i++) {
        struct nvml_watched* gpu = &watch->gpus[i];
        if (gpu->lost || !gpu->types || !is_lost(watch->api, gpu)) continue;
        gpu->lost = 1;
        gone++;
    }
    if (!gone) return NVML_ERROR_GPU_IS_LOST;
    NVML_CALL(watch->api, event_set_free, watch->set);
    watch->set = NULL;
    nvml_return code = NVML_CALL(watch->api, event_set_create, &watch->set);
    for (size_t i = 0; i < watch->count && !code; i++)
        if (!watch->gpus[i].lost && watch->gpus[i].types) enlist(watch, &watch->gpus[i], watch->gpus[i].types);
    return code;
}

static int tell_lost(struct nvml_watch* watch, struct nvml_happened* out) {
    for (size_t i = 0; i < watch->count; i++) {
        struct nvml_watched* gpu = &watch->gpus[i];
        if (!gpu->lost || gpu->told) continue;
        gpu->told = out->lost = 1;
        out->index = gpu->index;
        memcpy(out->uuid, gpu->uuid, sizeof out->uuid);
        return 1;
    }
    return 0;
}

nvml_return nvml_watch_wait(struct nvml_watch* watch, unsigned int timeout_ms, struct nvml_happened* out) {
    const struct nvml_api* api = watch->api;
    struct nvml_event_data data;
    nvml_return code;
    memset(out, 0, sizeof *out);
    memset(&data, 0, sizeof data);
    data.gpu_instance = data.compute_instance = (unsigned int)NVML_INVALID_INSTANCE;
    out->gpu_instance = out->compute_instance = (unsigned int)NVML_INVALID_INSTANCE;
    if (tell_lost(watch, out)) return NVML_SUCCESS;
    if (!watch->set) return NVML_ERROR_UNINITIALIZED;
    if (api->event_wait)
        code = api->event_wait(watch->set, &data, timeout_ms);
    else
        code = NVML_CALL(api, event_wait_v1, watch->set, &data, timeout_ms);
    if (code == NVML_ERROR_GPU_IS_LOST) {
        if ((code = rebuild(watch))) return code;
        return tell_lost(watch, out) ? NVML_SUCCESS : NVML_ERROR_TIMEOUT;
    }
    if (code) return code;
    out->type = data.type;
    out->data = data.data;
    out->gpu_instance = data.gpu_instance;
    out->compute_instance = data.compute_instance;
    out->index = (unsigned int)-1;
    for (size_t i = 0; i < watch->count; i++)
        if (watch->gpus[i].device == data.device) {
            out->index = watch->gpus[i].index;
            memcpy(out->uuid, watch->gpus[i].uuid, sizeof out->uuid);
        }
    return NVML_SUCCESS;
}

void nvml_watch_close(struct nvml_watch* watch) {
    if (watch->set) NVML_CALL(watch->api, event_set_free, watch->set);
    free(watch->gpus);
    memset(watch, 0, sizeof *watch);
}
