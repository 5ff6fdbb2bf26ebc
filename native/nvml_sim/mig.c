/* SPDX-License-Identifier: Apache-2.0 */
/* MIG: devices, GPU instances, compute instances and their profiles; and what a MIG device and a whole GPU both have.
 */
#include <stdio.h>
#include <string.h>

#include "sim.h"

static const struct profile* profile_of(const struct gpu* g, int64_t index) {
    const struct scenario* s = scenario_now();
    for (size_t i = 0; i < s->profile_count; i++)
        if (s->profiles[i].index == index && !strcmp(s->profiles[i].table, g->profiles)) return &s->profiles[i];
    return NULL;
}

#ifndef NVML_SIM_OLD
/* Slices of the compute instance profiles, in the order of their numbers; the eighth is another of one slice. */
static const unsigned int compute_slices[NVML_COMPUTE_INSTANCE_PROFILES] = {1, 2, 3, 4, 7, 8, 6, 1};

static unsigned int slices_of(int64_t compute_profile) {
    return compute_profile >= 0 && compute_profile < NVML_COMPUTE_INSTANCE_PROFILES ? compute_slices[compute_profile]
                                                                                    : 1;
}
#endif

EXPORT nvml_return nvmlDeviceGetName(nvml_device device, char* out, unsigned int size) {
    struct target t;
    char name[2 * NVML_NAME_SIZE + 8];
    nvml_return result = enter_handle("nvmlDeviceGetName", device, ANY_DEVICE, &t);
    if (result) return result;
    const struct profile* p = t.mig ? profile_of(t.gpu, t.mig->gi_profile) : NULL;
    snprintf(name, sizeof name, "%s%s%s", t.gpu->name, p ? " MIG " : "", p ? p->name : "");
    return leave(copy_text(name, out, size));
}

static nvml_return memory(const char* function, nvml_device device, struct nvml_memory_v2* out) {
    struct target t;
    nvml_return result = enter_handle(function, device, ANY_DEVICE, &t);
    if (result) return result;
    const struct profile* p = t.mig ? profile_of(t.gpu, t.mig->gi_profile) : NULL;
    out->total = (unsigned long long)(p ? p->memory << 20 : t.gpu->memory);
    out->reserved = p ? 0 : (unsigned long long)t.gpu->reserved;
    out->used = p ? 0 : (unsigned long long)t.gpu->used;
    out->free = out->total - out->reserved - out->used;
    return leave(NVML_SUCCESS);
}

/* The first version counts what the driver reserves as used. */
EXPORT nvml_return nvmlDeviceGetMemoryInfo(nvml_device device, struct nvml_memory* out) {
    struct nvml_memory_v2 all;
    nvml_return result = out ? memory("nvmlDeviceGetMemoryInfo", device, &all) : NVML_ERROR_INVALID_ARGUMENT;
    if (!result) *out = (struct nvml_memory){all.total, all.free, all.used + all.reserved};
    return result;
}

#ifndef NVML_SIM_OLD
EXPORT nvml_return nvmlDeviceGetMemoryInfo_v2(nvml_device device, struct nvml_memory_v2* out) {
    if (!out) return NVML_ERROR_INVALID_ARGUMENT;
    if (out->version != NVML_STRUCT_VERSION(struct nvml_memory_v2, 2u)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return memory("nvmlDeviceGetMemoryInfo_v2", device, out);
}

EXPORT nvml_return nvmlDeviceGetMigMode(nvml_device device, unsigned int* now, unsigned int* pending) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetMigMode", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!now || !pending) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->mig_mode >= 0) {
        *now = (unsigned int)t.gpu->mig_mode;
        *pending = (unsigned int)(t.gpu->mig_pending < 0 ? t.gpu->mig_mode : t.gpu->mig_pending);
    }
    return leave(SUPPORTED(t.gpu->mig_mode));
}

