# SPDX-License-Identifier: Apache-2.0
"""The C side of the binding: what native/include/nvml_*.h declare."""

cdef extern from "nvml_abi.h" nogil:
    enum:
        NVML_SUCCESS
        NVML_ERROR_NOT_SUPPORTED
        NVML_ERROR_DRIVER_NOT_LOADED
        NVML_ERROR_TIMEOUT
        NVML_ERROR_FUNCTION_NOT_FOUND
        NVML_ERROR_GPU_IS_LOST
        NVML_ERROR_LIB_RM_VERSION_MISMATCH
        NVML_CLUSTER_SIZE
    ctypedef int nvml_return
    struct nvml_attributes:
        unsigned int multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_instance_slices, compute_instance_slices
        unsigned long long memory_mb

cdef extern from "nvml_api.h" nogil:
    struct nvml_api:
        void *library
        nvml_return (*init)() noexcept nogil
        nvml_return (*shutdown)() noexcept nogil
    bint nvml_api_open(nvml_api *api, const char *path, char *why, size_t size)
    void nvml_api_close(nvml_api *api)
    const char *nvml_api_symbol(size_t n)
    bint nvml_api_has(const nvml_api *api, size_t n)

cdef extern from "nvml_snapshot.h" nogil:
    enum:
        NVML_TOPOLOGY_PART
        NVML_HEALTH_PART
        NVML_NUMA_WORDS
        NVML_NO_LEVEL
    struct nvml_failure:
        const char *function
        nvml_return code
    struct nvml_link:
        int index, active, type
        long long version
        char *remote
    struct nvml_mig:
        char *uuid
        char *name
        char *profile
        unsigned int index, gpu_instance, compute_instance
        nvml_attributes attributes
    struct nvml_gpu:
        unsigned int index
        bint lost
        size_t failure_count, link_count, mig_count
        nvml_failure *failures
        char *uuid
        char *name
        char *serial
        char *bus_id
        long long pci_device_id, pci_subsystem_id, minor, brand, architecture, major, revision, compute_mode
        long long memory_total, memory_free, memory_used, memory_reserved
        unsigned long *numa
        long long mig_mode, mig_pending, max_mig, event_types
        long long fabric_state, fabric_status, fabric_clique, fabric_health
        unsigned char *fabric_cluster
        long long ecc_mode, ecc_pending
        long long ecc[2][2]
        long long remapped_corrected, remapped_uncorrected, remap_pending, remap_failure, retired_pending
        long long temperature, power, power_limit, use_gpu, use_memory
        nvml_link *links
        nvml_mig *migs
    struct nvml_snapshot:
        char *driver
        char *nvml
        long long cuda
        size_t failure_count, count
        nvml_failure *failures
        nvml_gpu *gpus
        unsigned char *ancestors
    nvml_return nvml_snapshot_take(const nvml_api *api, unsigned int parts, nvml_snapshot *out, const char **function)
    void nvml_snapshot_free(nvml_snapshot *snapshot)

cdef extern from "nvml_events.h" nogil:
    struct nvml_watched:
        unsigned int index
        unsigned long long types
        nvml_return code
        char *uuid
    struct nvml_watch:
        size_t count
        nvml_watched *gpus
    struct nvml_happened:
        bint lost
        unsigned int index, gpu_instance, compute_instance
        unsigned long long type, data
        char *uuid
    nvml_return nvml_watch_open(nvml_watch *watch, const nvml_api *api, unsigned long long types, const char **function)
    nvml_return nvml_watch_wait(nvml_watch *watch, unsigned int timeout_ms, nvml_happened *out)
    void nvml_watch_close(nvml_watch *watch)
