// SPDX-License-Identifier: Apache-2.0
#ifndef DEVICEPLUGIN_LLC_H
#define DEVICEPLUGIN_LLC_H

#include <stdbool.h>
#include <stdint.h>

// A cache mask has 32 bits at most (cbm_len, u32 in the kernel's fs/resctrl), so a cache has room for as many groups.
#define LLC_WAYS 32
#define LLC_DOMAINS 4096

// One cache, in slots: bit n is slot n.
struct llc_slots {
    uint32_t available;  // free for the container, the required ones among them
    uint32_t required;
    uint32_t room;    // so many slots fit into the longest run of free ways
    uint32_t chosen;  // the answer
};

// One cache, in ways: bit n is way n.
struct llc_ways {
    uint32_t pool;            // the ways that groups may have
    uint32_t count;           // groups that are there, at most LLC_WAYS
    uint32_t live[LLC_WAYS];  // their masks, disjoint, none empty
    uint32_t fixed;           // bit i: group i must stay where it is
};

struct llc_plan {
    uint32_t mask;             // of the new group
    uint32_t moved[LLC_WAYS];  // the masks of the groups that are there once the new one has its place
};

// Fills `chosen` of each of the `count` caches: `size` slots in all, the required ones among them. There must be as
// many available; `room` says nothing about which. What best means is told in plugins/llc/placing.py, and
// tests/oracles/llc.py says the same in Python.
void llc_prefer(struct llc_slots* caches, uint32_t count, uint32_t size);

// A place for a new group with `want` ways, 1 to LLC_WAYS, which are best those of `ideal`. Returns 0, or -1 when there
// is none. Groups move only if `move` says so; a mask may have holes only if `sparse` says so.
int llc_place(const struct llc_ways* ways, uint32_t want, uint32_t ideal, bool move, bool sparse,
              struct llc_plan* plan);

// The length of the longest run of bits that are set.
uint32_t llc_longest_run(uint32_t mask);

#endif
