// SPDX-License-Identifier: Apache-2.0
#ifndef DEVICEPLUGIN_LINKSET_H
#define DEVICEPLUGIN_LINKSET_H

#include <stdint.h>

#define LINKSET_GPUS 64

// Above what is real (18 NVLinks at 100 and the same board make 1860), and low enough for all arithmetic in 64 bits.
#define LINKSET_SCORE 32767

// How many partial sets are extended before the search ends with the best set so far. As many as 16 GPUs have subsets,
// so that up to 16 to choose from the search always ends by itself and the answer is exact.
#define LINKSET_STEPS 65536

// How well each pair of GPUs is linked, and where each GPU is. Never changes.
struct linkset {
    uint32_t count;
    uint16_t score[LINKSET_GPUS][LINKSET_GPUS];  // symmetric, nothing on the diagonal
    uint8_t node[LINKSET_GPUS];                  // a number below LINKSET_GPUS for each NUMA node
};

struct linkset_answer {
    uint64_t chosen;
    uint32_t steps;  // at most LINKSET_STEPS; when fewer, no set is better
};

// The best set of `size` GPUs of `available` that has all of `required`: what best means is told in
// plugins/gpu/topology.py, and tests/oracles/linkset.py says the same in Python. The masks have no bits from `count`
// on, `required` is within `available`, and `size` is neither below the one nor above the other. Returns 0, or -1 when
// there is no memory.
int linkset_choose(const struct linkset* links, uint64_t available, uint64_t required, uint32_t size,
                   struct linkset_answer* answer);

#endif
