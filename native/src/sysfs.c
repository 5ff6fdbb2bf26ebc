// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE

#include "sysfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool reserve(struct sysfs_buffer* buffer, size_t size) {
    if (size <= buffer->room - buffer->size) return true;
    size_t room = buffer->room ? buffer->room : 4096;
    while (room - buffer->size < size) {
        if (room > SIZE_MAX / 2) return false;
        room *= 2;
    }
    char* data = realloc(buffer->data, room);
    if (data == NULL) return false;
    buffer->data = data;
    buffer->room = room;
    return true;
}

// Sets `full` to where a path of the batch is for this process, or returns why it is nowhere.
static int locate(const struct sysfs_batch* batch, const struct sysfs_text* path, char full[PATH_MAX]) {
    const char* at = path->at;
    if (strlen(at) != path->size) return EINVAL;
    if (batch->root.size)
        while (*at == '/') at++;
    size_t size = path->size - (size_t)(at - path->at);
    if (batch->root.size >= PATH_MAX || size >= PATH_MAX - batch->root.size) return ENAMETOOLONG;
    memcpy(full, batch->root.at, batch->root.size);
    memcpy(full + batch->root.size, at, size + 1);
    return 0;
}

// Answers one path: sets its error, or appends what was found. Returns SYSFS_INTERRUPTED when it is to be called again.
typedef enum sysfs_status (*look)(struct sysfs_batch* batch, struct sysfs_answer* answer, void* more);

static enum sysfs_status answer_all(struct sysfs_batch* batch, look look_at, void* more) {
    for (; batch->done < batch->count; batch->done++) {
        struct sysfs_answer* answer = &batch->answer[batch->done];
        if (answer->error) continue;
        answer->start = batch->found.size;
        enum sysfs_status status = look_at(batch, answer, more);
        if (status == SYSFS_DONE && answer->error == EINTR) {
            answer->error = 0;
            status = SYSFS_INTERRUPTED;
        }
        if (status != SYSFS_DONE) return status;
        if (!answer->error) answer->size = batch->found.size - answer->start;
    }
    return SYSFS_DONE;
}

