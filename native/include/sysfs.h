// SPDX-License-Identifier: Apache-2.0
// Many small files, directories or links looked at in one go, without Python.

#ifndef DEVICEPLUGIN_SYSFS_H
#define DEVICEPLUGIN_SYSFS_H

#include <stddef.h>

// How many symbolic links one path may lead through: as the kernel's own limit, MAXSYMLINKS.
#define SYSFS_LINKS 40

struct sysfs_text {
    const char* at;
    size_t size;
};

struct sysfs_buffer {
    char* data;
    size_t size;
    size_t room;
};

// What was found for one path: bytes of the batch's buffer, or why there are none.
struct sysfs_answer {
    size_t start;
    size_t size;
    int error;  // of errno, or 0
};

// The caller fills the first four and owns what they point to; `done` and the buffer start at zero, and the buffer's
// data is the caller's to free.
struct sysfs_batch {
    struct sysfs_text root;         // stands before each path: empty, or ends with a slash
    const struct sysfs_text* path;  // each ends with a NUL that its size does not count
    struct sysfs_answer* answer;    // room for one for each path; error is set beforehand where a path is of no use
    size_t count;
    size_t done;  // how many are answered
    struct sysfs_buffer found;
};

enum sysfs_status { SYSFS_DONE, SYSFS_INTERRUPTED, SYSFS_NO_MEMORY };

// Each answers the paths from `done` on. After SYSFS_INTERRUPTED (a signal came) it goes on when it is called again.

// At most `limit` bytes of each file, in one read(2), without the white space and NULs at their end. For a directory
// EISDIR.
enum sysfs_status sysfs_read(struct sysfs_batch* batch, size_t limit);

// The names in each directory without "." and "..", each ended by a NUL. Runs of digits are ordered by value and come
// before all else, which is ordered by its bytes: "1-2", "1-10", "usb1".
enum sysfs_status sysfs_list(struct sysfs_batch* batch);

// Where each path leads once all links are followed, the absolute ones from the root on. The end need not exist.
enum sysfs_status sysfs_resolve(struct sysfs_batch* batch);

#endif
