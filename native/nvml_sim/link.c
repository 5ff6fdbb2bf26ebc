/* SPDX-License-Identifier: Apache-2.0 */
/* NVLink: the links of a GPU and what is at their other ends. */
#include <stdio.h>
#include <string.h>

#include "sim.h"

/* Begins a call about one link, the lock held on success. `*found` is NULL for a link that the GPU has but the scenario
 * does not describe: it is down. */
static nvml_return enter_link(const char* function, nvml_device device, unsigned int link, const void* out,
                              const struct link** found) {
    struct target t;
    const struct scenario* s;
    nvml_return result = enter_handle(function, device, ONLY(KIND_GPU), &t);
    if (result) return result;
    if (!out || link >= NVML_MAX_LINKS || (t.gpu->links > 0 && link >= t.gpu->links))
        return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->links <= 0) return leave(NVML_ERROR_NOT_SUPPORTED);
    s = scenario_now();
    *found = NULL;
    for (size_t i = 0; i < s->link_count && !*found; i++)
        if (s->links[i].gpu == (int64_t)t.index && s->links[i].link == link) *found = &s->links[i];
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetNvLinkState(nvml_device device, unsigned int link, int* out) {
    const struct link* l;
    nvml_return result = enter_link("nvmlDeviceGetNvLinkState", device, link, out, &l);
    if (result) return result;
    *out = l ? (int)l->state : 0;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetNvLinkVersion(nvml_device device, unsigned int link, unsigned int* out) {
    const struct link* l;
    nvml_return result = enter_link("nvmlDeviceGetNvLinkVersion", device, link, out, &l);
    if (result) return result;
    if (!l) return leave(NVML_ERROR_NOT_SUPPORTED);
    *out = (unsigned int)l->version;
    return leave(NVML_SUCCESS);
}

#ifndef NVML_SIM_OLD
EXPORT nvml_return nvmlDeviceGetNvLinkRemoteDeviceType(nvml_device device, unsigned int link, int* out) {
    const struct link* l;
    nvml_return result = enter_link("nvmlDeviceGetNvLinkRemoteDeviceType", device, link, out, &l);
    if (result) return result;
    if (!l || !l->state) return leave(NVML_ERROR_NOT_SUPPORTED);
    *out = (int)l->type;
    return leave(NVML_SUCCESS);
}
#endif

static nvml_return remote_pci(const char* function, nvml_device device, unsigned int link, void* out, size_t size) {
    const struct link* l;
    struct nvml_pci pci;
    nvml_return result = enter_link(function, device, link, out, &l);
    if (result) return result;
    memset(&pci, 0, sizeof pci);
    if (!l || !l->state || sscanf(l->remote, "%x:%x:%x", &pci.domain, &pci.bus, &pci.device) != 3)
        return leave(NVML_ERROR_NOT_SUPPORTED);
    snprintf(pci.bus_id_legacy, sizeof pci.bus_id_legacy, "%04X:%02X:%02X.0", pci.domain & 0xffff, pci.bus & 0xff,
             pci.device & 0x1f);
    snprintf(pci.bus_id, sizeof pci.bus_id, "%08X:%02X:%02X.0", pci.domain, pci.bus & 0xff, pci.device & 0x1f);
    memset(out, 0, size);
    memcpy(out, &pci, size < sizeof pci ? offsetof(struct nvml_pci, bus_id) : sizeof pci);
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceGetNvLinkRemotePciInfo(nvml_device device, unsigned int link, struct nvml_pci_v2* out) {
    return remote_pci("nvmlDeviceGetNvLinkRemotePciInfo", device, link, out, sizeof *out);
}

#ifndef NVML_SIM_OLD
EXPORT nvml_return nvmlDeviceGetNvLinkRemotePciInfo_v2(nvml_device device, unsigned int link, struct nvml_pci* out) {
    return remote_pci("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, link, out, sizeof *out);
}
#endif
