/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a scenario: lines of a word and name=value pairs; a value may stand in double quotes; # starts a comment.
 *
 * The first line is "nvml-scenario 1". GPUs are numbered in the order of their lines. Unknown words and names are
 * errors: a typo must not silently test something else.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum type { TEXT, NUMBER, PCI, COMPUTE, TREE };

struct field {
    const char* name;
    enum type type;
    size_t offset, size; /* size: of a text's buffer */
    int64_t initial;
};

#define TEXT_FIELD(record, member) \
    {#member, TEXT, offsetof(struct record, member), sizeof(((struct record*)0)->member), 0}
#define NUMBER_FIELD(record, member, initial) {#member, NUMBER, offsetof(struct record, member), 0, initial}
#define RENAMED_FIELD(record, name, member, initial) {name, NUMBER, offsetof(struct record, member), 0, initial}

static const struct field driver_fields[] = {{"version", TEXT, offsetof(struct scenario, driver), NVML_VERSION_SIZE, 0},
                                             TEXT_FIELD(scenario, nvml),
                                             NUMBER_FIELD(scenario, cuda, 12040),
                                             {0}};

static const struct field gpu_fields[] = {TEXT_FIELD(gpu, uuid),
                                          TEXT_FIELD(gpu, name),
                                          TEXT_FIELD(gpu, serial),
                                          TEXT_FIELD(gpu, profiles),
                                          TEXT_FIELD(gpu, cluster),
                                          {"pci", PCI, offsetof(struct gpu, domain), 0, 0},
                                          {"compute", COMPUTE, offsetof(struct gpu, major), 0, 0},
                                          {"tree", TREE, offsetof(struct gpu, tree), 0, 0},
                                          NUMBER_FIELD(gpu, device_id, 0),
                                          NUMBER_FIELD(gpu, subsystem_id, 0),
                                          NUMBER_FIELD(gpu, minor, -1),
                                          NUMBER_FIELD(gpu, brand, 14),
                                          NUMBER_FIELD(gpu, architecture, -1),
                                          NUMBER_FIELD(gpu, memory, 0),
                                          NUMBER_FIELD(gpu, reserved, 0),
                                          NUMBER_FIELD(gpu, used, 0),
                                          NUMBER_FIELD(gpu, numa, -1),
                                          NUMBER_FIELD(gpu, mig_mode, -1),
                                          NUMBER_FIELD(gpu, mig_pending, -1),
                                          NUMBER_FIELD(gpu, max_mig, 0),
                                          NUMBER_FIELD(gpu, links, 0),
                                          NUMBER_FIELD(gpu, fabric_state, -1),
                                          NUMBER_FIELD(gpu, fabric_status, 0),
                                          NUMBER_FIELD(gpu, clique, 0),
                                          NUMBER_FIELD(gpu, fabric_health, 0),
                                          NUMBER_FIELD(gpu, fabric_summary, 0),
                                          NUMBER_FIELD(gpu, ecc_mode, -1),
                                          NUMBER_FIELD(gpu, ecc_pending, -1),
                                          RENAMED_FIELD(gpu, "ecc_corrected_volatile", ecc[0][0], 0),
                                          RENAMED_FIELD(gpu, "ecc_corrected_aggregate", ecc[0][1], 0),
                                          RENAMED_FIELD(gpu, "ecc_uncorrected_volatile", ecc[1][0], 0),
                                          RENAMED_FIELD(gpu, "ecc_uncorrected_aggregate", ecc[1][1], 0),
                                          NUMBER_FIELD(gpu, remap_corrected, -1),
                                          NUMBER_FIELD(gpu, remap_uncorrected, 0),
                                          NUMBER_FIELD(gpu, remap_pending, 0),
                                          NUMBER_FIELD(gpu, remap_failure, 0),
                                          NUMBER_FIELD(gpu, retired_pending, -1),
                                          NUMBER_FIELD(gpu, temperature, -1),
                                          NUMBER_FIELD(gpu, power, -1),
                                          NUMBER_FIELD(gpu, power_limit, -1),
                                          NUMBER_FIELD(gpu, use_gpu, -1),
                                          NUMBER_FIELD(gpu, use_memory, 0),
                                          NUMBER_FIELD(gpu, events, -1),
                                          NUMBER_FIELD(gpu, compute_mode, 0),
                                          NUMBER_FIELD(gpu, persistence, 1),
                                          NUMBER_FIELD(gpu, lost, 0),
                                          {0}};

static const struct field mig_fields[] = {TEXT_FIELD(mig, uuid),
                                          NUMBER_FIELD(mig, gpu, -1),
                                          NUMBER_FIELD(mig, index, 0),
                                          NUMBER_FIELD(mig, gi, 0),
                                          NUMBER_FIELD(mig, ci, 0),
                                          NUMBER_FIELD(mig, gi_profile, 0),
                                          NUMBER_FIELD(mig, ci_profile, 0),
                                          NUMBER_FIELD(mig, start, 0),
                                          NUMBER_FIELD(mig, size, 1),
                                          NUMBER_FIELD(mig, ci_start, 0),
                                          NUMBER_FIELD(mig, ci_size, 1),
                                          {0}};

static const struct field link_fields[] = {TEXT_FIELD(link, remote),
                                           NUMBER_FIELD(link, gpu, -1),
                                           NUMBER_FIELD(link, link, 0),
                                           NUMBER_FIELD(link, state, 1),
                                           NUMBER_FIELD(link, version, 0),
                                           NUMBER_FIELD(link, type, 0),
                                           {0}};

static const struct field profile_fields[] = {TEXT_FIELD(profile, table),
                                              TEXT_FIELD(profile, name),
                                              NUMBER_FIELD(profile, index, 0),
                                              NUMBER_FIELD(profile, id, 0),
                                              NUMBER_FIELD(profile, slices, 1),
                                              NUMBER_FIELD(profile, instances, 1),
                                              NUMBER_FIELD(profile, multiprocessors, 0),
                                              NUMBER_FIELD(profile, copy_engines, 0),
                                              NUMBER_FIELD(profile, decoders, 0),
                                              NUMBER_FIELD(profile, encoders, 0),
                                              NUMBER_FIELD(profile, jpegs, 0),
                                              NUMBER_FIELD(profile, ofas, 0),
                                              NUMBER_FIELD(profile, memory, 0),
                                              NUMBER_FIELD(profile, p2p, 0),
                                              NUMBER_FIELD(profile, capabilities, 0),
                                              {0}};

static const struct field event_fields[] = {NUMBER_FIELD(event, sequence, 0),
                                            NUMBER_FIELD(event, gpu, -1),
                                            NUMBER_FIELD(event, type, 0),
                                            NUMBER_FIELD(event, data, 0),
                                            NUMBER_FIELD(event, gi, 0xffffffff),
                                            NUMBER_FIELD(event, ci, 0xffffffff),
                                            {0}};

static const struct field rule_fields[] = {TEXT_FIELD(rule, function),    NUMBER_FIELD(rule, gpu, -1),
                                           NUMBER_FIELD(rule, result, 0), NUMBER_FIELD(rule, delay_us, 0),
                                           NUMBER_FIELD(rule, crash, 0),  {0}};

struct list {
    const char* word;
    const struct field* fields;
    size_t items, count, size,
        limit; /* offsets of the array and its length in struct scenario; size and greatest number of its items */
};

#define LIST(word, fields, record, member, limit) \
    {word,                                        \
     fields,                                      \
     offsetof(struct scenario, member##s),        \
     offsetof(struct scenario, member##_count),   \
     sizeof(struct record),                       \
     limit}

static const struct list lists[] = {LIST("gpu", gpu_fields, gpu, gpu, MAX_GPUS),
                                    LIST("mig", mig_fields, mig, mig, MAX_MIGS),
                                    LIST("link", link_fields, link, link, MAX_LINKS),
                                    LIST("profile", profile_fields, profile, profile, MAX_PROFILES),
                                    LIST("event", event_fields, event, event, MAX_EVENTS),
                                    LIST("rule", rule_fields, rule, rule, MAX_RULES)};

struct reader {
    const char *path, *at, *end; /* at: in the current line */
    unsigned line;
};

static bool complain(const struct reader* r, const char* what, const char* name) {
    fprintf(stderr, "nvml simulator: %s:%u: %s%s%.64s\n", r->path, r->line, what, *name ? ": " : "", name);
    return false;
}

/* The next word, or value after `=`, of the line into `out`: 1, 0 at the end of the line, -1 when it is too long or
 * badly quoted. */
static int next(struct reader* r, const char* stops, char* out, size_t size) {
    bool quoted = false;
    size_t n = 0;
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t')) r->at++;
    if (r->at == r->end || *r->at == '#') return 0;
    if (*r->at == '"' && stops[0] == ' ') {
        quoted = true;
        r->at++;
    }
    for (; r->at < r->end && (quoted ? *r->at != '"' : !strchr(stops, *r->at)); r->at++) {
        if (n + 1 >= size || !*r->at) return -1;
        out[n++] = *r->at;
    }
    out[n] = 0;
    if (!quoted) return 1;
    if (r->at == r->end) return -1;
    r->at++;
    return 1;
}

static bool number(const char** text, int base, int64_t* out) {
    char* end;
    errno = 0;
    *out = strtoll(*text, &end, base);
    if (end == *text || errno) return false;
    *text = end;
    return true;
}

/* Numbers with `separators` between them, all of which must be there. */
static bool numbers(const char* text, int base, const char* separators, int64_t* out) {
    for (;; separators++, text++) {
        if (!number(&text, base, out++)) return false;
        if (*text != *separators) return false;
        if (!*separators) return true;
    }
}

static bool store(const struct field* f, char* record, const char* value) {
    int64_t* n = (int64_t*)(void*)(record + f->offset);
    int64_t pci[4];
    switch (f->type) {
        case TEXT:
            if (strlen(value) >= f->size) return false;
            strcpy(record + f->offset, value);
            return true;
        case NUMBER:
            return numbers(value, 0, "", n);
        case PCI:
            if (!numbers(value, 16, "::.", pci) || pci[0] < 0 || pci[0] > 0xffffffff || pci[1] < 0 || pci[1] > 0xff ||
                pci[2] < 0 || pci[2] > 0x1f)
                return false;
            memcpy(n, pci, 3 * sizeof *n);
            return true;
        case COMPUTE:
            return numbers(value, 10, ".", n);
        case TREE:
            return numbers(value, 10, "....", n);
    }
    return false;
}

static bool pairs(struct reader* r, const struct field* fields, char* record) {
    char name[64], value[256];
    for (const struct field* f = fields; f->name; f++)
        if (f->type == NUMBER) *(int64_t*)(void*)(record + f->offset) = f->initial;
    for (;;) {
        int got = next(r, "= \t\r", name, sizeof name);
        if (!got) return true;
        if (got < 0 || r->at == r->end || *r->at != '=') return complain(r, "name=value expected", got < 0 ? "" : name);
        r->at++;
        value[0] = 0;
        if (r->at < r->end && *r->at != ' ' && next(r, " \t\r", value, sizeof value) < 0)
            return complain(r, "value too long or not closed", name);
        const struct field* f = fields;
        while (f->name && strcmp(f->name, name)) f++;
        if (!f->name) return complain(r, "unknown name", name);
        if (!store(f, record, value)) return complain(r, "bad value", name);
    }
}

static bool add(struct reader* r, struct scenario* s, const struct list* list) {
    void** items = (void**)(void*)((char*)s + list->items);
    size_t* count = (size_t*)(void*)((char*)s + list->count);
    if (*count == list->limit) return complain(r, "too many of these lines", list->word);
    if (!(*count & (*count - 1))) { /* full at each power of two */
        void* grown = realloc(*items, (*count ? *count * 2 : 1) * list->size);
        if (!grown) return complain(r, "out of memory", "");
        *items = grown;
    }
    char* record = (char*)*items + *count * list->size;
    memset(record, 0, list->size);
    ++*count;
    return pairs(r, list->fields, record);
}

static bool line(struct reader* r, struct scenario* s) {
    char word[32], version[8];
    int got = next(r, " \t\r", word, sizeof word);
    if (!got) return r->line > 1 || complain(r, "the first line must be: nvml-scenario 1", "");
    if (got < 0) return complain(r, "word too long", "");
    if (r->line == 1) {
        if (strcmp(word, "nvml-scenario") || next(r, " \t\r", version, sizeof version) != 1 || strcmp(version, "1"))
            return complain(r, "the first line must be: nvml-scenario 1", "");
        return true;
    }
    if (!strcmp(word, "driver")) return pairs(r, driver_fields, (char*)s);
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (!strcmp(word, lists[i].word)) return add(r, s, &lists[i]);
    return complain(r, "unknown word", word);
}

/* Every reference to a GPU must lead to one; the functions index without asking again. */
static bool whole(struct reader* r, const struct scenario* s) {
    int64_t gpus = (int64_t)s->gpu_count;
    for (size_t i = 0; i < s->gpu_count; i++)
        if (!s->gpus[i].uuid[0]) return complain(r, "a gpu without uuid", "");
    for (size_t i = 0; i < s->mig_count; i++)
        if (s->migs[i].gpu < 0 || s->migs[i].gpu >= gpus || !s->migs[i].uuid[0])
            return complain(r, "a mig without uuid or of no gpu", s->migs[i].uuid);
    for (size_t i = 0; i < s->link_count; i++)
        if (s->links[i].gpu < 0 || s->links[i].gpu >= gpus) return complain(r, "a link of no gpu", "");
    for (size_t i = 0; i < s->event_count; i++)
        if (s->events[i].gpu < 0 || s->events[i].gpu >= gpus) return complain(r, "an event of no gpu", "");
    return true;
}

struct scenario* scenario_parse(const char* path, const char* text, size_t length) {
    struct scenario* s = calloc(1, sizeof *s);
    struct reader r = {path, text, text, 0};
    const char* end = text + length;
    if (!s) return NULL;
    strcpy(s->driver, "550.90.07");
    strcpy(s->nvml, "12.550.90.07");
    s->cuda = 12040;
    while (r.at < end || !r.line) {
        const char* newline = r.at < end ? memchr(r.at, '\n', (size_t)(end - r.at)) : NULL;
        r.end = newline ? newline : end;
        r.line++;
        if (!line(&r, s)) {
            scenario_free(s);
            return NULL;
        }
        r.at = newline ? newline + 1 : end;
    }
    if (!whole(&r, s)) {
        scenario_free(s);
        return NULL;
    }
    return s;
}

void scenario_free(struct scenario* s) {
    if (!s) return;
    free(s->gpus);
    free(s->migs);
    free(s->links);
    free(s->profiles);
    free(s->events);
    free(s->rules);
    free(s);
}
