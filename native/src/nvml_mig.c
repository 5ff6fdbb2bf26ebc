/* SPDX-License-Identifier: Apache-2.0 */
/* The MIG devices of a GPU, named as NVIDIA's own tools name them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nvml_snapshot.h"

/* By the number of the profile: slices, and what follows the size in the name. */
static const struct {
    unsigned int slices;
    const char* suffix;
} gpu_profiles[NVML_GPU_INSTANCE_PROFILES] = {
    {1, ""}, {2, ""},     {3, ""},     {4, ""},     {7, ""},    {8, ""},    {6, ""},        {1, "+me"},    {2, "+me"},
    {1, ""}, {1, "+gfx"}, {2, "+gfx"}, {4, "+gfx"}, {1, "-me"}, {2, "-me"}, {1, "+me.all"}, {2, "+me.all"}};

static const unsigned int compute_slices[NVML_COMPUTE_INSTANCE_PROFILES] = {1, 2, 3, 4, 7, 8, 6, 1};

struct profiles {
    int known;
    int valid[NVML_GPU_INSTANCE_PROFILES];
    unsigned int ids[NVML_GPU_INSTANCE_PROFILES];
};

static int unavailable(nvml_return code) {
    return code == NVML_ERROR_NOT_SUPPORTED || code == NVML_ERROR_INVALID_ARGUMENT;
}

/* Which number each of the GPU's profiles has: the library tells of an instance only the driver's id. Asked once for a
 * GPU. */
static void learn(const struct nvml_api* api, struct nvml_gpu* gpu, struct profiles* p) {
    for (unsigned int i = 0; !p->known && i < NVML_GPU_INSTANCE_PROFILES && !gpu->lost; i++) {
        struct nvml_gpu_instance_profile info;
        nvml_return code = NVML_CALL(api, gpu_instance_profile, gpu->handle, i, &info);
        if (unavailable(code)) continue; /* of another model */
        if (!nvml_note(gpu, "nvmlDeviceGetGpuInstanceProfileInfo", code)) continue;
        p->valid[i] = 1;
        p->ids[i] = info.id;
    }
    p->known = 1;
}

/* The number of the GPU instance's profile and the slices of the compute instance; false without the right to ask,
 * which takes an administrator. */
static int find_profile(const struct nvml_api* api, struct nvml_gpu* gpu, const struct nvml_mig* mig,
                        struct profiles* p, unsigned int* index, unsigned int* slices) {
    nvml_gpu_instance gi;
    nvml_compute_instance ci;
    struct nvml_gpu_instance_info of_gi;
    struct nvml_compute_instance_info of_ci;
    if (!NVML_ASK(api, gpu, gpu_instance, nvmlDeviceGetGpuInstanceById, gpu->handle, mig->gpu_instance, &gi) ||
        !NVML_ASK(api, gpu, gpu_instance_info, nvmlGpuInstanceGetInfo, gi, &of_gi) ||
        !NVML_ASK(api, gpu, compute_instance, nvmlGpuInstanceGetComputeInstanceById, gi, mig->compute_instance, &ci) ||
        !NVML_ASK(api, gpu, compute_instance_info, nvmlComputeInstanceGetInfo_v2, ci, &of_ci))
        return 0;
    learn(api, gpu, p);
    for (*index = 0; *index < NVML_GPU_INSTANCE_PROFILES; ++*index)
        if (p->valid[*index] && p->ids[*index] == of_gi.profile_id) break;
    if (*index == NVML_GPU_INSTANCE_PROFILES) return 0;
    for (unsigned int i = 0; i < NVML_COMPUTE_INSTANCE_PROFILES && !gpu->lost; i++) {
        struct nvml_compute_instance_profile info;
        nvml_return code = NVML_CALL(api, compute_instance_profile, gi, i, 0, &info);
        if (unavailable(code)) continue;
        if (!nvml_note(gpu, "nvmlGpuInstanceGetComputeInstanceProfileInfo", code)) return 0;
        if (info.id == of_ci.profile_id) {
            *slices = compute_slices[i];
            return 1;
        }
    }
    return 0;
}

