/* SPDX-License-Identifier: Apache-2.0 */
/* The scenario in force, the handles given out, and the beginning and end of every call.
 *
 * A handle is a slot of one hash table and stands for an identity (a UUID, an instance's numbers), never for a place in
 * the scenario: like a real one it outlives changes, and leads to an error once what it stands for is gone.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

struct handle {
    enum kind kind; /* 0: free */
    char uuid[NVML_UUID_SIZE];
    int64_t gi, ci;
    size_t hint; /* where it was found last */
};

struct stamp {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec modified, changed;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned inits;
static char path[PATH_MAX], directory[PATH_MAX];
static struct scenario* current;
static struct stamp read_at;
static struct handle* handles; /* never freed: a stale handle must stay harmless */

void lock_state(void) { pthread_mutex_lock(&mutex); }

void unlock_state(void) { pthread_mutex_unlock(&mutex); }

const struct scenario* scenario_now(void) { return current; }

bool state_is_open(void) { return inits > 0; }

const char* scenario_directory(void) { return directory; }

void sleep_us(int64_t us) {
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (us > 0 && nanosleep(&left, &left)) continue;
}

static bool locate(void) {
    const char* given = getenv("DEVICEPLUGIN_NVML_SCENARIO");
    Dl_info self;
    int n;
    if (given && *given)
        n = snprintf(path, sizeof path, "%s", given);
    else if (!dladdr((void*)locate, &self) || !self.dli_fname)
        return false;
    else {
        const char* slash = strrchr(self.dli_fname, '/');
        n = snprintf(path, sizeof path, "%.*sscenario", slash ? (int)(slash + 1 - self.dli_fname) : 0, self.dli_fname);
    }
    if (n < 0 || (size_t)n >= sizeof path) return false;
    char* slash = strrchr(strcpy(directory, path), '/');
    if (slash)
        slash[slash == directory] = 0;
    else
        strcpy(directory, ".");
    return true;
}

static char* read_file(int fd, size_t size) {
    char* text = malloc(size + 1);
    size_t got = 0;
    while (text && got < size) {
        ssize_t n = read(fd, text + got, size - got);
        if (n <= 0) {
            free(text);
            return NULL;
        }
        got += (size_t)n;
    }
    return text;
}

static struct stamp stamp_of(const struct stat* st) {
    struct stamp s;
    memset(&s, 0, sizeof s); /* compared with its padding */
    s.device = st->st_dev;
    s.inode = st->st_ino;
    s.size = st->st_size;
    s.modified = st->st_mtim;
    s.changed = st->st_ctim;
    return s;
}

/* A file that is not there is a driver that is not loaded. A file that does not parse leaves the last good scenario in
 * force. */
nvml_return refresh(void) {
    struct stat st;
    struct stamp s;
    if (stat(path, &st)) return NVML_ERROR_DRIVER_NOT_LOADED;
    s = stamp_of(&st);
    if (!memcmp(&s, &read_at, sizeof s)) return current ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    char* text = NULL;
    if (!fstat(fd, &st) && st.st_size <= MAX_FILE) text = read_file(fd, (size_t)st.st_size);
    close(fd);
    struct scenario* fresh = text ? scenario_parse(path, text, (size_t)st.st_size) : NULL;
    free(text);
    read_at = stamp_of(&st);
    if (fresh) {
        scenario_free(current);
        current = fresh;
    }
    return current ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

nvml_return state_open(void) {
    if (!inits && !locate()) return NVML_ERROR_UNKNOWN;
    nvml_return result = refresh();
    if (!result) result = rule_for("nvmlInit", -1);
    if (!result && !handles && !(handles = calloc(MAX_HANDLES, sizeof *handles))) result = NVML_ERROR_MEMORY;
    inits += !result;
    return result;
}

nvml_return state_close(void) {
    if (!inits) return NVML_ERROR_UNINITIALIZED;
    if (--inits) return NVML_SUCCESS;
    events_forget();
    scenario_free(current);
    current = NULL;
    memset(&read_at, 0, sizeof read_at);
    return NVML_SUCCESS;
}

/* A rule for nvmlX is one for nvmlX_v2 too. */
static bool is_for(const struct rule* rule, const char* function, int64_t gpu) {
    size_t n = strlen(rule->function);
    if (rule->gpu >= 0 && rule->gpu != gpu) return false;
    if (!strcmp(rule->function, "*")) return strncmp(function, "nvmlInit", 8) != 0;
    return !strncmp(rule->function, function, n) && (!function[n] || !strncmp(function + n, "_v", 2));
}

nvml_return rule_for(const char* function, int64_t gpu) {
    for (size_t i = 0; current && i < current->rule_count; i++) {
        struct rule rule = current->rules[i];
        if (!is_for(&rule, function, gpu)) continue;
        if (rule.crash) abort();
        if (rule.delay_us > 0) {
            unlock_state();
            sleep_us(rule.delay_us);
            lock_state();
        }
        return (nvml_return)rule.result;
    }
    return NVML_SUCCESS;
}

static size_t hash(enum kind kind, const char* uuid, int64_t gi, int64_t ci) {
    uint64_t h = 14695981039346656037u ^ (uint64_t)kind ^ (uint64_t)gi << 8 ^ (uint64_t)ci << 16; /* FNV-1a */
    for (; *uuid; uuid++) h = (h ^ (unsigned char)*uuid) * 1099511628211u;
    return (h ^ h >> 32) % MAX_HANDLES;
}

void* intern(enum kind kind, const char* uuid, int64_t gi, int64_t ci) {
    size_t start = hash(kind, uuid, gi, ci);
    for (size_t i = 0; i < MAX_HANDLES; i++) {
        struct handle* h = &handles[(start + i) % MAX_HANDLES];
        if (!h->kind) {
            h->kind = kind;
            strcpy(h->uuid, uuid);
            h->gi = gi;
            h->ci = ci;
            return h;
        }
        if (h->kind == kind && h->gi == gi && h->ci == ci && !strcmp(h->uuid, uuid)) return h;
    }
    return NULL;
}

static bool find_gpu(struct handle* h, struct target* t) {
    const struct scenario* s = current;
    if (h->hint >= s->gpu_count || strcmp(s->gpus[h->hint].uuid, h->uuid))
        for (h->hint = 0; h->hint < s->gpu_count && strcmp(s->gpus[h->hint].uuid, h->uuid);) h->hint++;
    if (h->hint >= s->gpu_count) return false;
    t->index = h->hint;
    t->gpu = &s->gpus[h->hint];
    return true;
}

static bool is_mig(const struct handle* h, const struct mig* m) {
    const struct gpu* g = &current->gpus[m->gpu];
    if (h->kind == KIND_MIG) return !strcmp(m->uuid, h->uuid);
    return m->gi == h->gi && (h->kind == KIND_GPU_INSTANCE || m->ci == h->ci) && !strcmp(g->uuid, h->uuid);
}

static bool find_mig(struct handle* h, struct target* t) {
    const struct scenario* s = current;
    if (h->hint >= s->mig_count || !is_mig(h, &s->migs[h->hint]))
        for (h->hint = 0; h->hint < s->mig_count && !is_mig(h, &s->migs[h->hint]);) h->hint++;
    if (h->hint >= s->mig_count) return false;
    t->mig = &s->migs[h->hint];
    t->index = (size_t)t->mig->gpu;
    t->gpu = &s->gpus[t->index];
    return true;
}

nvml_return resolve(const void* handle, unsigned kinds, struct target* t) {
    uintptr_t at = (uintptr_t)handle - (uintptr_t)handles;
    memset(t, 0, sizeof *t);
    if (!handle || at >= MAX_HANDLES * sizeof *handles || at % sizeof *handles) return NVML_ERROR_INVALID_ARGUMENT;
    struct handle* h = &handles[at / sizeof *handles];
    if (!h->kind || !(ONLY(h->kind) & kinds)) return NVML_ERROR_INVALID_ARGUMENT;
    if (h->kind == KIND_GPU ? !find_gpu(h, t) : !find_mig(h, t))
        return h->kind == KIND_GPU ? NVML_ERROR_GPU_IS_LOST : NVML_ERROR_INVALID_ARGUMENT;
    return t->gpu->lost > 0 ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

static nvml_return begin(void) {
    lock_state();
    return inits ? refresh() : NVML_ERROR_UNINITIALIZED;
}

nvml_return leave(nvml_return result) {
    unlock_state();
    return result;
}

nvml_return enter(const char* function) {
    nvml_return result = begin();
    if (!result) result = rule_for(function, -1);
    if (!result) result = inits ? refresh() : NVML_ERROR_UNINITIALIZED; /* much can happen in a slow call */
    return result ? leave(result) : NVML_SUCCESS;
}

nvml_return enter_handle(const char* function, const void* handle, unsigned kinds, struct target* t) {
    nvml_return result = begin();
    if (!result) result = resolve(handle, kinds, t);
    if (!result) result = rule_for(function, (int64_t)t->index);
    if (!result) result = inits ? refresh() : NVML_ERROR_UNINITIALIZED;
    if (!result) result = resolve(handle, kinds, t);
    return result ? leave(result) : NVML_SUCCESS;
}

nvml_return copy_text(const char* text, char* out, unsigned int size) {
    if (!out) return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= size) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return NVML_SUCCESS;
}
