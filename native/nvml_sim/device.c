/* SPDX-License-Identifier: Apache-2.0 */
/* What one GPU says of itself, and of its place among the others. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "sim.h"

/* A number of a GPU. `g` is the GPU, a negative value one that it does not support. */
#define NUMBER(function, type, value)                                             \
    EXPORT nvml_return function(nvml_device device, type* out) {                  \
        struct target t;                                                          \
        nvml_return result = enter_handle(#function, device, ONLY(KIND_GPU), &t); \
        if (result) return result;                                                \
        const struct gpu* g = t.gpu;                                              \
        if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);                      \
        if ((value) >= 0) *out = (type)(value);                                   \
        return leave(SUPPORTED(value));                                           \
    }

NUMBER(nvmlDeviceGetMinorNumber, unsigned int, g->minor)
NUMBER(nvmlDeviceGetIndex, unsigned int, (int64_t)(g - scenario_now()->gpus))
NUMBER(nvmlDeviceGetBrand, int, g->brand)
NUMBER(nvmlDeviceGetPowerUsage, unsigned int, g->power)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, g->power_limit)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned int, g->power_limit)
NUMBER(nvmlDeviceGetSupportedEventTypes, unsigned long long, g->events)
NUMBER(nvmlDeviceGetComputeMode, int, g->compute_mode)
NUMBER(nvmlDeviceGetPersistenceMode, int, g->persistence)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, int, g->retired_pending)
#ifndef NVML_SIM_OLD
NUMBER(nvmlDeviceGetArchitecture, unsigned int, g->architecture)
#endif

EXPORT nvml_return nvmlDeviceGetSerial(nvml_device device, char* out, unsigned int size) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetSerial", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    return leave(t.gpu->serial[0] ? copy_text(t.gpu->serial, out, size) : NVML_ERROR_NOT_SUPPORTED);
}

EXPORT nvml_return nvmlDeviceGetUUID(nvml_device device, char* out, unsigned int size) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetUUID", device, ANY_DEVICE, &t);
    return result ? result : leave(copy_text(t.mig ? t.mig->uuid : t.gpu->uuid, out, size));
}

static void fill_pci(const struct gpu* g, struct nvml_pci* out) {
    memset(out, 0, sizeof *out);
    out->domain = (unsigned int)g->domain;
    out->bus = (unsigned int)g->bus;
    out->device = (unsigned int)g->device;
    out->device_id = (unsigned int)g->device_id;
    out->subsystem_id = (unsigned int)g->subsystem_id;
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff,
             out->device & 0x1f);
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
}

static nvml_return pci_info(const char* function, nvml_device device, void* out, size_t size) {
    struct target t;
    struct nvml_pci pci;
    nvml_return result = enter_handle(function, device, ANY_DEVICE, &t);
    if (result) return result;
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    fill_pci(t.gpu, &pci);
    memset(out, 0, size);
    memcpy(out, &pci, size < sizeof pci ? offsetof(struct nvml_pci, bus_id) : sizeof pci);
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetPciInfo(nvml_device device, struct nvml_pci_v2* out) {
    return pci_info("nvmlDeviceGetPciInfo", device, out, sizeof *out);
}

EXPORT nvml_return nvmlDeviceGetPciInfo_v2(nvml_device device, struct nvml_pci_v2* out) {
    return pci_info("nvmlDeviceGetPciInfo_v2", device, out, sizeof *out);
}

#ifndef NVML_SIM_OLD
EXPORT nvml_return nvmlDeviceGetPciInfo_v3(nvml_device device, struct nvml_pci* out) {
    return pci_info("nvmlDeviceGetPciInfo_v3", device, out, sizeof *out);
}
#endif

EXPORT nvml_return nvmlDeviceGetCudaComputeCapability(nvml_device device, int* major, int* minor) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetCudaComputeCapability", device, ANY_DEVICE, &t);
    if (result) return result;
    if (!major || !minor) return leave(NVML_ERROR_INVALID_ARGUMENT);
    *major = (int)t.gpu->major;
    *minor = (int)t.gpu->revision;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetTemperature(nvml_device device, int sensor, unsigned int* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetTemperature", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!out || sensor != NVML_SENSOR_GPU) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->temperature >= 0) *out = (unsigned int)t.gpu->temperature;
    return leave(SUPPORTED(t.gpu->temperature));
}

EXPORT nvml_return nvmlDeviceGetUtilizationRates(nvml_device device, struct nvml_utilization* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetUtilizationRates", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->use_gpu >= 0)
        *out = (struct nvml_utilization){(unsigned int)t.gpu->use_gpu, (unsigned int)t.gpu->use_memory};
    return leave(SUPPORTED(t.gpu->use_gpu));
}

EXPORT nvml_return nvmlDeviceGetEccMode(nvml_device device, int* now, int* pending) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetEccMode", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!now || !pending) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->ecc_mode >= 0) {
        *now = (int)t.gpu->ecc_mode;
        *pending = (int)(t.gpu->ecc_pending < 0 ? t.gpu->ecc_mode : t.gpu->ecc_pending);
    }
    return leave(SUPPORTED(t.gpu->ecc_mode));
}

