/* SPDX-License-Identifier: Apache-2.0 */
#include "nvml_snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int note(struct nvml_failure* failures, size_t* count, const char* function, nvml_return code) {
    if (code == NVML_SUCCESS) return 1;
    for (size_t i = 0; i < *count; i++)
        if (failures[i].code == code && !strcmp(failures[i].function, function)) return 0;
    if (*count < NVML_MAX_FAILURES) failures[(*count)++] = (struct nvml_failure){function, code};
    return 0;
}

int nvml_note(struct nvml_gpu* gpu, const char* function, nvml_return code) {
    gpu->lost |= code == NVML_ERROR_GPU_IS_LOST;
    return note(gpu->failures, &gpu->failure_count, function, code);
}

/* NVML writes the domain with eight digits, sysfs with four unless it needs more. */
static void address(char* out, size_t size, unsigned int domain, unsigned int bus, unsigned int device) {
    snprintf(out, size, "%04x:%02x:%02x.0", domain, bus, device);
}

static void take_pci(const struct nvml_api* api, struct nvml_gpu* gpu) {
    struct nvml_pci pci;
    struct nvml_pci_v2 old;
    memset(&pci, 0, sizeof pci);
    memset(&old, 0, sizeof old);
    if (api->pci) {
        if (!NVML_ASK(api, gpu, pci, nvmlDeviceGetPciInfo_v3, gpu->handle, &pci)) return;
    } else {
        if (!NVML_ASK(api, gpu, pci_v2, nvmlDeviceGetPciInfo_v2, gpu->handle, &old)) return;
        pci.domain = old.domain;
        pci.bus = old.bus;
        pci.device = old.device;
        pci.device_id = old.device_id;
        pci.subsystem_id = old.subsystem_id;
    }
    address(gpu->bus_id, sizeof gpu->bus_id, pci.domain, pci.bus, pci.device);
    gpu->pci_device_id = pci.device_id;
    gpu->pci_subsystem_id = pci.subsystem_id;
}

static void take_memory(const struct nvml_api* api, struct nvml_gpu* gpu) {
    struct nvml_memory_v2 memory = {.version = NVML_STRUCT_VERSION(struct nvml_memory_v2, 2u)};
    struct nvml_memory old = {0};
    if (api->memory) {
        if (!NVML_ASK(api, gpu, memory, nvmlDeviceGetMemoryInfo_v2, gpu->handle, &memory)) return;
        gpu->memory_reserved = (long long)memory.reserved;
    } else {
        if (!NVML_ASK(api, gpu, memory_v1, nvmlDeviceGetMemoryInfo, gpu->handle, &old)) return;
        memory.total = old.total;
        memory.free = old.free;
        memory.used = old.used;
    }
    gpu->memory_total = (long long)memory.total;
    gpu->memory_free = (long long)memory.free;
    gpu->memory_used = (long long)memory.used;
}

static void take_identity(const struct nvml_api* api, struct nvml_gpu* gpu) {
    unsigned int number, pending;
    unsigned long long types;
    int value, minor;
    NVML_ASK_TEXT(api, gpu, uuid, nvmlDeviceGetUUID, gpu->handle, gpu->uuid);
    NVML_ASK_TEXT(api, gpu, name, nvmlDeviceGetName, gpu->handle, gpu->name);
    NVML_ASK_TEXT(api, gpu, serial, nvmlDeviceGetSerial, gpu->handle, gpu->serial);
    take_pci(api, gpu);
    if (NVML_ASK(api, gpu, minor, nvmlDeviceGetMinorNumber, gpu->handle, &number)) gpu->minor = number;
    if (NVML_ASK(api, gpu, brand, nvmlDeviceGetBrand, gpu->handle, &value)) gpu->brand = value;
    if (NVML_ASK(api, gpu, architecture, nvmlDeviceGetArchitecture, gpu->handle, &number)) gpu->architecture = number;
    if (NVML_ASK(api, gpu, compute_capability, nvmlDeviceGetCudaComputeCapability, gpu->handle, &value, &minor)) {
        gpu->major = value;
        gpu->revision = minor;
    }
    if (NVML_ASK(api, gpu, compute_mode, nvmlDeviceGetComputeMode, gpu->handle, &value)) gpu->compute_mode = value;
    take_memory(api, gpu);
    if (!NVML_ASK(api, gpu, memory_affinity, nvmlDeviceGetMemoryAffinity, gpu->handle, NVML_NUMA_WORDS, gpu->numa,
                  NVML_SCOPE_NODE))
        memset(gpu->numa, 0, sizeof gpu->numa);
    if (NVML_ASK(api, gpu, event_types, nvmlDeviceGetSupportedEventTypes, gpu->handle, &types))
        gpu->event_types = (long long)types;
    if (NVML_ASK(api, gpu, mig_mode, nvmlDeviceGetMigMode, gpu->handle, &number, &pending)) {
        gpu->mig_mode = number;
        gpu->mig_pending = pending;
    }
    if (gpu->mig_mode > 0) nvml_take_migs(api, gpu);
}

