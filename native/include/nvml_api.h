/* SPDX-License-Identifier: Apache-2.0 */
/* NVML's functions, found with dlopen: a library that is missing, or older than a function, is a state and no failure
 * to start. */
#ifndef DEVICEPLUGIN_NVML_API_H
#define DEVICEPLUGIN_NVML_API_H

#include <stddef.h>

#include "nvml_abi.h"

/* member, symbol, parameters. Where a library may have an older form only, both are here. */
#define NVML_FUNCTIONS(F)                                                                             \
    F(init, nvmlInit_v2, (void))                                                                      \
    F(shutdown, nvmlShutdown, (void))                                                                 \
    F(driver_version, nvmlSystemGetDriverVersion, (char*, unsigned int))                              \
    F(nvml_version, nvmlSystemGetNVMLVersion, (char*, unsigned int))                                  \
    F(cuda_version, nvmlSystemGetCudaDriverVersion, (int*))                                           \
    F(count, nvmlDeviceGetCount_v2, (unsigned int*))                                                  \
    F(by_index, nvmlDeviceGetHandleByIndex_v2, (unsigned int, nvml_device*))                          \
    F(uuid, nvmlDeviceGetUUID, (nvml_device, char*, unsigned int))                                    \
    F(name, nvmlDeviceGetName, (nvml_device, char*, unsigned int))                                    \
    F(serial, nvmlDeviceGetSerial, (nvml_device, char*, unsigned int))                                \
    F(brand, nvmlDeviceGetBrand, (nvml_device, int*))                                                 \
    F(architecture, nvmlDeviceGetArchitecture, (nvml_device, unsigned int*))                          \
    F(pci, nvmlDeviceGetPciInfo_v3, (nvml_device, struct nvml_pci*))                                  \
    F(pci_v2, nvmlDeviceGetPciInfo_v2, (nvml_device, struct nvml_pci_v2*))                            \
    F(minor, nvmlDeviceGetMinorNumber, (nvml_device, unsigned int*))                                  \
    F(compute_capability, nvmlDeviceGetCudaComputeCapability, (nvml_device, int*, int*))              \
    F(compute_mode, nvmlDeviceGetComputeMode, (nvml_device, int*))                                    \
    F(memory, nvmlDeviceGetMemoryInfo_v2, (nvml_device, struct nvml_memory_v2*))                      \
    F(memory_v1, nvmlDeviceGetMemoryInfo, (nvml_device, struct nvml_memory*))                         \
    F(memory_affinity, nvmlDeviceGetMemoryAffinity, (nvml_device, unsigned int, unsigned long*, int)) \
    F(common_ancestor, nvmlDeviceGetTopologyCommonAncestor, (nvml_device, nvml_device, int*))         \
    F(link_state, nvmlDeviceGetNvLinkState, (nvml_device, unsigned int, int*))                        \
    F(link_version, nvmlDeviceGetNvLinkVersion, (nvml_device, unsigned int, unsigned int*))           \
    F(link_pci, nvmlDeviceGetNvLinkRemotePciInfo_v2, (nvml_device, unsigned int, struct nvml_pci*))   \
    F(link_type, nvmlDeviceGetNvLinkRemoteDeviceType, (nvml_device, unsigned int, int*))              \
    F(fabric, nvmlDeviceGetGpuFabricInfoV, (nvml_device, void*))                                      \
    F(fabric_v1, nvmlDeviceGetGpuFabricInfo, (nvml_device, struct nvml_fabric*))                      \
    F(mig_mode, nvmlDeviceGetMigMode, (nvml_device, unsigned int*, unsigned int*))                    \
    F(mig_count, nvmlDeviceGetMaxMigDeviceCount, (nvml_device, unsigned int*))                        \
    F(mig_by_index, nvmlDeviceGetMigDeviceHandleByIndex, (nvml_device, unsigned int, nvml_device*))   \
    F(gpu_instance_id, nvmlDeviceGetGpuInstanceId, (nvml_device, unsigned int*))                      \
    F(compute_instance_id, nvmlDeviceGetComputeInstanceId, (nvml_device, unsigned int*))              \
    F(attributes, nvmlDeviceGetAttributes_v2, (nvml_device, struct nvml_attributes*))                 \
    F(gpu_instance, nvmlDeviceGetGpuInstanceById, (nvml_device, unsigned int, nvml_gpu_instance*))    \
    F(gpu_instance_info, nvmlGpuInstanceGetInfo, (nvml_gpu_instance, struct nvml_gpu_instance_info*)) \
    F(gpu_instance_profile, nvmlDeviceGetGpuInstanceProfileInfo,                                      \
      (nvml_device, unsigned int, struct nvml_gpu_instance_profile*))                                 \
    F(compute_instance, nvmlGpuInstanceGetComputeInstanceById,                                        \
      (nvml_gpu_instance, unsigned int, nvml_compute_instance*))                                      \
    F(compute_instance_info, nvmlComputeInstanceGetInfo_v2,                                           \
      (nvml_compute_instance, struct nvml_compute_instance_info*))                                    \
    F(compute_instance_profile, nvmlGpuInstanceGetComputeInstanceProfileInfo,                         \
      (nvml_gpu_instance, unsigned int, unsigned int, struct nvml_compute_instance_profile*))         \
    F(ecc_mode, nvmlDeviceGetEccMode, (nvml_device, int*, int*))                                      \
    F(ecc_errors, nvmlDeviceGetTotalEccErrors, (nvml_device, int, int, unsigned long long*))          \
    F(remapped_rows, nvmlDeviceGetRemappedRows,                                                       \
      (nvml_device, unsigned int*, unsigned int*, unsigned int*, unsigned int*))                      \
    F(retired_pending, nvmlDeviceGetRetiredPagesPendingStatus, (nvml_device, int*))                   \
    F(temperature, nvmlDeviceGetTemperature, (nvml_device, int, unsigned int*))                       \
    F(power, nvmlDeviceGetPowerUsage, (nvml_device, unsigned int*))                                   \
    F(power_limit, nvmlDeviceGetEnforcedPowerLimit, (nvml_device, unsigned int*))                     \
    F(utilization, nvmlDeviceGetUtilizationRates, (nvml_device, struct nvml_utilization*))            \
    F(event_types, nvmlDeviceGetSupportedEventTypes, (nvml_device, unsigned long long*))              \
    F(event_set_create, nvmlEventSetCreate, (nvml_event_set*))                                        \
    F(event_set_free, nvmlEventSetFree, (nvml_event_set))                                             \
    F(event_register, nvmlDeviceRegisterEvents, (nvml_device, unsigned long long, nvml_event_set))    \
    F(event_wait, nvmlEventSetWait_v2, (nvml_event_set, struct nvml_event_data*, unsigned int))       \
    F(event_wait_v1, nvmlEventSetWait, (nvml_event_set, struct nvml_event_data*, unsigned int))

struct nvml_api {
    void* library;
#define NVML_MEMBER(member, symbol, parameters) nvml_return(*member) parameters;
    NVML_FUNCTIONS(NVML_MEMBER)
#undef NVML_MEMBER
};

/* Calls a function of the table; one that the library lacks says so as NVML itself would. */
#define NVML_CALL(api, member, ...) ((api)->member ? (api)->member(__VA_ARGS__) : NVML_ERROR_FUNCTION_NOT_FOUND)

/* Opens the library `path`. False with dlerror's text in `why` when it cannot be opened. */
int nvml_api_open(struct nvml_api* api, const char* path, char* why, size_t size);
void nvml_api_close(struct nvml_api* api);

/* The symbols in the order of the table, NULL at its end, and whether the library has one. */
const char* nvml_api_symbol(size_t n);
int nvml_api_has(const struct nvml_api* api, size_t n);

#endif
