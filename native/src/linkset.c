// SPDX-License-Identifier: Apache-2.0
// One number ranks a set, so that the search has one thing to maximise. The score inside the set comes first, then the
// score of the links that it cuts to the other available GPUs, then the number of NUMA nodes:
//
//     rank = NODES * (weight * inside - cut) - nodes
//
// The links of a GPU to all available ones are inside the set or cut, so cut = sum of all links of its members - 2 *
// inside; where two sets are equal inside, the one with the lower sum cuts less. That sum is a cost of each GPU by
// itself, and the rank, but for the nodes, becomes a sum over pairs (`pull`) and over GPUs (the first `gain`):
//
//     NODES * (weight * inside - sum of links), where weight is above what any sum of links can be

#include "linkset.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NODES 128  // more than there can be NUMA nodes

// A set that is being made. Candidates, not GPUs, are the bits of `members`.
struct partial {
    uint64_t members;
    uint64_t nodes;
    int64_t worth;  // the rank without its nodes
};

struct search {
    uint32_t count;  // candidates: the GPUs that are available and not required, the lowest first
    uint32_t need;   // how many of them to take
    uint8_t gpu[LINKSET_GPUS];
    uint64_t node[LINKSET_GPUS];  // one bit
    int64_t pull[LINKSET_GPUS][LINKSET_GPUS];
    int64_t reach[LINKSET_GPUS][LINKSET_GPUS];     // [n][c]: the n largest pulls of candidate c, summed
    int64_t gain[LINKSET_GPUS + 1][LINKSET_GPUS];  // [depth][c]: what c adds to the partial set of that depth
    int64_t bound[LINKSET_GPUS][LINKSET_GPUS];     // [depth][c]: twice what can still be added when c comes next
    int64_t best;
    uint64_t best_members;
    int least_nodes;  // no set that is large enough is on fewer
    uint32_t steps;
};

static uint64_t bit(uint32_t number) { return (uint64_t)1 << number; }

static int64_t nodes_with(const struct partial* set, uint64_t node) { return __builtin_popcountll(set->nodes | node); }

static struct partial with(const struct search* s, struct partial set, const int64_t* gain, uint32_t candidate) {
    return (struct partial){set.members | bit(candidate), set.nodes | s->node[candidate], set.worth + gain[candidate]};
}

static int64_t rank_of(const struct partial* set) { return set->worth - __builtin_popcountll(set->nodes); }

// Puts `value` among the `*size` largest so far, of which `limit` are kept in descending order, and returns by how much
// that makes their sum larger.
static int64_t keep_largest(int64_t* largest, uint32_t* size, uint32_t limit, int64_t value) {
    int64_t dropped = 0;
    uint32_t i;
    if (limit == 0) return 0;
    if (*size == limit) {
        if (value <= largest[limit - 1]) return 0;
        dropped = largest[limit - 1];
        i = limit - 1;
    } else {
        i = (*size)++;
    }
    for (; i > 0 && largest[i - 1] < value; i--) largest[i] = largest[i - 1];
    largest[i] = value;
    return value - dropped;
}

// Fills s->bound[depth]. A set M of what is still to be added brings its members' gains and half of the pulls of each
// member on the others, which is at most half of its reach. Of those to come after a candidate the best are summed.
static void set_bounds(struct search* s, uint32_t depth, uint32_t start) {
    const uint32_t rest = s->need - depth - 1;
    const int64_t* gain = s->gain[depth];
    const int64_t* reach = s->reach[rest];
    int64_t largest[LINKSET_GPUS], sum = 0;
    uint32_t size = 0;
    for (uint32_t c = s->count; c-- > start;) {
        int64_t most = 2 * gain[c] + reach[c];
        s->bound[depth][c] = most + sum;
        sum += keep_largest(largest, &size, rest, most);
    }
}

