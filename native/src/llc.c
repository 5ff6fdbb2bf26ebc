// SPDX-License-Identifier: Apache-2.0
#include "llc.h"

static uint32_t bits(uint32_t mask) { return (uint32_t)__builtin_popcount(mask); }

static uint32_t low(uint32_t length) { return length >= 32 ? UINT32_MAX : (UINT32_C(1) << length) - 1; }

static uint32_t fragments(uint32_t mask) { return bits(mask & ~(mask << 1)); }

// The run of `mask` that bit `at` is in.
static uint32_t run_around(uint32_t mask, uint32_t at) {
    uint32_t above = ~(mask >> at);
    uint32_t length = above ? (uint32_t)__builtin_ctz(above) : 32 - at;
    uint32_t run = low(length) << at;
    while (at > 0 && (mask >> (at - 1) & 1)) run |= UINT32_C(1) << --at;
    return run;
}

uint32_t llc_longest_run(uint32_t mask) {
    uint32_t length = 0;
    for (; mask; mask &= mask << 1) length++;
    return length;
}

// Ranks are compared as one number, the most important part first; each part is below 64.
static uint64_t rank_with(uint64_t rank, uint32_t part) { return rank << 6 | part; }

#define WORST UINT64_MAX

// The `want` lowest bits of `mask`.
static uint32_t lowest(uint32_t mask, uint32_t want) {
    uint32_t chosen = 0;
    for (; want > 0 && mask; want--) {
        chosen |= mask & -mask;
        mask &= mask - 1;
    }
    return chosen;
}

// `size` slots of one cache, the required ones among them; there are as many. Gives how good they are, less being
// better.
static uint32_t pick(const struct llc_slots* cache, uint32_t size, uint64_t* rank) {
    const uint32_t free = cache->available, required = cache->required & free;
    const uint32_t longest = llc_longest_run(free);
    uint32_t best = 0;
    *rank = WORST;
    for (uint32_t at = 0; size > 0 && at + size <= LLC_WAYS; at++) {
        uint32_t window = low(size) << at;
        if (window & ~free || required & ~window) continue;
        uint32_t rest = free & ~window;
        uint64_t its = rank_with(0, 0);
        its = rank_with(its, longest - llc_longest_run(rest));
        its = rank_with(its, bits(run_around(free, at)));
        its = rank_with(its, fragments(rest));
        its = rank_with(its, bits(rest));
        its = rank_with(its, at);
        if (its >= *rank) continue;
        *rank = its;
        best = window;
    }
    if (*rank != WORST) return best;
    best = required | lowest(free & ~required, size - bits(required));
    uint32_t rest = free & ~best;
    *rank = rank_with(1, longest - llc_longest_run(rest));
    *rank = rank_with(*rank, bits(free));
    *rank = rank_with(*rank, fragments(rest));
    *rank = rank_with(*rank, bits(rest));
    *rank = rank_with(*rank, best ? (uint32_t)__builtin_ctz(best) : 0);
    return best;
}

void llc_prefer(struct llc_slots* caches, uint32_t count, uint32_t size) {
    uint64_t best_rank = WORST, rank;
    uint32_t best = 0, best_chosen = 0, owners = 0, missing = size;
    for (uint32_t i = 0; i < count; i++) {
        caches[i].required &= caches[i].available;
        caches[i].chosen = caches[i].required;
        owners += caches[i].required != 0;
        missing -= bits(caches[i].required);
    }
    // One cache, if one will do.
    for (uint32_t i = 0; i < count && size > 0; i++) {
        if (bits(caches[i].available) < size || owners > (caches[i].required ? 1u : 0u)) continue;
        uint32_t chosen = pick(&caches[i], size, &rank);
        // Whether a group has to move comes before all else: the rank has room for one more part.
        if (size > caches[i].room) rank |= UINT64_C(1) << 36;
        if (rank >= best_rank) continue;
        best_rank = rank;
        best = i;
        best_chosen = chosen;
    }
    if (best_rank != WORST) {
        caches[best].chosen = best_chosen;
        return;
    }
    // Else those that are in use by the container anyway first, then as few as possible: the largest, and at the end
    // the smallest that suffices.
    while (missing > 0) {
        uint32_t most = 0;
        bool found = false, used = false;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t left = bits(caches[i].available & ~caches[i].chosen),
                     now = bits(caches[best].available & ~caches[best].chosen);
            bool mine = caches[i].chosen != 0;
            if (left == 0 || (mine && bits(caches[i].chosen) != bits(caches[i].required))) continue;
            bool better = !found || (mine && !used);
            if (found && mine == used) better = most >= missing ? left >= missing && left < now : left > most;
            if (!better) continue;
            found = true;
            used = mine;
            best = i;
            most = left;
        }
        if (!found) return;  // not reached: there are as many as are wanted
        uint32_t take = most < missing ? most : missing;
        caches[best].chosen = pick(&caches[best], bits(caches[best].required) + take, &rank);
        missing -= take;
    }
}