static void take_link(const struct nvml_api* api, struct nvml_gpu* gpu, unsigned int index, int active) {
    struct nvml_link* link = &gpu->links[gpu->link_count++];
    struct nvml_pci pci;
    unsigned int version;
    int type;
    memset(&pci, 0, sizeof pci);
    *link = (struct nvml_link){.index = (int)index, .active = active, .type = -1, .version = -1};
    if (!active) return; /* nothing is known of the other end of a link that is down */
    if (NVML_ASK(api, gpu, link_version, nvmlDeviceGetNvLinkVersion, gpu->handle, index, &version))
        link->version = version;
    if (NVML_ASK(api, gpu, link_type, nvmlDeviceGetNvLinkRemoteDeviceType, gpu->handle, index, &type))
        link->type = type;
    if (NVML_ASK(api, gpu, link_pci, nvmlDeviceGetNvLinkRemotePciInfo_v2, gpu->handle, index, &pci))
        address(link->remote, sizeof link->remote, pci.domain, pci.bus, pci.device);
}

static void take_fabric(const struct nvml_api* api, struct nvml_gpu* gpu) {
    struct nvml_fabric_v2 fabric = {.version = NVML_STRUCT_VERSION(struct nvml_fabric_v2, 2u)};
    struct nvml_fabric old;
    memset(&old, 0, sizeof old);
    if (api->fabric) {
        if (!NVML_ASK(api, gpu, fabric, nvmlDeviceGetGpuFabricInfoV, gpu->handle, &fabric)) return;
        gpu->fabric_health = fabric.health_mask;
    } else {
        if (!NVML_ASK(api, gpu, fabric_v1, nvmlDeviceGetGpuFabricInfo, gpu->handle, &old)) return;
        memcpy(fabric.cluster, old.cluster, sizeof old.cluster);
        fabric.status = old.status;
        fabric.clique = old.clique;
        fabric.state = old.state;
    }
    memcpy(gpu->fabric_cluster, fabric.cluster, sizeof fabric.cluster);
    gpu->fabric_state = fabric.state;
    gpu->fabric_status = fabric.status;
    gpu->fabric_clique = fabric.clique;
}

static void take_topology(const struct nvml_api* api, struct nvml_gpu* gpu) {
    for (unsigned int i = 0; i < NVML_MAX_LINKS && !gpu->lost; i++) {
        int active = 0;
        nvml_return code = NVML_CALL(api, link_state, gpu->handle, i, &active);
        if (i && code == NVML_ERROR_INVALID_ARGUMENT) break; /* past the last link */
        if (!nvml_note(gpu, "nvmlDeviceGetNvLinkState", code)) {
            if (code == NVML_ERROR_NOT_SUPPORTED || code == NVML_ERROR_FUNCTION_NOT_FOUND) break; /* without NVLink */
            continue;
        }
        take_link(api, gpu, i, active);
    }
    take_fabric(api, gpu);
}

static void take_health(const struct nvml_api* api, struct nvml_gpu* gpu) {
    struct nvml_utilization use;
    unsigned long long errors;
    unsigned int number, corrected, uncorrected, waiting, failed;
    int mode, pending;
    if (NVML_ASK(api, gpu, ecc_mode, nvmlDeviceGetEccMode, gpu->handle, &mode, &pending)) {
        gpu->ecc_mode = mode;
        gpu->ecc_pending = pending;
    }
    for (int type = 0; gpu->ecc_mode > 0 && type < 2; type++)
        for (int counter = 0; counter < 2; counter++)
            if (NVML_ASK(api, gpu, ecc_errors, nvmlDeviceGetTotalEccErrors, gpu->handle, type, counter, &errors))
                gpu->ecc[type][counter] = (long long)errors;
    if (NVML_ASK(api, gpu, remapped_rows, nvmlDeviceGetRemappedRows, gpu->handle, &corrected, &uncorrected, &waiting,
                 &failed)) {
        gpu->remapped_corrected = corrected;
        gpu->remapped_uncorrected = uncorrected;
        gpu->remap_pending = waiting;
        gpu->remap_failure = failed;
    }
    if (NVML_ASK(api, gpu, retired_pending, nvmlDeviceGetRetiredPagesPendingStatus, gpu->handle, &pending))
        gpu->retired_pending = pending;
    if (NVML_ASK(api, gpu, temperature, nvmlDeviceGetTemperature, gpu->handle, NVML_SENSOR_GPU, &number))
        gpu->temperature = number;
    if (NVML_ASK(api, gpu, power, nvmlDeviceGetPowerUsage, gpu->handle, &number)) gpu->power = number;
    if (NVML_ASK(api, gpu, power_limit, nvmlDeviceGetEnforcedPowerLimit, gpu->handle, &number))
        gpu->power_limit = number;
    if (NVML_ASK(api, gpu, utilization, nvmlDeviceGetUtilizationRates, gpu->handle, &use)) {
        gpu->use_gpu = use.gpu;
        gpu->use_memory = use.memory;
    }
}