EXPORT nvml_return nvmlDeviceGetTotalEccErrors(nvml_device device, int error, int counter, unsigned long long* out) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetTotalEccErrors", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!out || error < 0 || error > 1 || counter < 0 || counter > 1) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->ecc_mode <= 0) return leave(NVML_ERROR_NOT_SUPPORTED);
    *out = (unsigned long long)t.gpu->ecc[error][counter];
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetMemoryAffinity(nvml_device device, unsigned int words, unsigned long* out, int scope) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetMemoryAffinity", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!out || !words || scope < NVML_SCOPE_NODE || scope > NVML_SCOPE_SOCKET)
        return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->numa < 0) return leave(NVML_ERROR_NOT_SUPPORTED);
    if ((uint64_t)t.gpu->numa / 64 >= words) return leave(NVML_ERROR_INVALID_ARGUMENT);
    memset(out, 0, words * sizeof *out);
    out[t.gpu->numa / 64] = 1ul << t.gpu->numa % 64;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetTopologyCommonAncestor(nvml_device a, nvml_device b, int* out) {
    /* How many levels of the tree two GPUs share says how close they are. */
    static const int levels[TREE_DEPTH + 1] = {NVML_TOPOLOGY_SYSTEM,   NVML_TOPOLOGY_NODE,   NVML_TOPOLOGY_HOSTBRIDGE,
                                               NVML_TOPOLOGY_MULTIPLE, NVML_TOPOLOGY_SINGLE, NVML_TOPOLOGY_INTERNAL};
    struct target t, u;
    int shared = 0;
    nvml_return result = enter_handle("nvmlDeviceGetTopologyCommonAncestor", a, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if ((result = resolve(b, ONLY(KIND_GPU), &u))) return leave(result);
    while (shared < TREE_DEPTH && t.gpu->tree[shared] == u.gpu->tree[shared]) shared++;
    *out = levels[shared];
    return leave(NVML_SUCCESS);
}

#ifndef NVML_SIM_OLD
EXPORT nvml_return nvmlDeviceGetRemappedRows(nvml_device device, unsigned int* corrected, unsigned int* uncorrected,
                                             unsigned int* pending, unsigned int* failure) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceGetRemappedRows", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!corrected || !uncorrected || !pending || !failure) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->remap_corrected >= 0) {
        *corrected = (unsigned int)t.gpu->remap_corrected;
        *uncorrected = (unsigned int)t.gpu->remap_uncorrected;
        *pending = (unsigned int)t.gpu->remap_pending;
        *failure = (unsigned int)t.gpu->remap_failure;
    }
    return leave(SUPPORTED(t.gpu->remap_corrected));
}

EXPORT nvml_return nvmlDeviceGetFieldValues(nvml_device device, int count, struct nvml_field_value* values) {
    struct target t;
    struct timespec now;
    nvml_return result = enter_handle("nvmlDeviceGetFieldValues", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (count < 1 || !values) return leave(NVML_ERROR_INVALID_ARGUMENT);
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        struct nvml_field_value* v = &values[i];
        bool known = v->field == NVML_FIELD_LINK_COUNT;
        v->timestamp = now.tv_sec * 1000000ll + now.tv_nsec / 1000;
        v->latency_us = 0;
        v->type = NVML_VALUE_UNSIGNED_INT;
        v->value.ull = known ? (unsigned long long)t.gpu->links : 0;
        v->result = known ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    }
    return leave(NVML_SUCCESS);
}

static int nibble(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 0; }

static nvml_return fabric_info(const char* function, nvml_device device, struct nvml_fabric_v3* out) {
    struct target t;
    nvml_return result = enter_handle(function, device, ONLY(KIND_GPU), &t);
    if (result) return result;
    const struct gpu* g = t.gpu;
    if (g->fabric_state < 0) return leave(NVML_ERROR_NOT_SUPPORTED);
    memset(out->cluster, 0, sizeof out->cluster);
    for (size_t i = 0; i < sizeof out->cluster && g->cluster[2 * i] && g->cluster[2 * i + 1]; i++)
        out->cluster[i] = (unsigned char)(nibble(g->cluster[2 * i]) << 4 | nibble(g->cluster[2 * i + 1]));
    out->status = (nvml_return)g->fabric_status;
    out->clique = (unsigned int)g->clique;
    out->state = (unsigned char)g->fabric_state;
    out->health_mask = (unsigned int)g->fabric_health;
    out->health_summary = (unsigned char)g->fabric_summary;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetGpuFabricInfo(nvml_device device, struct nvml_fabric* out) {
    struct nvml_fabric_v3 all;
    nvml_return result = out ? fabric_info("nvmlDeviceGetGpuFabricInfo", device, &all) : NVML_ERROR_INVALID_ARGUMENT;
    if (!result) {
        memcpy(out->cluster, all.cluster, sizeof out->cluster);
        out->status = all.status;
        out->clique = all.clique;
        out->state = all.state;
    }
    return result;
}

EXPORT nvml_return nvmlDeviceGetGpuFabricInfoV(nvml_device device, void* out) {
    struct nvml_fabric_v3 all;
    unsigned int version;
    if (!out) return NVML_ERROR_INVALID_ARGUMENT;
    memcpy(&version, out, sizeof version);
    bool third = version == NVML_STRUCT_VERSION(struct nvml_fabric_v3, 3u);
    if (!third && version != NVML_STRUCT_VERSION(struct nvml_fabric_v2, 2u))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvml_return result = fabric_info("nvmlDeviceGetGpuFabricInfoV", device, &all);
    if (result) return result;
    /* Member by member: some callers read the padding after the state as part of it. */
    struct nvml_fabric_v3* fabric = out;
    memcpy(fabric->cluster, all.cluster, sizeof all.cluster);
    fabric->status = all.status;
    fabric->clique = all.clique;
    fabric->state = all.state;
    fabric->health_mask = all.health_mask; /* up to here the second and the third are one */
    if (third) fabric->health_summary = all.health_summary;
    return NVML_SUCCESS;
}
#endif