// Tries all ways to complete the set with candidates from `start` on, in the order in which people list sets: of sets
// that rank the same the first one found has the lowest numbers, and only a better one takes its place.
static void extend(struct search* s, const struct partial* set, uint32_t depth, uint32_t start) {
    const uint32_t need = s->need - depth;
    const int64_t* gain = s->gain[depth];
    if (need == 1) {
        for (uint32_t c = start; c < s->count; c++) {
            int64_t rank = set->worth + gain[c] - nodes_with(set, s->node[c]);
            if (rank <= s->best) continue;
            s->best = rank;
            s->best_members = set->members | bit(c);
        }
        return;
    }
    set_bounds(s, depth, start);
    for (uint32_t c = start; c + need <= s->count; c++) {
        int64_t nodes = nodes_with(set, s->node[c]);
        if (nodes < s->least_nodes) nodes = s->least_nodes;
        if (2 * (set->worth - nodes - s->best) + s->bound[depth][c] < 2) continue;  // not even better by one
        if (s->steps == LINKSET_STEPS) return;
        s->steps++;
        int64_t* next = s->gain[depth + 1];
        for (uint32_t other = c + 1; other < s->count; other++) next[other] = gain[other] + s->pull[c][other];
        struct partial larger = with(s, *set, gain, c);
        extend(s, &larger, depth + 1, c + 1);
    }
}

// Adds the candidate that makes the best set, the lowest of equals. `gain` is kept up for all candidates.
static void add_best(const struct search* s, struct partial* set, int64_t* gain) {
    uint32_t best = LINKSET_GPUS;
    int64_t best_rank = 0;
    for (uint32_t c = 0; c < s->count; c++) {
        if (set->members & bit(c)) continue;
        int64_t rank = set->worth + gain[c] - nodes_with(set, s->node[c]);
        if (best == LINKSET_GPUS || rank > best_rank) {
            best = c;
            best_rank = rank;
        }
    }
    *set = with(s, *set, gain, best);
    for (uint32_t c = 0; c < s->count; c++) gain[c] += s->pull[best][c];
}

static uint64_t nodes_without(const struct search* s, const struct partial* set, uint64_t base, uint32_t candidate) {
    for (uint64_t rest = set->members & ~bit(candidate); rest; rest &= rest - 1) base |= s->node[__builtin_ctzll(rest)];
    return base;
}

// Makes the exchange of one member that helps most. Returns false when none helps.
static bool exchange(const struct search* s, struct partial* set, uint64_t base_nodes, int64_t* gain) {
    struct partial best = *set;
    uint32_t out = 0, in = 0;
    for (uint32_t member = 0; member < s->count; member++) {
        if (!(set->members & bit(member))) continue;
        uint64_t nodes = nodes_without(s, set, base_nodes, member);
        for (uint32_t c = 0; c < s->count; c++) {
            if (set->members & bit(c)) continue;
            struct partial other = {(set->members & ~bit(member)) | bit(c), nodes | s->node[c],
                                    set->worth - gain[member] + gain[c] - s->pull[member][c]};
            if (rank_of(&other) <= rank_of(&best)) continue;
            best = other;
            out = member;
            in = c;
        }
    }
    if (best.members == set->members) return false;
    *set = best;
    for (uint32_t c = 0; c < s->count; c++) gain[c] += s->pull[in][c] - s->pull[out][c];
    return true;
}

// A good set to begin with: from each candidate add the best one until there are enough, then exchange while that helps
// (the number of times is bounded so that the time is), and keep the best of these sets.
static struct partial first_set(const struct search* s, const struct partial* base) {
    struct partial best = {0};
    for (uint32_t start = 0; start < s->count; start++) {
        int64_t gain[LINKSET_GPUS];
        struct partial set = with(s, *base, s->gain[0], start);
        for (uint32_t c = 0; c < s->count; c++) gain[c] = s->gain[0][c] + s->pull[start][c];
        for (uint32_t size = 1; size < s->need; size++) add_best(s, &set, gain);
        for (uint32_t times = 0; times < s->need && exchange(s, &set, base->nodes, gain); times++) continue;
        if (start == 0 || rank_of(&set) > rank_of(&best)) best = set;
    }
    return best;
}