// The run of `want` free ways that leaves the longest runs whole: cut from the shortest run that has room, leaving few
// pieces, near one end of the pool so that the middle stays free, near the ideal. 0 when there is none.
static uint32_t fit(uint32_t pool, uint32_t free, uint32_t want, uint32_t ideal) {
    const uint32_t first = pool ? (uint32_t)__builtin_ctz(pool) : 0;
    const uint32_t end = pool ? 32 - (uint32_t)__builtin_clz(pool) : 0;
    uint64_t best_rank = WORST;
    uint32_t best = 0;
    for (uint32_t at = 0; at + want <= LLC_WAYS; at++) {
        uint32_t window = low(want) << at;
        if (window & ~free) continue;
        uint64_t rank = rank_with(0, bits(run_around(free, at)));
        rank = rank_with(rank, fragments(free & ~window));
        rank = rank_with(rank, at - first < end - (at + want) ? at - first : end - (at + want));
        rank = rank_with(rank, want - bits(window & ideal));
        rank = rank_with(rank, at);
        if (rank >= best_rank) continue;
        best_rank = rank;
        best = window;
    }
    return best;
}

// Finds other places for all groups that are in `window`, the widest first. Returns false when that does not work out.
static bool clear(const struct llc_ways* ways, uint32_t window, uint32_t* moved, uint32_t* moved_ways,
                  uint32_t* moved_groups) {
    uint32_t free = ways->pool & ~window, waiting = 0;
    *moved_ways = *moved_groups = 0;
    for (uint32_t i = 0; i < ways->count; i++) {
        moved[i] = ways->live[i];
        if (ways->live[i] & window)
            waiting |= UINT32_C(1) << i;
        else
            free &= ~ways->live[i];
    }
    if (waiting & ways->fixed) return false;
    while (waiting) {
        uint32_t widest = 0, widest_bits = 0;
        for (uint32_t rest = waiting; rest; rest &= rest - 1) {
            uint32_t i = (uint32_t)__builtin_ctz(rest);
            if (bits(ways->live[i]) <= widest_bits) continue;
            widest = i;
            widest_bits = bits(ways->live[i]);
        }
        uint32_t place = fit(ways->pool, free, widest_bits, ways->live[widest]);
        if (!place) return false;
        moved[widest] = place;
        free &= ~place;
        waiting &= ~(UINT32_C(1) << widest);
        *moved_ways += widest_bits;
        ++*moved_groups;
    }
    return true;
}

// Pushes all groups to the low end of the longest run of the pool, in their order. Returns false if they do not fit.
static bool slide(const struct llc_ways* ways, uint32_t want, struct llc_plan* plan) {
    uint32_t pool = 0, at, end, done = 0;
    for (uint32_t i = 0; i < LLC_WAYS; i++) {
        uint32_t run = ways->pool >> i & 1 ? run_around(ways->pool, i) : 0;
        if (bits(run) > bits(pool)) pool = run;
    }
    if (ways->fixed || !pool) return false;
    at = (uint32_t)__builtin_ctz(pool);
    end = at + bits(pool);
    for (uint32_t n = 0; n < ways->count; n++) {
        uint32_t next = LLC_WAYS, first = LLC_WAYS;
        for (uint32_t i = 0; i < ways->count; i++) {
            uint32_t its = (uint32_t)__builtin_ctz(ways->live[i]);
            if (done >> i & 1 || its >= first) continue;
            next = i;
            first = its;
        }
        if (next == LLC_WAYS) return false;  // not reached: masks are not empty
        uint32_t width = bits(ways->live[next]);
        if (at + width > end) return false;
        plan->moved[next] = low(width) << at;
        at += width;
        done |= UINT32_C(1) << next;
    }
    if (at + want > end) return false;
    plan->mask = low(want) << at;
    return true;
}

int llc_place(const struct llc_ways* ways, uint32_t want, uint32_t ideal, bool move, bool sparse,
              struct llc_plan* plan) {
    uint32_t free = ways->pool;
    for (uint32_t i = 0; i < ways->count; i++) {
        free &= ~ways->live[i];
        plan->moved[i] = ways->live[i];
    }
    plan->mask = fit(ways->pool, free, want, ideal);
    if (plan->mask) return 0;
    if (move && bits(free) >= want) {
        uint64_t best_rank = WORST;
        uint32_t best = 0, moved[LLC_WAYS];
        for (uint32_t at = 0; at + want <= LLC_WAYS; at++) {
            uint32_t window = low(want) << at, moved_ways, moved_groups;
            if (window & ~ways->pool || !clear(ways, window, moved, &moved_ways, &moved_groups)) continue;
            uint64_t rank = rank_with(0, moved_groups);
            rank = rank_with(rank, moved_ways);
            rank = rank_with(rank, want - bits(window & ideal));
            rank = rank_with(rank, at);
            if (rank >= best_rank) continue;
            best_rank = rank;
            best = window;
            for (uint32_t i = 0; i < ways->count; i++) plan->moved[i] = moved[i];
        }
        if (best) {
            plan->mask = best;
            return 0;
        }
        if (slide(ways, want, plan)) return 0;
        for (uint32_t i = 0; i < ways->count; i++) plan->moved[i] = ways->live[i];
    }
    if (sparse && bits(free) >= want) {
        uint32_t near = lowest(free & ideal, want);
        plan->mask = near | lowest(free & ~near, want - bits(near));
        return 0;
    }
    return -1;
}