static void forget(struct nvml_gpu* gpu) {
    gpu->pci_device_id = gpu->pci_subsystem_id = gpu->minor = gpu->brand = gpu->architecture = -1;
    gpu->major = gpu->revision = gpu->compute_mode = -1;
    gpu->memory_total = gpu->memory_free = gpu->memory_used = gpu->memory_reserved = -1;
    gpu->mig_mode = gpu->mig_pending = gpu->max_mig = gpu->event_types = -1;
    gpu->fabric_state = gpu->fabric_status = gpu->fabric_clique = gpu->fabric_health = -1;
    gpu->ecc_mode = gpu->ecc_pending = -1;
    memset(gpu->ecc, 0xff, sizeof gpu->ecc);
    gpu->remapped_corrected = gpu->remapped_uncorrected = gpu->remap_pending = gpu->remap_failure = -1;
    gpu->retired_pending = gpu->temperature = gpu->power = gpu->power_limit = gpu->use_gpu = gpu->use_memory = -1;
}

static void take_ancestors(const struct nvml_api* api, struct nvml_snapshot* s) {
    memset(s->ancestors, NVML_NO_LEVEL, s->count * s->count);
    for (size_t a = 0; a < s->count; a++)
        for (size_t b = a + 1; b < s->count; b++) {
            int level;
            if (!s->gpus[a].handle || !s->gpus[b].handle || s->gpus[b].lost) continue;
            /* A failure is the first GPU's to tell; which of the two is to blame the library does not say. */
            if (NVML_ASK(api, &s->gpus[a], common_ancestor, nvmlDeviceGetTopologyCommonAncestor, s->gpus[a].handle,
                         s->gpus[b].handle, &level) &&
                level >= 0 && level < NVML_NO_LEVEL)
                s->ancestors[a * s->count + b] = s->ancestors[b * s->count + a] = (unsigned char)level;
        }
}

nvml_return nvml_snapshot_take(const struct nvml_api* api, unsigned int parts, struct nvml_snapshot* s,
                               const char** function) {
    unsigned int count = 0;
    int cuda;
    memset(s, 0, sizeof *s);
    s->cuda = -1;
    *function = "nvmlDeviceGetCount_v2";
    nvml_return code = NVML_CALL(api, count, &count);
    if (code) return code;
    if (!note(s->failures, &s->failure_count, "nvmlSystemGetDriverVersion",
              NVML_CALL(api, driver_version, s->driver, sizeof s->driver)))
        s->driver[0] = 0;
    if (!note(s->failures, &s->failure_count, "nvmlSystemGetNVMLVersion",
              NVML_CALL(api, nvml_version, s->nvml, sizeof s->nvml)))
        s->nvml[0] = 0;
    if (note(s->failures, &s->failure_count, "nvmlSystemGetCudaDriverVersion", NVML_CALL(api, cuda_version, &cuda)))
        s->cuda = cuda;
    s->gpus = calloc(count ? count : 1, sizeof *s->gpus);
    s->ancestors = parts & NVML_TOPOLOGY_PART ? malloc((size_t)count * count + 1) : NULL;
    if (!s->gpus || (parts & NVML_TOPOLOGY_PART && !s->ancestors)) {
        nvml_snapshot_free(s);
        return NVML_ERROR_MEMORY;
    }
    s->count = count;
    for (unsigned int i = 0; i < count; i++) {
        struct nvml_gpu* gpu = &s->gpus[i];
        gpu->index = i;
        forget(gpu);
        if (!NVML_ASK(api, gpu, by_index, nvmlDeviceGetHandleByIndex_v2, i, &gpu->handle)) {
            gpu->handle = NULL;
            continue;
        }
        take_identity(api, gpu);
        if (parts & NVML_TOPOLOGY_PART) take_topology(api, gpu);
        if (parts & NVML_HEALTH_PART) take_health(api, gpu);
    }
    if (s->ancestors) take_ancestors(api, s);
    return NVML_SUCCESS;
}

void nvml_snapshot_free(struct nvml_snapshot* s) {
    for (size_t i = 0; i < s->count; i++) free(s->gpus[i].migs);
    free(s->gpus);
    free(s->ancestors);
    memset(s, 0, sizeof *s);
}