// The fewest NUMA nodes that have room for all that is needed, besides those of the required GPUs.
static int fewest_nodes(const struct search* s, uint64_t base_nodes) {
    uint32_t room[LINKSET_GPUS] = {0}, missing = s->need;
    int nodes = __builtin_popcountll(base_nodes);
    for (uint32_t c = 0; c < s->count; c++) {
        if (!(s->node[c] & base_nodes))
            room[__builtin_ctzll(s->node[c])]++;
        else if (missing)
            missing--;
    }
    for (; missing; nodes++) {
        uint32_t largest = 0;
        for (uint32_t i = 1; i < LINKSET_GPUS; i++)
            if (room[i] > room[largest]) largest = i;
        missing -= room[largest] < missing ? room[largest] : missing;
        room[largest] = 0;
    }
    return nodes;
}

// Numbers the candidates, and fills everything that follows from the links and does not change in the search. Returns
// the set that has the required GPUs alone.
static struct partial prepare(struct search* s, const struct linkset* links, uint64_t available, uint64_t required,
                              uint32_t size) {
    int64_t degree[LINKSET_GPUS], weight = 1;
    struct partial base = {0};
    s->count = 0;
    s->steps = 0;
    s->need = size - (uint32_t)__builtin_popcountll(required);
    for (uint64_t rest = available; rest; rest &= rest - 1) {
        uint32_t gpu = (uint32_t)__builtin_ctzll(rest);
        degree[gpu] = 0;
        for (uint64_t others = available; others; others &= others - 1)
            degree[gpu] += links->score[gpu][__builtin_ctzll(others)];
        weight += degree[gpu];
        if (!(required & bit(gpu))) s->gpu[s->count++] = (uint8_t)gpu;
    }
    // What required GPUs are worth among themselves is the same for all sets, so it is left out.
    for (uint64_t rest = required; rest; rest &= rest - 1) base.nodes |= bit(links->node[__builtin_ctzll(rest)]);
    for (uint32_t c = 0; c < s->count; c++) {
        const uint16_t* score = links->score[s->gpu[c]];
        int64_t largest[LINKSET_GPUS], kept = 0;
        uint32_t kept_count = 0;
        s->node[c] = bit(links->node[s->gpu[c]]);
        s->gain[0][c] = -NODES * degree[s->gpu[c]];
        for (uint64_t rest = required; rest; rest &= rest - 1)
            s->gain[0][c] += NODES * weight * score[__builtin_ctzll(rest)];
        for (uint32_t other = 0; other < s->count; other++) {
            s->pull[c][other] = NODES * weight * score[s->gpu[other]];
            if (other != c) keep_largest(largest, &kept_count, s->need, s->pull[c][other]);
        }
        for (uint32_t n = 0; n < s->need; n++) {
            s->reach[n][c] = kept;
            if (n < kept_count) kept += largest[n];
        }
    }
    s->least_nodes = fewest_nodes(s, base.nodes);
    return base;
}

int linkset_choose(const struct linkset* links, uint64_t available, uint64_t required, uint32_t size,
                   struct linkset_answer* answer) {
    answer->steps = 0;
    answer->chosen = required;
    if (size == (uint32_t)__builtin_popcountll(required)) return 0;
    answer->chosen = available;
    if (size == (uint32_t)__builtin_popcountll(available)) return 0;

    struct search* s = malloc(sizeof *s);
    if (s == NULL) return -1;
    struct partial base = prepare(s, links, available, required, size);
    struct partial first = first_set(s, &base);
    // The search may find that very set, or one with lower numbers that ranks the same: it need not be better.
    s->best = rank_of(&first) - 1;
    s->best_members = first.members;
    extend(s, &base, 0, 0);
    answer->chosen = required;
    for (uint64_t rest = s->best_members; rest; rest &= rest - 1) answer->chosen |= bit(s->gpu[__builtin_ctzll(rest)]);
    answer->steps = s->steps;
    free(s);
    return 0;
}
