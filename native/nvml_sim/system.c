/* SPDX-License-Identifier: Apache-2.0 */
/* Beginning and end, versions, and the handles of GPUs. */
#include <stdio.h>
#include <string.h>

#include "sim.h"

EXPORT nvml_return nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    lock_state();
    return leave(state_open());
}

EXPORT nvml_return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT nvml_return nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT nvml_return nvmlShutdown(void) {
    lock_state();
    return leave(state_close());
}

EXPORT const char* nvmlErrorString(nvml_return result) {
    switch (result) {
        case NVML_SUCCESS:
            return "Success";
        case NVML_ERROR_UNINITIALIZED:
            return "Uninitialized";
        case NVML_ERROR_INVALID_ARGUMENT:
            return "Invalid Argument";
        case NVML_ERROR_NOT_SUPPORTED:
            return "Not Supported";
        case NVML_ERROR_NO_PERMISSION:
            return "Insufficient Permissions";
        case NVML_ERROR_NOT_FOUND:
            return "Not Found";
        case NVML_ERROR_INSUFFICIENT_SIZE:
            return "Insufficient Size";
        case NVML_ERROR_DRIVER_NOT_LOADED:
            return "Driver Not Loaded";
        case NVML_ERROR_TIMEOUT:
            return "Timeout";
        case NVML_ERROR_GPU_IS_LOST:
            return "GPU is lost";
        case NVML_ERROR_RESET_REQUIRED:
            return "GPU requires reset";
        case NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return "Driver/library version mismatch";
        case NVML_ERROR_MEMORY:
            return "Insufficient Memory";
        case NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
            return "Argument version mismatch";
        default:
            return "Unknown Error";
    }
}

EXPORT nvml_return nvmlSystemGetDriverVersion(char* out, unsigned int size) {
    nvml_return result = enter("nvmlSystemGetDriverVersion");
    return result ? result : leave(copy_text(scenario_now()->driver, out, size));
}

EXPORT nvml_return nvmlSystemGetNVMLVersion(char* out, unsigned int size) {
    nvml_return result = enter("nvmlSystemGetNVMLVersion");
    return result ? result : leave(copy_text(scenario_now()->nvml, out, size));
}

static nvml_return cuda_version(const char* function, int* out) {
    nvml_return result = enter(function);
    if (result) return result;
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *out = (int)scenario_now()->cuda;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlSystemGetCudaDriverVersion(int* out) {
    return cuda_version("nvmlSystemGetCudaDriverVersion", out);
}

#ifndef NVML_SIM_OLD
EXPORT nvml_return nvmlSystemGetCudaDriverVersion_v2(int* out) {
    return cuda_version("nvmlSystemGetCudaDriverVersion_v2", out);
}
#endif

EXPORT nvml_return nvmlDeviceGetCount_v2(unsigned int* out) {
    nvml_return result = enter("nvmlDeviceGetCount_v2");
    if (result) return result;
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *out = (unsigned int)scenario_now()->gpu_count;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetCount(unsigned int* out) { return nvmlDeviceGetCount_v2(out); }

/* Gives out the handle of GPU `index`, the lock held since enter(). */
static nvml_return give(const char* function, size_t index, nvml_device* out) {
    nvml_return result;
    if (!out || index >= scenario_now()->gpu_count) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (scenario_now()->gpus[index].lost > 0) return leave(NVML_ERROR_GPU_IS_LOST);
    if ((result = rule_for(function, (int64_t)index))) return leave(result);
    if (!scenario_now() || index >= scenario_now()->gpu_count) return leave(NVML_ERROR_UNINITIALIZED);
    *out = intern(KIND_GPU, scenario_now()->gpus[index].uuid, 0, 0);
    return leave(*out ? NVML_SUCCESS : NVML_ERROR_MEMORY);
}

/* Rules for lookups name the function without a GPU or with one: enter() obeys the former only where no GPU can be
 * told. */
static nvml_return begin_lookup(void) {
    lock_state();
    nvml_return result = state_is_open() ? refresh() : NVML_ERROR_UNINITIALIZED;
    return result ? leave(result) : NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvml_device* out) {
    nvml_return result = begin_lookup();
    return result ? result : give("nvmlDeviceGetHandleByIndex_v2", index, out);
}

EXPORT nvml_return nvmlDeviceGetHandleByIndex(unsigned int index, nvml_device* out) {
    return nvmlDeviceGetHandleByIndex_v2(index, out);
}

EXPORT nvml_return nvmlDeviceGetHandleByUUID(const char* uuid, nvml_device* out) {
    nvml_return result = begin_lookup();
    if (result) return result;
    if (!uuid || !out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    const struct scenario* s = scenario_now();
    for (size_t i = 0; i < s->gpu_count; i++)
        if (!strcmp(s->gpus[i].uuid, uuid)) return give("nvmlDeviceGetHandleByUUID", i, out);
    for (size_t i = 0; i < s->mig_count; i++)
        if (!strcmp(s->migs[i].uuid, uuid)) {
            *out = intern(KIND_MIG, uuid, 0, 0);
            return leave(*out ? NVML_SUCCESS : NVML_ERROR_MEMORY);
        }
    return leave(NVML_ERROR_NOT_FOUND);
}

EXPORT nvml_return nvmlDeviceGetHandleByPciBusId_v2(const char* address, nvml_device* out) {
    unsigned int domain, bus, device;
    nvml_return result = begin_lookup();
    if (result) return result;
    if (!address || sscanf(address, "%x:%x:%x", &domain, &bus, &device) != 3) return leave(NVML_ERROR_INVALID_ARGUMENT);
    const struct scenario* s = scenario_now();
    for (size_t i = 0; i < s->gpu_count; i++)
        if (s->gpus[i].domain == domain && s->gpus[i].bus == bus && s->gpus[i].device == device)
            return give("nvmlDeviceGetHandleByPciBusId_v2", i, out);
    return leave(NVML_ERROR_NOT_FOUND);
}

EXPORT nvml_return nvmlDeviceGetHandleByPciBusId(const char* address, nvml_device* out) {
    return nvmlDeviceGetHandleByPciBusId_v2(address, out);
}