EXPORT nvml_return nvmlDeviceIsMigDeviceHandle(nvml_device device, unsigned int* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceIsMigDeviceHandle", device, ANY_DEVICE, &t);
    if (result) return result;
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *out = t.mig != NULL;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetMaxMigDeviceCount(nvml_device device, unsigned int* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetMaxMigDeviceCount", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *out = (unsigned int)t.gpu->max_mig;
    return leave(NVML_SUCCESS);
}

static nvml_return give(enum kind kind, const char* uuid, int64_t gi, int64_t ci, void* out) {
    void* handle = intern(kind, uuid, gi, ci);
    memcpy(out, &handle, sizeof handle);
    return leave(handle ? NVML_SUCCESS : NVML_ERROR_MEMORY);
}

EXPORT nvml_return nvmlDeviceGetMigDeviceHandleByIndex(nvml_device device, unsigned int index, nvml_device* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetMigDeviceHandleByIndex", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    const struct scenario* s = scenario_now();
    if (!out || index >= (uint64_t)t.gpu->max_mig) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->mig_mode <= 0) return leave(NVML_ERROR_NOT_FOUND);
    for (size_t i = 0; i < s->mig_count; i++)
        if (s->migs[i].gpu == (int64_t)t.index && s->migs[i].index == index)
            return give(KIND_MIG, s->migs[i].uuid, 0, 0, out);
    return leave(NVML_ERROR_NOT_FOUND);
}

EXPORT nvml_return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml_device mig, nvml_device* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", mig, ONLY(KIND_MIG), &t);
    if (result) return result;
    return out ? give(KIND_GPU, t.gpu->uuid, 0, 0, out) : leave(NVML_ERROR_INVALID_ARGUMENT);
}

#define INSTANCE_ID(function, member)                                             \
    EXPORT nvml_return function(nvml_device device, unsigned int* out) {          \
        struct target t;                                                          \
        nvml_return result = enter_handle(#function, device, ONLY(KIND_MIG), &t); \
        if (result) return result;                                                \
        if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);                      \
        *out = (unsigned int)t.mig->member;                                       \
        return leave(NVML_SUCCESS);                                               \
    }

INSTANCE_ID(nvmlDeviceGetGpuInstanceId, gi)
INSTANCE_ID(nvmlDeviceGetComputeInstanceId, ci)

EXPORT nvml_return nvmlDeviceGetAttributes_v2(nvml_device device, struct nvml_attributes* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetAttributes_v2", device, ONLY(KIND_MIG), &t);
    if (result) return result;
    const struct profile* p = profile_of(t.gpu, t.mig->gi_profile);
    unsigned int slices = slices_of(t.mig->ci_profile);
    if (!out || !p) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *out = (struct nvml_attributes){(unsigned int)(p->slices > 0 ? p->multiprocessors * slices / p->slices : 0),
                                    (unsigned int)p->copy_engines,
                                    (unsigned int)p->decoders,
                                    (unsigned int)p->encoders,
                                    (unsigned int)p->jpegs,
                                    (unsigned int)p->ofas,
                                    (unsigned int)p->slices,
                                    slices,
                                    (unsigned long long)p->memory};
    return leave(NVML_SUCCESS);
}