/* The memory of the instance in eighths of the GPU's, rounded up, in GB: what NVIDIA's names count. */
static unsigned long long gigabytes(unsigned long long megabytes, long long total) {
    const unsigned long long gb = 1ull << 30;
    unsigned long long bytes = megabytes << 20, whole = (unsigned long long)total;
    if (total <= 0) return (bytes + gb / 2) / gb;
    unsigned long long eighths = (8 * bytes + whole - 1) / whole;
    return (eighths * ((whole + gb - 1) / gb) + 4) / 8;
}

static void name_profile(const struct nvml_api* api, struct nvml_gpu* gpu, struct nvml_mig* mig, struct profiles* p) {
    unsigned int index, gpu_slices = mig->attributes.gpu_instance_slices,
                        slices = mig->attributes.compute_instance_slices;
    const char *suffix = "", *named = strstr(mig->name, " MIG ");
    char compute[16] = "";
    if (find_profile(api, gpu, mig, p, &index, &slices)) {
        gpu_slices = gpu_profiles[index].slices;
        suffix = gpu_profiles[index].suffix;
    } else if (named) {
        snprintf(mig->profile, sizeof mig->profile, "%.63s", named + 5);
        return;
    }
    if (!gpu_slices) return;
    if (slices != gpu_slices) snprintf(compute, sizeof compute, "%uc.", slices);
    snprintf(mig->profile, sizeof mig->profile, "%s%ug.%llugb%s", compute, gpu_slices,
             gigabytes(mig->attributes.memory_mb, gpu->memory_total), suffix);
}

void nvml_take_migs(const struct nvml_api* api, struct nvml_gpu* gpu) {
    struct profiles profiles = {0};
    unsigned int count;
    if (!NVML_ASK(api, gpu, mig_count, nvmlDeviceGetMaxMigDeviceCount, gpu->handle, &count)) return;
    gpu->max_mig = count;
    if (count > NVML_MAX_MIG) count = NVML_MAX_MIG;
    gpu->migs = calloc(count ? count : 1, sizeof *gpu->migs);
    if (!gpu->migs) {
        nvml_note(gpu, "nvmlDeviceGetMigDeviceHandleByIndex", NVML_ERROR_MEMORY);
        return;
    }
    for (unsigned int i = 0; i < count && !gpu->lost; i++) {
        struct nvml_mig* mig = &gpu->migs[gpu->mig_count];
        nvml_device handle;
        nvml_return code = NVML_CALL(api, mig_by_index, gpu->handle, i, &handle);
        memset(mig, 0, sizeof *mig);
        mig->index = i;
        if (code == NVML_ERROR_NOT_FOUND || !nvml_note(gpu, "nvmlDeviceGetMigDeviceHandleByIndex", code)) continue;
        /* One that cannot be named or placed cannot be given to anyone: it may have been destroyed between two calls.
         */
        NVML_ASK_TEXT(api, gpu, uuid, nvmlDeviceGetUUID, handle, mig->uuid);
        if (!mig->uuid[0] ||
            !NVML_ASK(api, gpu, gpu_instance_id, nvmlDeviceGetGpuInstanceId, handle, &mig->gpu_instance) ||
            !NVML_ASK(api, gpu, compute_instance_id, nvmlDeviceGetComputeInstanceId, handle, &mig->compute_instance) ||
            !NVML_ASK(api, gpu, attributes, nvmlDeviceGetAttributes_v2, handle, &mig->attributes))
            continue;
        NVML_ASK_TEXT(api, gpu, name, nvmlDeviceGetName, handle, mig->name);
        name_profile(api, gpu, mig, &profiles);
        gpu->mig_count++;
    }
}
