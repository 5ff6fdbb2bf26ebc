/* SPDX-License-Identifier: Apache-2.0 */
/* Event sets. The scenario's events are numbered; a set delivers those that came after a GPU was registered with it,
 * each once, in order. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

struct registration {
    char uuid[NVML_UUID_SIZE];
    unsigned long long types;
    int64_t seen; /* number of the last event that it had, or that came before it */
};

struct event_set {
    struct event_set* next;
    struct registration* registrations;
    size_t count;
    int watch; /* inotify: says that the scenario may have changed; -1: look now and then */
    unsigned waiting;
    bool ended;
};

enum {
    LOOK_MS = 10,      /* without inotify */
    BACKSTOP_MS = 500, /* with it: two waits on one set can take each other's notice */
};

static struct event_set* sets;

static struct event_set* find(const void* handle) {
    struct event_set* set = sets;
    while (set && set != handle) set = set->next;
    return set;
}

static void release(struct event_set* set) {
    if (set->watch >= 0) close(set->watch);
    free(set->registrations);
    free(set);
}

/* Out of the list; freed now, or by the last that waits on it. */
static void end(struct event_set* set) {
    struct event_set** at = &sets;
    while (*at != set) at = &(*at)->next;
    *at = set->next;
    set->ended = true;
    if (!set->waiting) release(set);
}

void events_forget(void) {
    while (sets) end(sets);
}

EXPORT nvml_return nvmlEventSetCreate(nvml_event_set* out) {
    nvml_return result = enter("nvmlEventSetCreate");
    if (result) return result;
    struct event_set* set = out ? calloc(1, sizeof *set) : NULL;
    if (!set) return leave(out ? NVML_ERROR_MEMORY : NVML_ERROR_INVALID_ARGUMENT);
    set->watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (set->watch >= 0 &&
        inotify_add_watch(set->watch, scenario_directory(), IN_MOVED_TO | IN_CLOSE_WRITE | IN_DELETE) < 0) {
        close(set->watch);
        set->watch = -1;
    }
    set->next = sets;
    sets = set;
    *out = (nvml_event_set)(void*)set;
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlEventSetFree(nvml_event_set handle) {
    lock_state();
    struct event_set* set = find(handle);
    if (!set) return leave(state_is_open() ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_UNINITIALIZED);
    end(set);
    return leave(NVML_SUCCESS);
}

EXPORT nvml_return nvmlDeviceRegisterEvents(nvml_device device, unsigned long long types, nvml_event_set handle) {
    struct target t;
    nvml_return result = enter_handle("nvmlDeviceRegisterEvents", device, ONLY(KIND_GPU), &t);
    if (result) return result;
    const struct scenario* s = scenario_now();
    struct event_set* set = find(handle);
    struct registration* r;
    if (!set) return leave(NVML_ERROR_INVALID_ARGUMENT);
    if (t.gpu->events <= 0 || types & ~(unsigned long long)t.gpu->events) return leave(NVML_ERROR_NOT_SUPPORTED);
    for (size_t i = 0; i < set->count; i++)
        if (!strcmp(set->registrations[i].uuid, t.gpu->uuid)) {
            set->registrations[i].types |= types;
            return leave(NVML_SUCCESS);
        }
    if (!(r = realloc(set->registrations, (set->count + 1) * sizeof *r))) return leave(NVML_ERROR_MEMORY);
    set->registrations = r;
    r += set->count++;
    memset(r, 0, sizeof *r);
    strcpy(r->uuid, t.gpu->uuid);
    r->types = types;
    for (size_t i = 0; i < s->event_count; i++)
        if (s->events[i].sequence > r->seen) r->seen = s->events[i].sequence;
    return leave(NVML_SUCCESS);
}

/* The oldest event that the set has not had; once there is none, a lost GPU is an error of the whole set, as it is with
 * the real library. */
static nvml_return take(struct event_set* set, struct nvml_event_data* out) {
    const struct scenario* s = scenario_now();
    const struct event* oldest = NULL;
    struct registration* whose = NULL;
    bool lost = false;
    for (size_t i = 0; i < set->count; i++) {
        struct registration* r = &set->registrations[i];
        const struct gpu* gpu = NULL;
        for (size_t k = 0; k < s->gpu_count && !gpu; k++)
            if (!strcmp(s->gpus[k].uuid, r->uuid)) gpu = &s->gpus[k];
        lost |= !gpu || gpu->lost > 0;
        for (size_t k = 0; k < s->event_count; k++) {
            const struct event* e = &s->events[k];
            if (gpu == &s->gpus[e->gpu] && e->sequence > r->seen && (unsigned long long)e->type & r->types &&
                (!oldest || e->sequence < oldest->sequence)) {
                oldest = e;
                whose = r;
            }
        }
    }
    if (!oldest) return lost ? NVML_ERROR_GPU_IS_LOST : NVML_ERROR_TIMEOUT;
    whose->seen = oldest->sequence;
    out->device = intern(KIND_GPU, whose->uuid, 0, 0);
    out->type = (unsigned long long)oldest->type;
    out->data = (unsigned long long)oldest->data;
    out->gpu_instance = (unsigned int)oldest->gi;
    out->compute_instance = (unsigned int)oldest->ci;
    return NVML_SUCCESS;
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

static void pause_until(int watch, int64_t left_ms) {
    char events[4096];
    struct pollfd fd = {watch, POLLIN, 0};
    int64_t most = watch < 0 ? LOOK_MS : BACKSTOP_MS;
    if (poll(&fd, watch >= 0, (int)(left_ms < most ? left_ms : most)) > 0)
        while (read(watch, events, sizeof events) > 0) continue;
}

static nvml_return wait_for(const char* function, nvml_event_set handle, struct nvml_event_data* out,
                            unsigned int timeout_ms) {
    int64_t deadline = now_ms() + timeout_ms;
    nvml_return result = enter(function);
    if (result) return result;
    struct event_set* set = find(handle);
    if (!set || !out) return leave(NVML_ERROR_INVALID_ARGUMENT);
    set->waiting++;
    for (;;) {
        result = take(set, out);
        int64_t left = deadline - now_ms();
        if (result != NVML_ERROR_TIMEOUT || left <= 0) break;
        unlock_state();
        pause_until(set->watch, left);
        lock_state();
        if (set->ended) {
            result = NVML_ERROR_UNINITIALIZED;
            break;
        }
        if ((result = refresh())) break;
    }
    if (!--set->waiting && set->ended) release(set);
    return leave(result);
}

#ifndef NVML_SIM_OLD
EXPORT nvml_return nvmlEventSetWait_v2(nvml_event_set set, struct nvml_event_data* out, unsigned int timeout_ms) {
    return wait_for("nvmlEventSetWait_v2", set, out, timeout_ms);
}
#endif

/* The first version of the structure ends after the data. */
EXPORT nvml_return nvmlEventSetWait(nvml_event_set set, void* out, unsigned int timeout_ms) {
    struct nvml_event_data all;
    nvml_return result = out ? wait_for("nvmlEventSetWait", set, &all, timeout_ms) : NVML_ERROR_INVALID_ARGUMENT;
    if (!result) memcpy(out, &all, offsetof(struct nvml_event_data, gpu_instance));
    return result;
}