static bool is_blank(char c) { return c == '\0' || c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static enum sysfs_status read_one(struct sysfs_batch* batch, struct sysfs_answer* answer, void* more) {
    const size_t limit = *(const size_t*)more;
    char full[PATH_MAX];
    if (!reserve(&batch->found, limit)) return SYSFS_NO_MEMORY;
    answer->error = locate(batch, &batch->path[batch->done], full);
    if (answer->error) return SYSFS_DONE;
    // A FIFO that stands in for an attribute must not block the look at everything else.
    int fd = open(full, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        answer->error = errno;
        return SYSFS_DONE;
    }
    char* data = batch->found.data + batch->found.size;
    ssize_t size = read(fd, data, limit);
    if (size < 0) answer->error = errno;
    close(fd);
    while (size > 0 && is_blank(data[size - 1])) size--;
    if (size > 0) batch->found.size += (size_t)size;
    return SYSFS_DONE;
}

enum sysfs_status sysfs_read(struct sysfs_batch* batch, size_t limit) { return answer_all(batch, read_one, &limit); }

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static size_t run(const char* text) {
    size_t size = 1;
    while (text[size] && is_digit(text[size]) == is_digit(*text)) size++;
    return size;
}

static int compare_bytes(const char* a, size_t a_size, const char* b, size_t b_size) {
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int compare_numbers(const char* a, size_t a_size, const char* b, size_t b_size) {
    for (; a_size && *a == '0'; a_size--) a++;
    for (; b_size && *b == '0'; b_size--) b++;
    if (a_size != b_size) return a_size < b_size ? -1 : 1;
    return memcmp(a, b, a_size);
}

static int compare_names(const void* first, const void* second) {
    const char* a = *(const char* const*)first;
    const char* b = *(const char* const*)second;
    while (*a && *b) {
        if (is_digit(*a) != is_digit(*b)) return is_digit(*a) ? -1 : 1;
        size_t a_run = run(a), b_run = run(b);
        int order = is_digit(*a) ? compare_numbers(a, a_run, b, b_run) : compare_bytes(a, a_run, b, b_run);
        if (order) return order;
        a += a_run;
        b += b_run;
    }
    if (*a || *b) return *a ? 1 : -1;
    return strcmp(*(const char* const*)first, *(const char* const*)second);
}

// What is read of one directory before it is put in order.
struct listing {
    struct sysfs_buffer names;
    struct sysfs_buffer order;  // pointers
    size_t count;
};

static enum sysfs_status gather(DIR* directory, struct listing* listing, int* error) {
    listing->names.size = 0;
    listing->count = 0;
    for (;;) {
        errno = 0;
        const struct dirent* entry = readdir(directory);
        if (entry == NULL) break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        size_t size = strlen(entry->d_name) + 1;
        if (!reserve(&listing->names, size)) return SYSFS_NO_MEMORY;
        memcpy(listing->names.data + listing->names.size, entry->d_name, size);
        listing->names.size += size;
        listing->count++;
    }
    *error = errno;
    return SYSFS_DONE;
}

static bool put_in_order(struct listing* listing, struct sysfs_buffer* found) {
    if (listing->count == 0) return true;
    if (listing->count > SIZE_MAX / sizeof(char*) || !reserve(&listing->order, listing->count * sizeof(char*)) ||
        !reserve(found, listing->names.size))
        return false;
    const char** order = (const char**)(void*)listing->order.data;
    const char* name = listing->names.data;
    for (size_t i = 0; i < listing->count; i++) {
        order[i] = name;
        name += strlen(name) + 1;
    }
    qsort(order, listing->count, sizeof(char*), compare_names);
    for (size_t i = 0; i < listing->count; i++) {
        size_t size = strlen(order[i]) + 1;
        memcpy(found->data + found->size, order[i], size);
        found->size += size;
    }
    return true;
}

static enum sysfs_status list_one(struct sysfs_batch* batch, struct sysfs_answer* answer, void* more) {
    struct listing* listing = more;
    char full[PATH_MAX];
    answer->error = locate(batch, &batch->path[batch->done], full);
    if (answer->error) return SYSFS_DONE;
    DIR* directory = opendir(full);
    if (directory == NULL) {
        answer->error = errno;
        return SYSFS_DONE;
    }
    enum sysfs_status status = gather(directory, listing, &answer->error);
    closedir(directory);
    if (status != SYSFS_DONE || answer->error) return status;
    return put_in_order(listing, &batch->found) ? SYSFS_DONE : SYSFS_NO_MEMORY;
}

enum sysfs_status sysfs_list(struct sysfs_batch* batch) {
    struct listing listing = {0};
    enum sysfs_status status = answer_all(batch, list_one, &listing);
    free(listing.names.data);
    free(listing.order.data);
    return status;
}

// The paths that one path leads through. A link's target is walked before what is left of the path that it stands in.
struct walk {
    char full[PATH_MAX];
    const char* left[SYSFS_LINKS + 1];  // what is still to be walked, the innermost last
    char target[SYSFS_LINKS + 1][PATH_MAX];
};

static int resolve(const struct sysfs_batch* batch, struct walk* walk, size_t* end) {
    const struct sysfs_text* path = &batch->path[batch->done];
    const size_t base = batch->root.size ? batch->root.size - 1 : 0;  // the slash comes with the first part
    size_t depth = 0, links = 0;
    if (strlen(path->at) != path->size) return EINVAL;
    if (base >= PATH_MAX) return ENAMETOOLONG;
    memcpy(walk->full, batch->root.at, base);
    *end = base;
    walk->left[depth++] = path->at;
    while (depth) {
        const char* part = walk->left[depth - 1];
        while (*part == '/') part++;
        const size_t size = strcspn(part, "/");
        walk->left[depth - 1] = part + size;
        if (size == 0) {
            depth--;
            continue;
        }
        if (size == 1 && part[0] == '.') continue;
        if (size == 2 && part[0] == '.' && part[1] == '.') {
            while (*end > base && walk->full[--*end] != '/') continue;
            continue;
        }
        if (size + 1 >= PATH_MAX - *end) return ENAMETOOLONG;
        const size_t above = *end;
        walk->full[*end] = '/';
        memcpy(walk->full + *end + 1, part, size);
        *end += size + 1;
        walk->full[*end] = '\0';
        char* target = walk->target[links];
        const ssize_t length = readlink(walk->full, target, PATH_MAX);
        if (length < 0) {
            if (errno == EINTR) return EINTR;
            continue;  // not a link, or nothing there
        }
        if (links++ == SYSFS_LINKS) return ELOOP;
        if (length >= PATH_MAX) return ENAMETOOLONG;
        target[length] = '\0';
        *end = target[0] == '/' ? base : above;
        walk->left[depth++] = target;
    }
    return 0;
}

static enum sysfs_status resolve_one(struct sysfs_batch* batch, struct sysfs_answer* answer, void* more) {
    struct walk* walk = more;
    size_t end = 0;
    answer->error = resolve(batch, walk, &end);
    if (answer->error) return SYSFS_DONE;
    const size_t base = batch->root.size ? batch->root.size - 1 : 0;
    if (end == base) walk->full[end++] = '/';
    if (!reserve(&batch->found, end - base)) return SYSFS_NO_MEMORY;
    memcpy(batch->found.data + batch->found.size, walk->full + base, end - base);
    batch->found.size += end - base;
    return SYSFS_DONE;
}

enum sysfs_status sysfs_resolve(struct sysfs_batch* batch) {
    struct walk* walk = malloc(sizeof *walk);
    if (walk == NULL) return SYSFS_NO_MEMORY;
    enum sysfs_status status = answer_all(batch, resolve_one, walk);
    free(walk);
    return status;
}
