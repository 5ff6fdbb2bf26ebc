/* SPDX-License-Identifier: Apache-2.0 */
#include "nvml_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char* symbol;
    size_t offset;
} functions[] = {
#define ROW(member, symbol, parameters) {#symbol, offsetof(struct nvml_api, member)},
    NVML_FUNCTIONS(ROW)
#undef ROW
};

enum { FUNCTIONS = sizeof functions / sizeof *functions };

int nvml_api_open(struct nvml_api* api, const char* path, char* why, size_t size) {
    memset(api, 0, sizeof *api);
    api->library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (!api->library) {
        const char* reason = dlerror();
        snprintf(why, size, "%s", reason ? reason : "dlopen failed");
        return 0;
    }
    for (size_t i = 0; i < FUNCTIONS; i++) {
        void* address = dlsym(api->library, functions[i].symbol);
        memcpy((char*)api + functions[i].offset, &address, sizeof address);
    }
    return 1;
}

void nvml_api_close(struct nvml_api* api) {
    if (api->library) dlclose(api->library);
    memset(api, 0, sizeof *api);
}

const char* nvml_api_symbol(size_t n) { return n < FUNCTIONS ? functions[n].symbol : NULL; }

int nvml_api_has(const struct nvml_api* api, size_t n) {
    void* address = NULL;
    if (n < FUNCTIONS) memcpy(&address, (const char*)api + functions[n].offset, sizeof address);
    return address != NULL;
}
