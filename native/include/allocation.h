// SPDX-License-Identifier: Apache-2.0
#ifndef DEVICEPLUGIN_ALLOCATION_H
#define DEVICEPLUGIN_ALLOCATION_H

#include <stddef.h>
#include <stdint.h>

// What can be chosen: slots, numbered in the order of their ids, on units, numbered in the order of their first slots.
// Never changes.
struct allocation_table {
    size_t units;
    size_t slots;
    const uint32_t* first;    // units + 1 of them: where each unit's slots begin in `members`
    const uint32_t* members;  // the slots unit by unit, ascending in each
    const uint64_t* nodes;    // for each unit the NUMA nodes that are local to it, never none
    uint64_t unplaced;        // the highest bit in `nodes`, which stands for "not known where"
};

enum allocation_policy { ALLOCATION_ANY, ALLOCATION_SPREAD, ALLOCATION_PACK };

// Of a slot: somebody else's, free, or given to the container that asks.
enum allocation_state { ALLOCATION_TAKEN, ALLOCATION_FREE, ALLOCATION_OURS };

// Chooses `need` free slots (or all, if there are fewer), writes them to `chosen` in the order in which they were
// picked, marks them as ours, and returns how many there are; -1 when there is no memory. `state` holds one enum
// allocation_state for each slot.
ptrdiff_t allocation_choose(const struct allocation_table* table, enum allocation_policy policy, uint8_t* state,
                            size_t need, uint32_t* chosen);

#endif