static nvml_return gpu_profile(const char* function, nvml_device device, unsigned int index,
                               struct nvml_gpu_instance_profile_v3* out, unsigned int* p2p) {
    struct target t;
    nvml_return result = enter_handle(function, device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (index >= NVML_GPU_INSTANCE_PROFILES) return leave(NVML_ERROR_INVALID_ARGUMENT);
    const struct profile* p = profile_of(t.gpu, index);
    if (!p) return leave(NVML_ERROR_NOT_SUPPORTED);
    memset(out, 0, sizeof *out);
    out->id = (unsigned int)p->id;
    out->slices = (unsigned int)p->slices;
    out->instances = (unsigned int)p->instances;
    out->multiprocessors = (unsigned int)p->multiprocessors;
    out->copy_engines = (unsigned int)p->copy_engines;
    out->decoders = (unsigned int)p->decoders;
    out->encoders = (unsigned int)p->encoders;
    out->jpegs = (unsigned int)p->jpegs;
    out->ofas = (unsigned int)p->ofas;
    out->memory_mb = (unsigned long long)p->memory;
    out->capabilities = (unsigned int)p->capabilities;
    snprintf(out->name, sizeof out->name, "%s", p->name);
    *p2p = (unsigned int)p->p2p;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetGpuInstanceProfileInfo(nvml_device device, unsigned int index,
                                                       struct nvml_gpu_instance_profile* out) {
    struct nvml_gpu_instance_profile_v3 p;
    unsigned int p2p;
    nvml_return result =
        out ? gpu_profile("nvmlDeviceGetGpuInstanceProfileInfo", device, index, &p, &p2p) : NVML_ERROR_INVALID_ARGUMENT;
    if (!result)
        *out = (struct nvml_gpu_instance_profile){
            p.id,       p2p,        p.slices, p.instances, p.multiprocessors, p.copy_engines,
            p.decoders, p.encoders, p.jpegs,  p.ofas,      p.memory_mb};
    return result;
}

EXPORT nvml_return nvmlDeviceGetGpuInstanceProfileInfoV(nvml_device device, unsigned int index, void* out) {
    struct nvml_gpu_instance_profile_v3 p;
    unsigned int p2p, version;
    if (!out) return NVML_ERROR_INVALID_ARGUMENT;
    memcpy(&version, out, sizeof version);
    bool third = version == NVML_STRUCT_VERSION(struct nvml_gpu_instance_profile_v3, 3u);
    if (!third && version != NVML_STRUCT_VERSION(struct nvml_gpu_instance_profile_v2, 2u))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvml_return result = gpu_profile("nvmlDeviceGetGpuInstanceProfileInfoV", device, index, &p, &p2p);
    if (result) return result;
    p.version = version;
    if (third) {
        memcpy(out, &p, sizeof p);
        return NVML_SUCCESS;
    }
    struct nvml_gpu_instance_profile_v2* second = out;
    *second = (struct nvml_gpu_instance_profile_v2){
        version,    p.id,    p2p,    p.slices,    p.instances, p.multiprocessors, p.copy_engines, p.decoders,
        p.encoders, p.jpegs, p.ofas, p.memory_mb, {0}};
    memcpy(second->name, p.name, sizeof p.name);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetGpuInstanceById(nvml_device device, unsigned int id, nvml_gpu_instance* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetGpuInstanceById", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    const struct scenario* s = scenario_now();
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    for (size_t i = 0; i < s->mig_count; i++)
        if (s->migs[i].gpu == (int64_t)t.index && s->migs[i].gi == id)
            return give(KIND_GPU_INSTANCE, t.gpu->uuid, id, 0, out);
    return leave(NVML_ERROR_NOT_FOUND);
}

EXPORT nvml_return nvmlGpuInstanceGetInfo(nvml_gpu_instance instance, struct nvml_gpu_instance_info* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlGpuInstanceGetInfo", instance, ONLY(KIND_GPU_INSTANCE), &t);
    if (result) return result;
    const struct profile* p = profile_of(t.gpu, t.mig->gi_profile);
    nvml_device parent = intern(KIND_GPU, t.gpu->uuid, 0, 0);
    if (!out || !p || !parent) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *out = (struct nvml_gpu_instance_info){
        parent, (unsigned int)t.mig->gi, (unsigned int)p->id, {(unsigned int)t.mig->start, (unsigned int)t.mig->size}};
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlGpuInstanceGetComputeInstanceById(nvml_gpu_instance instance, unsigned int id,
                                                         nvml_compute_instance* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlGpuInstanceGetComputeInstanceById", instance, ONLY(KIND_GPU_INSTANCE), &t);
    if (result) return result;
    const struct scenario* s = scenario_now();
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    for (size_t i = 0; i < s->mig_count; i++)
        if (s->migs[i].gpu == (int64_t)t.index && s->migs[i].gi == t.mig->gi && s->migs[i].ci == id)
            return give(KIND_COMPUTE_INSTANCE, t.gpu->uuid, t.mig->gi, id, out);
    return leave(NVML_ERROR_NOT_FOUND);
}

EXPORT nvml_return nvmlComputeInstanceGetInfo_v2(nvml_compute_instance instance,
                                                 struct nvml_compute_instance_info* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlComputeInstanceGetInfo_v2", instance, ONLY(KIND_COMPUTE_INSTANCE), &t);
    if (result) return result;
    nvml_device parent = intern(KIND_GPU, t.gpu->uuid, 0, 0);
    nvml_gpu_instance gi = intern(KIND_GPU_INSTANCE, t.gpu->uuid, t.mig->gi, 0);
    if (!out || !parent || !gi) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *out = (struct nvml_compute_instance_info){parent,
                                               gi,
                                               (unsigned int)t.mig->ci,
                                               (unsigned int)t.mig->ci_profile,
                                               {(unsigned int)t.mig->ci_start, (unsigned int)t.mig->ci_size}};
    return leave(NVML_SUCCESS);
}

static nvml_return compute_profile(const char* function, nvml_gpu_instance instance, unsigned int index,
                                   unsigned int engines, struct nvml_compute_instance_profile_v3* out) {
    struct target t;
    nvml_return result = enter_handle(function, instance, ONLY(KIND_GPU_INSTANCE), &t);
    if (result) return result;
    const struct profile* p = profile_of(t.gpu, t.mig->gi_profile);
    if (index >= NVML_COMPUTE_INSTANCE_PROFILES || engines || !p) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (compute_slices[index] > p->slices || index == 7) return leave(NVML_ERROR_NOT_SUPPORTED);
    memset(out, 0, sizeof *out);
    out->id = index;
    out->slices = compute_slices[index];
    out->instances = (unsigned int)p->slices / out->slices;
    out->multiprocessors = (unsigned int)(p->multiprocessors * out->slices / p->slices);
    out->copy_engines = (unsigned int)p->copy_engines;
    out->decoders = (unsigned int)p->decoders;
    out->encoders = (unsigned int)p->encoders;
    out->jpegs = (unsigned int)p->jpegs;
    out->ofas = (unsigned int)p->ofas;
    if (out->slices == p->slices)
        snprintf(out->name, sizeof out->name, "%s", p->name);
    else
        snprintf(out->name, sizeof out->name, "%uc.%.80s", out->slices, p->name);
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlGpuInstanceGetComputeInstanceProfileInfo(nvml_gpu_instance instance, unsigned int index,
                                                                unsigned int engines,
                                                                struct nvml_compute_instance_profile* out) {
    struct nvml_compute_instance_profile_v3 p;
    nvml_return result =
        out ? compute_profile("nvmlGpuInstanceGetComputeInstanceProfileInfo", instance, index, engines, &p)
            : NVML_ERROR_INVALID_ARGUMENT;
    if (!result)
        *out = (struct nvml_compute_instance_profile){
            p.id, p.slices, p.instances, p.multiprocessors, p.copy_engines, p.decoders, p.encoders, p.jpegs, p.ofas};
    return result;
}

EXPORT nvml_return nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvml_gpu_instance instance, unsigned int index,
                                                                 unsigned int engines, void* out) {
    struct nvml_compute_instance_profile_v3 p;
    unsigned int version;
    if (!out) return NVML_ERROR_INVALID_ARGUMENT;
    memcpy(&version, out, sizeof version);
    bool third = version == NVML_STRUCT_VERSION(struct nvml_compute_instance_profile_v3, 3u);
    if (!third && version != NVML_STRUCT_VERSION(struct nvml_compute_instance_profile_v2, 2u))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvml_return result = compute_profile("nvmlGpuInstanceGetComputeInstanceProfileInfoV", instance, index, engines, &p);
    if (!result) {
        p.version = version;
        memcpy(out, &p,
               third ? sizeof p : sizeof(struct nvml_compute_instance_profile_v2)); /* the third has one member more */
    }
    return result;
}
#endif
